// Reads every file named on the command line as images of 3x4x5 and of other shapes, touching all of their bytes.
#include <cstdio>
#include <exception>
#include <vector>

#include "../../cpp/src/data_file.hpp"
#include "../../cpp/src/errors.hpp"

int main(int count, char** paths) {
    const std::vector<std::vector<int64_t>> shapes = {
        {3, 4, 5}, {1}, {0}, {-1, 2, 1}, {2, -1, 1}, {1, -2}, {int64_t{1} << 40, int64_t{1} << 40}, {int64_t{1} << 61}};
    int read = 0, refused = 0;
    double sum = 0;
    for (int index = 1; index < count; ++index) {
        for (const auto& shape : shapes) {
            try {
                const auto source = quantrim::open_data_file(paths[index], shape);
                const auto batch = source->batch(0, source->size());
                const int64_t values = quantrim::volume(shape) * batch.count;
                for (int64_t at = 0; at < values; ++at) sum += batch.pixels[at];
                for (const int64_t label : batch.labels) sum += static_cast<double>(label);
                ++read;
            } catch (const quantrim::BenchError&) {
                ++refused;
            }
        }
    }
    std::printf("%d read, %d refused, sum %g\n", read, refused, sum);
    return 0;
}
