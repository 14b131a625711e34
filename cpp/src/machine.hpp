// What made a figure: the same description as Python's quantrim.engines.machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace quantrim {

struct Machine {
    std::string processor, system, date;
    int64_t cores = 0;
    double memory_gb = 0;
    std::vector<std::string> flags;  // the CPU's INT8 and BF16 features
};

Machine describe_machine();

}  // namespace quantrim
