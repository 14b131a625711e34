// Where images come from: a binary file that is mapped, not read, or random numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace quantrim {

// Some images in a row. `pixels` is float32 [count, C, H, W]; `labels` is empty where there are none.
struct Batch {
    int64_t count = 0;
    const float* pixels = nullptr;
    std::vector<int64_t> labels;
};

class ImageSource {
public:
    virtual ~ImageSource() = default;
    virtual int64_t size() const = 0;
    virtual bool has_labels() const = 0;
    // Images start..start+count-1; they stay valid as long as the source.
    virtual Batch batch(int64_t start, int64_t count) const = 0;
};

// The binary format: little-endian int64 N; N x float32 [C, H, W]; N x int64 labels.
// Throws BenchError where the file's size does not fit N images of `values` numbers.
std::unique_ptr<ImageSource> open_data_file(const std::string& path, const std::vector<int64_t>& image_shape);

// `size` images of standard-normal numbers, always the same ones, without labels.
std::unique_ptr<ImageSource> random_images(int64_t size, const std::vector<int64_t>& image_shape);

// "3x224x224", "?" where a size is negative.
std::string spell(const std::vector<int64_t>& shape);

// Product of the sizes.
int64_t volume(const std::vector<int64_t>& shape);

}  // namespace quantrim
