#include "benchmark.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <mutex>

#include "errors.hpp"
#include "files.hpp"

namespace quantrim {
namespace {

// Shape of one image, from --input_shape or the model.
std::vector<int64_t> image_shape_of(const Port& port, const Options& options) {
    const std::vector<int64_t> known(port.shape.begin() + 1, port.shape.end());
    std::vector<int64_t> asked = options.input_shape;
    if (asked.empty()) {
        if (std::find(known.begin(), known.end(), -1) == known.end()) return known;
        throw BenchError("input '" + port.name + "' has dynamic shape " + spell(port.shape) +
                         ". Pass --input_shape, e.g. 3,224,224.");
    }
    if (asked.size() == known.size() + 1) asked.erase(asked.begin());
    bool fits = asked.size() == known.size();
    for (size_t i = 0; fits && i < asked.size(); ++i) fits = known[i] == -1 || known[i] == asked[i];
    if (!fits) {
        throw BenchError("input '" + port.name + "' has shape " + spell(port.shape) + "; --input_shape " +
                         spell(options.input_shape) + " does not fit.");
    }
    return asked;
}

int64_t batch_size_of(const Port& port, const Options& options) {
    constexpr int64_t kDefault = 50;
    const int64_t fixed = port.shape[0];
    if (fixed < 0) return options.batch_size > 0 ? options.batch_size : kDefault;
    if (options.batch_size > 0 && options.batch_size != fixed) {
        throw BenchError("input '" + port.name + "' has the fixed batch " + std::to_string(fixed) +
                         "; --batch_size " + std::to_string(options.batch_size) + " needs a model with an open batch.");
    }
    return fixed;
}

// Everything that stays the same during a measurement.
struct Job {
    const Options& options;
    const ImageSource& source;
    std::vector<int64_t> image_shape;
    int64_t batch_size;
    int64_t batches;
    bool fixed_batch;
};

Job make_job(const Options& options, const Port& port, const ImageSource& source, std::vector<int64_t> shape,
             int64_t batch_size) {
    const int64_t all = (source.size() + batch_size - 1) / batch_size;
    const int64_t batches = options.iterations > 0 ? std::min(options.iterations, all) : all;
    const bool fixed = port.shape[0] > 0;
    const bool partial = batches == all && source.size() % batch_size != 0;
    if (options.with_accuracy_layer && !source.has_labels()) {
        throw BenchError("--with_accuracy_layer needs --infer_data, for its labels.");
    }
    if (options.with_accuracy_layer && fixed && partial) {
        throw BenchError(std::to_string(source.size()) + " images are no multiple of the model's fixed batch " +
                         std::to_string(batch_size) + ", and its accuracy layer would count the padding. Pass " +
                         "--iterations " + std::to_string(all - 1) + ", or export with an open batch.");
    }
    return {options, source, std::move(shape), batch_size, batches, fixed};
}

// The images of a batch; a partial one is filled up where the model's batch is fixed.
class Stage {
public:
    explicit Stage(const Job& job) : job_(job) {}

    Batch load(int64_t index) {
        const int64_t start = index * job_.batch_size;
        Batch batch = job_.source.batch(start, std::min(job_.batch_size, job_.source.size() - start));
        if (!job_.fixed_batch || batch.count == job_.batch_size) return batch;
        const int64_t values = volume(job_.image_shape);
        filled_.assign(batch.pixels, batch.pixels + batch.count * values);
        for (int64_t i = batch.count; i < job_.batch_size; ++i) {
            filled_.insert(filled_.end(), batch.pixels + (batch.count - 1) * values, batch.pixels + batch.count * values);
        }
        return {job_.batch_size, filled_.data(), batch.labels};
    }

private:
    const Job& job_;
    std::vector<float> filled_;
};

// What the runs gave; workers share one, and hand over outside the timed call.
class Findings {
public:
    explicit Findings(const Job& job) : job_(job), judged_(job.source.has_labels()) {
        if (!judged_) why_not_ = "random images have no labels";
        if (!job.options.dump_outputs.empty()) dump_ = std::make_unique<AtomicFile>(job.options.dump_outputs);
    }

    void add(int64_t index, std::vector<Output> outputs, const std::vector<int64_t>& labels, int64_t images) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (dump_ != nullptr) dump(index, outputs.front(), images);
        if (!judged_) return;
        if (job_.options.with_accuracy_layer) {
            accuracy_.add(read_accuracy_layer(outputs, images));
            return;
        }
        const Output& first = outputs.front();
        if (!classes_of(first, first.shape.empty() ? 0 : first.shape[0])) {
            judged_ = false;
            why_not_ = "output '" + first.name + "' is " + spell(first.shape) + ", not images x classes";
            return;
        }
        accuracy_.add(count_hits(first, labels, index * job_.batch_size));
    }

    void finish(Result& result) {
        if (dump_ != nullptr) dump_->commit();
        if (judged_) result.accuracy = accuracy_;
        result.no_accuracy = why_not_;
    }

private:
    void dump(int64_t index, const Output& output, int64_t images) {
        const int64_t rows = output.shape.empty() ? 0 : output.shape[0];
        if (rows < images) throw BenchError("--dump_outputs: output '" + output.name + "' has no batch axis.");
        const int64_t values = volume(output.shape) / rows;
        dump_->write_at(4 * index * job_.batch_size * values, output.values.data(), 4 * images * values);
    }

    const Job& job_;
    std::mutex mutex_;
    Accuracy accuracy_;
    bool judged_;
    std::string why_not_;
    std::unique_ptr<AtomicFile> dump_;
};

// Durations that one worker measured.
struct Timing {
    std::vector<double> full_ms, partial_ms;
    int64_t images = 0;  // of all timed runs
    double seconds = 0;
};

double timed_infer(Request& request) {
    const auto start = std::chrono::steady_clock::now();
    request.infer();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void warm_up(const Job& job, Request& request) {
    Stage stage(job);
    if (job.options.warmup_size == 0) return;
    request.load(stage.load(0), job.image_shape);
    for (int64_t i = 0; i < job.options.warmup_size; ++i) request.infer();
}

// Takes batches until none is left.
Timing work(const Job& job, Request& request, std::atomic<int64_t>& next, Findings& findings) {
    Timing timing;
    Stage stage(job);
    for (int64_t index = next++; index < job.batches; index = next++) {
        const Batch batch = stage.load(index);
        const int64_t images = std::min(job.batch_size, job.source.size() - index * job.batch_size);
        request.load(batch, job.image_shape);
        for (int64_t i = 0; i < job.options.repeat; ++i) {
            const double seconds = timed_infer(request);
            auto& durations = images == job.batch_size ? timing.full_ms : timing.partial_ms;
            durations.push_back(1e3 * seconds);
            timing.images += images;
            timing.seconds += seconds;
        }
        findings.add(index, request.outputs(), batch.labels, images);
    }
    return timing;
}

template <typename Function>
auto in_parallel(std::vector<std::unique_ptr<Request>>& requests, Function function) {
    using Made = decltype(function(*requests.front()));
    std::vector<std::future<Made>> futures;
    for (auto& request : requests) {
        futures.push_back(std::async(std::launch::async, [function, &request] { return function(*request); }));
    }
    return futures;
}

std::vector<Timing> measure(const Job& job, Runner& runner, Findings& findings) {
    std::vector<std::unique_ptr<Request>> requests;
    for (int64_t i = 0; i < job.options.streams; ++i) requests.push_back(runner.request());
    for (auto& ready : in_parallel(requests, [&](Request& request) { warm_up(job, request); return true; })) ready.get();
    std::atomic<int64_t> next{0};
    std::vector<Timing> timings;
    for (auto& done : in_parallel(requests, [&](Request& r) { return work(job, r, next, findings); })) {
        timings.push_back(done.get());
    }
    return timings;
}

void summarize(const std::vector<Timing>& timings, Result& result) {
    std::vector<double> full, partial;
    for (const auto& timing : timings) {
        full.insert(full.end(), timing.full_ms.begin(), timing.full_ms.end());
        partial.insert(partial.end(), timing.partial_ms.begin(), timing.partial_ms.end());
        // Streams run side by side, so their rates add; copying a batch in is not part of any of them.
        if (timing.images > 0) result.throughput += static_cast<double>(timing.images) / timing.seconds;
    }
    const auto& told = full.empty() ? partial : full;
    result.runs = static_cast<int64_t>(told.size());
    result.latency = latency_of(told);
}

}  // namespace

Result run_benchmark(const Options& options) {
    const auto runner = options.engine == "openvino" ? open_openvino(options) : open_onnxruntime(options);
    const Port& port = runner->image_input();
    const auto shape = image_shape_of(port, options);
    const int64_t size = batch_size_of(port, options);
    const int64_t made = size * std::max<int64_t>(options.iterations, options.streams);
    const auto source = options.infer_data.empty() ? random_images(made, shape)
                                                   : open_data_file(options.infer_data, shape);
    const Job job = make_job(options, port, *source, shape, size);
    Findings findings(job);
    Result result;
    result.engine_version = runner->version();
    result.precision = runner->precision();
    result.image_shape = shape;
    result.batch_size = std::min(size, source->size());
    result.batches = job.batches;
    result.images = std::min(job.batches * size, source->size());
    summarize(measure(job, *runner, findings), result);
    if (options.profile) result.layers = runner->profile(Stage(job).load(0), shape);
    findings.finish(result);
    return result;
}

}  // namespace quantrim
