// OpenVINO's CPU plug-in.
#include <cstring>
#include <filesystem>
#include <map>
#include <openvino/openvino.hpp>
#include <sstream>

#include "errors.hpp"
#include "runner.hpp"

namespace quantrim {
namespace {

std::string trimmed(const std::string& line) {
    const size_t first = line.find_first_not_of(" \t\r");
    return first == std::string::npos ? "" : line.substr(first, line.find_last_not_of(" \t\r") - first + 1);
}

// The sentence of an OpenVINO error that speaks of the model, without C++ file names.
std::string reason(const std::exception& error) {
    std::istringstream lines(error.what());
    std::string first;
    for (std::string line; std::getline(lines, line);) {
        line = trimmed(line);
        if (line.empty()) continue;
        if (line.rfind("Exception from", 0) != 0 && line.rfind("Check '", 0) != 0) return line.substr(0, 300);
        if (first.empty()) first = line;
    }
    return first.substr(0, 300);
}

Element element_of(const ov::element::Type& type) {
    if (type == ov::element::f32) return Element::f32;
    if (type == ov::element::i64) return Element::i64;
    return type == ov::element::i32 ? Element::i32 : Element::other;
}

std::string name_of(const ov::Output<const ov::Node>& port) {
    return port.get_names().empty() ? port.get_node()->get_friendly_name() : port.get_any_name();
}

Port port_of(const ov::Output<const ov::Node>& port) {
    Port made{name_of(port), {}, element_of(port.get_element_type())};
    for (const auto& size : port.get_partial_shape()) {
        made.shape.push_back(size.is_dynamic() ? -1 : size.get_length());
    }
    return made;
}

ov::Shape ov_shape(const std::vector<int64_t>& shape) { return ov::Shape(shape.begin(), shape.end()); }

template <typename T>
void append(const ov::Tensor& tensor, std::vector<float>& values) {
    const T* data = tensor.data<T>();
    values.assign(data, data + tensor.get_size());
}

Output output_of(const std::string& name, const ov::Tensor& tensor) {
    const ov::Shape shape = tensor.get_shape();
    Output output{name, {shape.begin(), shape.end()}, {}};
    switch (element_of(tensor.get_element_type())) {
        case Element::f32: append<float>(tensor, output.values); break;
        case Element::i32: append<int32_t>(tensor, output.values); break;
        case Element::i64: append<int64_t>(tensor, output.values); break;
        case Element::other:
            throw BenchError("output '" + name + "' has type " + tensor.get_element_type().get_type_name() +
                             "; float32, int32 and int64 can be read.");
    }
    return output;
}

class OpenVinoRequest : public Request {
public:
    OpenVinoRequest(ov::CompiledModel& model, Inputs inputs)
        : request_(model.create_infer_request()), inputs_(inputs) {
        for (const auto& port : model.inputs()) ports_.push_back(port_of(port));
        for (const auto& port : model.outputs()) names_.push_back(name_of(port));
    }

    void load(const Batch& batch, const std::vector<int64_t>& image_shape) override {
        ov::Tensor pixels(ov::element::f32, ov_shape(batch_shape(batch.count, image_shape)));
        std::memcpy(pixels.data(), batch.pixels, pixels.get_byte_size());
        set(inputs_.image, pixels);
        if (inputs_.label >= 0) load_labels(batch.labels);
    }

    void infer() override {
        try {
            request_.infer();
        } catch (const std::exception& error) {
            throw BenchError("OpenVINO refused the input: " + reason(error));
        }
    }

    std::vector<Output> outputs() const override {
        auto request = request_;  // reading a result is no const call of OpenVINO's handle
        std::vector<Output> made;
        for (size_t i = 0; i < names_.size(); ++i) made.push_back(output_of(names_[i], request.get_output_tensor(i)));
        return made;
    }

    std::vector<ov::ProfilingInfo> times() const { return request_.get_profiling_info(); }

private:
    void load_labels(const std::vector<int64_t>& labels) {
        const Port& port = ports_[static_cast<size_t>(inputs_.label)];
        const auto shape = ov_shape(label_shape(static_cast<int64_t>(labels.size()), port));
        ov::Tensor tensor(port.type == Element::i64 ? ov::element::i64 : ov::element::i32, shape);
        if (port.type == Element::i64) std::copy(labels.begin(), labels.end(), tensor.data<int64_t>());
        else std::copy(labels.begin(), labels.end(), tensor.data<int32_t>());
        set(static_cast<size_t>(inputs_.label), tensor);
    }

    void set(size_t index, const ov::Tensor& tensor) {
        try {
            request_.set_input_tensor(index, tensor);
        } catch (const std::exception& error) {
            throw BenchError("OpenVINO refused input '" + ports_[index].name + "': " + reason(error));
        }
    }

    ov::InferRequest request_;
    Inputs inputs_;
    std::vector<Port> ports_;
    std::vector<std::string> names_;
};

std::string text_of(const ov::RTMap& info, const std::string& key) {
    const auto found = info.find(key);
    return found == info.end() ? "" : found->second.as<std::string>();
}

std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, ',');) {
        if (!part.empty()) parts.push_back(part);
    }
    return parts;
}

LayerRun layer_of(const ov::Node& node, const std::map<std::string, double>& times) {
    const auto& info = node.get_rt_info();
    LayerRun run;
    run.nodes = split(text_of(info, "originalLayersNames"));
    if (run.nodes.empty()) run.nodes = {node.get_friendly_name()};
    run.kind = text_of(info, "layerType");
    run.precision = text_of(info, "runtimePrecision");
    if (run.precision == "u8" || run.precision == "i8") run.precision = "int8";
    run.kernel = text_of(info, "primitiveType");
    const auto time = times.find(node.get_friendly_name());
    run.time_ms = time == times.end() ? 0 : time->second;
    return run;
}

bool does_no_work(const std::string& kind) {
    return kind == "Const" || kind == "Constant" || kind == "Input" || kind == "Parameter" || kind == "Output" ||
           kind == "Result";
}

// What a tuned file says of its layers that are not INT8 (quantrim.engines.base.PRECISION_KEY).
std::string asked_precision(const ov::Model& model) {
    const bool asks = model.has_rt_info("framework", "quantrim.precision");
    return asks && model.get_rt_info<std::string>("framework", "quantrim.precision") == "bf16" ? "bf16" : "f32";
}

class OpenVinoRunner : public Runner {
public:
    explicit OpenVinoRunner(const Options& options) : options_(options) {
        model_ = compile(false);
        std::vector<Port> ports;
        for (const auto& port : model_.inputs()) ports.push_back(port_of(port));
        inputs_ = choose_inputs(ports, options.with_accuracy_layer, options.infer_model);
        image_ = ports[inputs_.image];
    }

    const Port& image_input() const override { return image_; }
    std::string version() const override { return ov::get_openvino_version().buildNumber; }
    std::string precision() const override { return precision_; }
    std::unique_ptr<Request> request() override { return std::make_unique<OpenVinoRequest>(model_, inputs_); }

    std::vector<LayerRun> profile(const Batch& batch, const std::vector<int64_t>& image_shape) override {
        auto model = compile(true);
        OpenVinoRequest request(model, inputs_);
        request.load(batch, image_shape);
        for (int run = 0; run < 2; ++run) request.infer();
        std::map<std::string, double> times;
        for (const auto& entry : request.times()) {
            times[entry.node_name] = static_cast<double>(entry.real_time.count()) / 1e3;
        }
        std::vector<LayerRun> layers;
        for (const auto& node : model.get_runtime_model()->get_ordered_ops()) {
            auto layer = layer_of(*node, times);
            if (!does_no_work(layer.kind)) layers.push_back(std::move(layer));
        }
        return layers;
    }

private:
    ov::CompiledModel compile(bool profiling) {
        if (!std::filesystem::is_regular_file(options_.infer_model)) {
            throw BenchError(options_.infer_model + ": no such file.");
        }
        const bool latency = options_.streams == 1;
        ov::AnyMap config = {
            ov::inference_num_threads(static_cast<int32_t>(options_.num_threads)),
            ov::num_streams(static_cast<int32_t>(options_.streams)),
            ov::hint::performance_mode(latency ? ov::hint::PerformanceMode::LATENCY
                                               : ov::hint::PerformanceMode::THROUGHPUT),
            ov::enable_profiling(profiling),
        };
        try {
            const auto model = core_.read_model(options_.infer_model);
            precision_ = options_.precision == "file" ? asked_precision(*model) : options_.precision;
            if (precision_ == "f32") config.insert(ov::hint::inference_precision(ov::element::f32));
            if (precision_ == "bf16") config.insert(ov::hint::inference_precision(ov::element::bf16));
            return core_.compile_model(model, "CPU", config);
        } catch (const std::exception& error) {
            throw BenchError(options_.infer_model + ": OpenVINO can't load it: " + reason(error));
        }
    }

    Options options_;
    std::string precision_;
    ov::Core core_;
    ov::CompiledModel model_;
    Inputs inputs_;
    Port image_;
};

}  // namespace

std::unique_ptr<Runner> open_openvino(const Options& options) { return std::make_unique<OpenVinoRunner>(options); }

}  // namespace quantrim
