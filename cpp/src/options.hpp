// Options of quantrim_bench.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace quantrim {

struct Options {
    std::string infer_model;
    std::string config;                 // deploy.yaml: names the model and its precision
    std::string infer_data;             // empty: random images
    std::string engine = "openvino";    // or "onnxruntime"
    std::string precision = "file";     // of layers that are not INT8: file (as it asks), f32, bf16 or auto
    std::vector<int64_t> input_shape;   // C,H,W (or N,C,H,W); empty: the model's
    int64_t batch_size = 0;             // 0: the model's where it is fixed, else 50
    int64_t iterations = 0;             // batches; 0: all
    int64_t repeat = 1;                 // timed runs of every batch
    int64_t warmup_size = 0;            // untimed runs before them
    int64_t num_threads = 1;
    int64_t streams = 1;                // batches in flight; above 1 measures throughput
    bool with_accuracy_layer = false;   // the model takes labels and returns top-1 and top-5 itself
    bool profile = false;
    std::string json;                   // "-": stdout
    std::string dump_outputs;
    std::string onnxruntime_library;
    bool help = false;
};

// Options of a command line. `--name value` and `--name=value` are one, and so are `_` and `-` in names.
// What --config says holds where an option does not say otherwise. Throws UsageError and BenchError.
Options parse_options(int count, const char* const* arguments);

// Text of --help.
std::string usage();

}  // namespace quantrim
