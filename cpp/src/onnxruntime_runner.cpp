// ONNX Runtime's CPU execution provider, opened at run time from its Python wheel.
#include <dlfcn.h>

#include <algorithm>
#include <filesystem>

#include "errors.hpp"
#include "onnxruntime_abi.hpp"
#include "runner.hpp"

namespace quantrim {
namespace {

// Owner of one of ONNX Runtime's objects.
template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

// The opened library; it stays open until the process ends.
class Library {
public:
    explicit Library(const std::string& asked) {
        const std::string path = asked.empty() ? ONNXRUNTIME_LIBRARY : asked;
        if (path.empty()) throw BenchError("ONNX Runtime was not there at build time. Pass --onnxruntime_library.");
        void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle == nullptr) throw BenchError(std::string("ONNX Runtime can't be opened: ") + ::dlerror());
        using GetBase = const ort::ApiBase* (*)();
        const auto get_base = reinterpret_cast<GetBase>(::dlsym(handle, "OrtGetApiBase"));
        if (get_base == nullptr) throw BenchError(path + ": no ONNX Runtime library (OrtGetApiBase is missing).");
        version_ = get_base()->GetVersionString();
        api_ = get_base()->GetApi(ort::kApiVersion);
        if (api_ == nullptr) throw BenchError(path + ": ONNX Runtime " + version_ + " has no C interface 1.");
    }

    const ort::Api& api() const { return *api_; }
    const std::string& version() const { return version_; }

    // Throws BenchError "WHAT: first line of the status" unless the call went well.
    void check(ort::Status* status, const std::string& what) const {
        if (status == nullptr) return;
        std::string message = api_->GetErrorMessage(status);
        api_->ReleaseStatus(status);
        throw BenchError(what + ": " + message.substr(0, std::min<size_t>(message.find('\n'), 300)));
    }

private:
    const ort::Api* api_ = nullptr;
    std::string version_;
};

Element element_of(int type) {
    if (type == ort::kFloat) return Element::f32;
    if (type == ort::kInt64) return Element::i64;
    return type == ort::kInt32 ? Element::i32 : Element::other;
}

std::vector<int64_t> shape_of(const Library& library, const ort::TensorInfo* info) {
    size_t rank = 0;
    library.check(library.api().GetDimensionsCount(info, &rank), "shape");
    std::vector<int64_t> shape(rank);
    library.check(library.api().GetDimensions(info, shape.data(), rank), "shape");
    return shape;
}

Element type_of(const Library& library, const ort::TensorInfo* info) {
    int type = 0;
    library.check(library.api().GetTensorElementType(info, &type), "type");
    return element_of(type);
}

// A loaded model; sessions are opened one for each run in flight, so that each has its share of threads.
class Session {
public:
    Session(const Library& library, const ort::Env* env, const Options& options)
        : library_(library), session_(nullptr, library.api().ReleaseSession) {
        const ort::Api& api = library.api();
        ort::SessionOptions* settings = nullptr;
        library.check(api.CreateSessionOptions(&settings), "ONNX Runtime");
        const Owned<ort::SessionOptions> owner(settings, api.ReleaseSessionOptions);
        const auto threads = std::max<int64_t>(1, options.num_threads / options.streams);
        library.check(api.SetIntraOpNumThreads(settings, static_cast<int>(threads)), "ONNX Runtime");
        library.check(api.SetSessionLogSeverityLevel(settings, ort::kError), "ONNX Runtime");
        ort::Session* session = nullptr;
        library.check(api.CreateSession(env, options.infer_model.c_str(), settings, &session),
                      options.infer_model + ": ONNX Runtime can't load it");
        session_.reset(session);
        library.check(api.GetAllocatorWithDefaultOptions(&allocator_), "ONNX Runtime");
    }

    ort::Session* get() const { return session_.get(); }

    std::vector<Port> inputs() const {
        size_t count = 0;
        library_.check(library_.api().SessionGetInputCount(session_.get(), &count), "inputs");
        std::vector<Port> ports;
        for (size_t i = 0; i < count; ++i) ports.push_back(input(i));
        return ports;
    }

    std::vector<std::string> output_names() const {
        size_t count = 0;
        library_.check(library_.api().SessionGetOutputCount(session_.get(), &count), "outputs");
        std::vector<std::string> names;
        for (size_t i = 0; i < count; ++i) names.push_back(name(library_.api().SessionGetOutputName, i));
        return names;
    }

private:
    template <typename Getter>
    std::string name(Getter getter, size_t index) const {
        char* text = nullptr;
        library_.check(getter(session_.get(), index, allocator_, &text), "name");
        std::string copy = text;
        library_.check(library_.api().AllocatorFree(allocator_, text), "name");
        return copy;
    }

    Port input(size_t index) const {
        const ort::Api& api = library_.api();
        ort::TypeInfo* type = nullptr;
        library_.check(api.SessionGetInputTypeInfo(session_.get(), index, &type), "inputs");
        const Owned<ort::TypeInfo> owner(type, api.ReleaseTypeInfo);
        const ort::TensorInfo* tensor = nullptr;
        library_.check(api.CastTypeInfoToTensorInfo(type, &tensor), "inputs");
        Port port{name(api.SessionGetInputName, index), {}, Element::other};
        if (tensor == nullptr) return port;  // a sequence or a map
        port.shape = shape_of(library_, tensor);
        port.type = type_of(library_, tensor);
        return port;
    }

    const Library& library_;
    Owned<ort::Session> session_;
    ort::Allocator* allocator_ = nullptr;
};

class OnnxRuntimeRequest : public Request {
public:
    OnnxRuntimeRequest(const Library& library, const ort::Env* env, const Options& options, Inputs inputs)
        : library_(library), session_(library, env, options), inputs_(inputs), ports_(session_.inputs()),
          names_(session_.output_names()), memory_(nullptr, library.api().ReleaseMemoryInfo) {
        ort::MemoryInfo* memory = nullptr;
        library.check(library.api().CreateCpuMemoryInfo(ort::kArenaAllocator, ort::kDefaultMemory, &memory), "memory");
        memory_.reset(memory);
        for (const auto& port : ports_) input_names_.push_back(port.name.c_str());
        for (const auto& name : names_) output_names_.push_back(name.c_str());
    }

    void load(const Batch& batch, const std::vector<int64_t>& image_shape) override {
        const auto shape = batch_shape(batch.count, image_shape);
        pixels_.assign(batch.pixels, batch.pixels + volume(shape));
        values_.clear();
        values_.push_back(tensor(pixels_.data(), 4 * pixels_.size(), shape, ort::kFloat));
        if (inputs_.label >= 0) load_labels(batch.labels);
    }

    void infer() override {
        results_.clear();
        std::vector<const ort::Value*> inputs;
        for (const auto& value : values_) inputs.push_back(value.get());
        std::vector<ort::Value*> outputs(names_.size(), nullptr);
        auto* status = library_.api().Run(session_.get(), nullptr, input_names_.data(), inputs.data(), inputs.size(),
                                          output_names_.data(), output_names_.size(), outputs.data());
        for (auto* output : outputs) results_.emplace_back(output, library_.api().ReleaseValue);
        library_.check(status, "ONNX Runtime refused the input");
    }

    std::vector<Output> outputs() const override {
        std::vector<Output> made;
        for (size_t i = 0; i < names_.size(); ++i) made.push_back(output(names_[i], results_[i].get()));
        return made;
    }

private:
    Owned<ort::Value> tensor(void* data, size_t bytes, const std::vector<int64_t>& shape, int type) const {
        ort::Value* value = nullptr;
        library_.check(library_.api().CreateTensorWithDataAsOrtValue(memory_.get(), data, bytes, shape.data(),
                                                                     shape.size(), type, &value), "input");
        return {value, library_.api().ReleaseValue};
    }

    void load_labels(const std::vector<int64_t>& labels) {
        const Port& port = ports_[static_cast<size_t>(inputs_.label)];
        const auto shape = label_shape(static_cast<int64_t>(labels.size()), port);
        wide_labels_ = labels;
        narrow_labels_.assign(labels.begin(), labels.end());
        const bool wide = port.type == Element::i64;
        auto value = wide ? tensor(wide_labels_.data(), 8 * labels.size(), shape, ort::kInt64)
                          : tensor(narrow_labels_.data(), 4 * labels.size(), shape, ort::kInt32);
        values_.insert(values_.begin() + inputs_.label, std::move(value));
    }

    Output output(const std::string& name, ort::Value* value) const {
        ort::TensorInfo* info = nullptr;
        library_.check(library_.api().GetTensorTypeAndShape(value, &info), "output '" + name + "'");
        const Owned<ort::TensorInfo> owner(info, library_.api().ReleaseTensorInfo);
        Output made{name, shape_of(library_, info), {}};
        void* data = nullptr;
        library_.check(library_.api().GetTensorMutableData(value, &data), "output '" + name + "'");
        const auto count = static_cast<size_t>(volume(made.shape));
        switch (type_of(library_, info)) {
            case Element::f32: append(static_cast<const float*>(data), count, made.values); break;
            case Element::i32: append(static_cast<const int32_t*>(data), count, made.values); break;
            case Element::i64: append(static_cast<const int64_t*>(data), count, made.values); break;
            case Element::other:
                throw BenchError("output '" + name + "' is neither float32, int32 nor int64; it can't be read.");
        }
        return made;
    }

    template <typename T>
    static void append(const T* data, size_t count, std::vector<float>& values) {
        values.assign(data, data + count);
    }

    const Library& library_;
    Session session_;
    Inputs inputs_;
    std::vector<Port> ports_;
    std::vector<std::string> names_;
    Owned<ort::MemoryInfo> memory_;
    std::vector<const char*> input_names_, output_names_;
    std::vector<float> pixels_;
    std::vector<int64_t> wide_labels_;
    std::vector<int32_t> narrow_labels_;
    std::vector<Owned<ort::Value>> values_, results_;
};

class OnnxRuntimeRunner : public Runner {
public:
    explicit OnnxRuntimeRunner(const Options& options)
        : options_(options), library_(options.onnxruntime_library), env_(nullptr, library_.api().ReleaseEnv) {
        if (options.precision == "bf16") throw BenchError("ONNX Runtime CPU has no bf16 mode; use --precision f32.");
        if (!std::filesystem::is_regular_file(options.infer_model)) {
            throw BenchError(options.infer_model + ": no such file.");
        }
        ort::Env* env = nullptr;
        library_.check(library_.api().CreateEnv(ort::kError, "quantrim_bench", &env), "ONNX Runtime");
        env_.reset(env);
        const auto ports = Session(library_, env, options).inputs();
        inputs_ = choose_inputs(ports, options.with_accuracy_layer, options.infer_model);
        image_ = ports[inputs_.image];
    }

    const Port& image_input() const override { return image_; }
    std::string version() const override { return library_.version(); }
    std::string precision() const override { return options_.precision == "file" ? "f32" : options_.precision; }
    std::unique_ptr<Request> request() override {
        return std::make_unique<OnnxRuntimeRequest>(library_, env_.get(), options_, inputs_);
    }
    std::vector<LayerRun> profile(const Batch&, const std::vector<int64_t>&) override {
        throw BenchError("--profile works on OpenVINO; for ONNX Runtime use: quantrim inspect --engine onnxruntime.");
    }

private:
    Options options_;
    Library library_;
    Owned<ort::Env> env_;
    Inputs inputs_;
    Port image_;
};

}  // namespace

std::unique_ptr<Runner> open_onnxruntime(const Options& options) {
    return std::make_unique<OnnxRuntimeRunner>(options);
}

}  // namespace quantrim
