// The measurement: batches through an engine, timed, judged, and where asked written down.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "accuracy.hpp"
#include "options.hpp"
#include "runner.hpp"
#include "statistics.hpp"

namespace quantrim {

struct Result {
    std::string engine_version;
    std::string precision;  // of the layers that are not INT8
    std::vector<int64_t> image_shape;
    int64_t batch_size = 0;
    int64_t batches = 0;
    int64_t images = 0;   // images seen, each once
    int64_t runs = 0;     // timed runs of a full batch, of which `latency` speaks
    Latency latency;
    double throughput = 0;  // images per second of inference, partial batches included
    std::optional<Accuracy> accuracy;
    std::string no_accuracy;  // why there is none
    std::vector<LayerRun> layers;
};

// Throws BenchError.
Result run_benchmark(const Options& options);

}  // namespace quantrim
