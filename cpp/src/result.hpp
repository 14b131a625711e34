// The result as text for people and as JSON for machines.
#pragma once

#include <string>

#include "benchmark.hpp"
#include "options.hpp"

namespace quantrim {

std::string as_text(const Options& options, const Result& result);

// A list of one row with the keys of `quantrim bench --json`, and the accuracy.
std::string as_json(const Options& options, const Result& result);

}  // namespace quantrim
