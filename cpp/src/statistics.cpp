#include "statistics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace quantrim {

double percentile(const std::vector<double>& sorted, double percent) {
    const double position = percent / 100.0 * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<size_t>(position);
    const size_t above = std::min(below + 1, sorted.size() - 1);
    return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

Latency latency_of(std::vector<double> milliseconds) {
    std::sort(milliseconds.begin(), milliseconds.end());
    const auto count = static_cast<double>(milliseconds.size());
    Latency result;
    result.mean = std::accumulate(milliseconds.begin(), milliseconds.end(), 0.0) / count;
    double squares = 0;
    for (const double value : milliseconds) squares += (value - result.mean) * (value - result.mean);
    result.std = std::sqrt(squares / count);
    result.median = percentile(milliseconds, 50);
    result.p90 = percentile(milliseconds, 90);
    result.p99 = percentile(milliseconds, 99);
    result.min = milliseconds.front();
    result.max = milliseconds.back();
    return result;
}

}  // namespace quantrim
