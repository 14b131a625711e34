// What deploy.yaml says of a file: the same deploy.yaml that `quantrim infer` and `quantrim serve` read.
#pragma once

#include <string>

namespace quantrim {

struct Deploy {
    std::string model;      // the file, beside deploy.yaml; empty where it does not say
    std::string precision;  // of layers that are not INT8; empty where it does not say
    std::string task;
};

// Reads the scalars of the mapping `Deploy`, which quantrim writes one a line; lists below it (transforms,
// classes) are passed over: the data are prepared already. Throws BenchError.
Deploy read_deploy(const std::string& path);

}  // namespace quantrim
