// What every engine offers to the benchmark.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data_file.hpp"
#include "options.hpp"

namespace quantrim {

enum class Element { f32, i32, i64, other };

// An input or output of a model; -1 where an axis is dynamic.
struct Port {
    std::string name;
    std::vector<int64_t> shape;
    Element type = Element::other;
};

// An output of one run, as float32 whatever its type was.
struct Output {
    std::string name;
    std::vector<int64_t> shape;
    std::vector<float> values;
};

// How an engine executed one of its layers.
struct LayerRun {
    std::vector<std::string> nodes;  // nodes of the file that it stands for
    std::string kind;
    std::string precision;
    std::string kernel;
    double time_ms = 0;
};

// One run in flight; requests of a runner may run at the same time, each in its own thread.
class Request {
public:
    virtual ~Request() = default;
    // Copies a batch in. Labels are fed only where the runner was opened with an accuracy layer.
    virtual void load(const Batch& batch, const std::vector<int64_t>& image_shape) = 0;
    // The call that is timed.
    virtual void infer() = 0;
    virtual std::vector<Output> outputs() const = 0;
};

class Runner {
public:
    virtual ~Runner() = default;
    virtual const Port& image_input() const = 0;
    virtual std::string version() const = 0;
    // Of the layers that are not INT8, where it was chosen: f32, bf16 or auto.
    virtual std::string precision() const = 0;
    virtual std::unique_ptr<Request> request() = 0;
    // Layers with the times of one run after a warm-up, measured apart from everything else.
    virtual std::vector<LayerRun> profile(const Batch& batch, const std::vector<int64_t>& image_shape) = 0;
};

// Both throw BenchError where the engine can't load the model.
std::unique_ptr<Runner> open_openvino(const Options& options);
std::unique_ptr<Runner> open_onnxruntime(const Options& options);

// The float image input, and the integer label input where the model has an accuracy layer (else -1).
struct Inputs {
    size_t image = 0;
    int label = -1;
};

// Throws BenchError where the inputs are not one float image, with an integer label if so asked.
Inputs choose_inputs(const std::vector<Port>& ports, bool with_accuracy_layer, const std::string& model);

// Shape of a batch: its count, then the image's; a label input gets ones behind the count.
std::vector<int64_t> batch_shape(int64_t count, const std::vector<int64_t>& image_shape);
std::vector<int64_t> label_shape(int64_t count, const Port& port);

}  // namespace quantrim
