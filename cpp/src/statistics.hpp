// Statistics of timed runs, equal to those of `quantrim bench`.
#pragma once

#include <vector>

namespace quantrim {

struct Latency {
    double median = 0, mean = 0, p90 = 0, p99 = 0, std = 0, min = 0, max = 0;  // milliseconds
};

// Value below which `percent` of the values lie, interpolated linearly as numpy.percentile does.
// `sorted` is ascending and not empty.
double percentile(const std::vector<double>& sorted, double percent);

// Statistics of at least one duration; `std` is that of the population.
Latency latency_of(std::vector<double> milliseconds);

}  // namespace quantrim
