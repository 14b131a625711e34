#include "data_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>

#include "errors.hpp"

namespace quantrim {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the data format is little endian");
static_assert(sizeof(float) == 4, "the data format holds 32-bit floats");

constexpr int64_t kHead = 8;
// Numbers of an image: more would not fit any file, and their bytes not an int64.
constexpr int64_t kMostValues = int64_t{1} << 56;

// A whole file mapped for reading.
class Mapping {
public:
    explicit Mapping(const std::string& path) {
        const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe must not make us wait
        if (file < 0) throw BenchError(path + ": can't be read (" + std::strerror(errno) + ").");
        struct stat status {};
        const bool regular = ::fstat(file, &status) == 0 && S_ISREG(status.st_mode);
        size_ = regular ? status.st_size : 0;
        if (size_ > 0) data_ = ::mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_PRIVATE, file, 0);
        const int error = errno;
        ::close(file);
        if (!regular || size_ < kHead) throw BenchError(path + ": no binary data file, or an empty one.");
        if (data_ == MAP_FAILED) throw BenchError(path + ": can't be mapped (" + std::strerror(error) + ").");
        ::madvise(data_, static_cast<size_t>(size_), MADV_SEQUENTIAL);  // advice: failing costs time alone
    }
    ~Mapping() {
        if (data_ != nullptr && data_ != MAP_FAILED) ::munmap(data_, static_cast<size_t>(size_));
    }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    int64_t size() const { return size_; }
    const char* at(int64_t offset) const { return static_cast<const char*>(data_) + offset; }

private:
    void* data_ = nullptr;
    int64_t size_ = 0;
};

class DataFile : public ImageSource {
public:
    DataFile(const std::string& path, const std::vector<int64_t>& image_shape)
        : mapping_(path), values_(volume(image_shape)) {
        std::memcpy(&size_, mapping_.at(0), sizeof size_);
        if (values_ < 1 || values_ > kMostValues) {
            throw BenchError(path + ": images of " + spell(image_shape) + " can't be read. See --input_shape.");
        }
        const int64_t each = 4 * values_ + 8;
        if (size_ < 1 || size_ != (mapping_.size() - kHead) / each || (mapping_.size() - kHead) % each != 0) {
            throw BenchError(path + ": " + std::to_string(mapping_.size()) + " bytes are not " +
                             std::to_string(size_) + " images of " + spell(image_shape) + " (" +
                             std::to_string(each) + " bytes each with the label, after a head of 8). The file " +
                             "is truncated, or its images have another shape: see --input_shape.");
        }
    }

    int64_t size() const override { return size_; }
    bool has_labels() const override { return true; }

    Batch batch(int64_t start, int64_t count) const override {
        Batch batch;
        batch.count = count;
        batch.pixels = reinterpret_cast<const float*>(mapping_.at(kHead + 4 * values_ * start));
        batch.labels.resize(static_cast<size_t>(count));
        // Labels may stand at an address that is no multiple of 8: copy, don't cast.
        std::memcpy(batch.labels.data(), mapping_.at(kHead + 4 * values_ * size_ + 8 * start),
                    8 * static_cast<size_t>(count));
        return batch;
    }

private:
    Mapping mapping_;
    int64_t values_;
    int64_t size_ = 0;
};

class RandomImages : public ImageSource {
public:
    RandomImages(int64_t size, int64_t values)
        : size_(size), values_(values), pixels_(static_cast<size_t>(volume({size, values}))) {
        std::mt19937 generator(0);
        std::normal_distribution<float> normal;
        for (float& pixel : pixels_) pixel = normal(generator);
    }

    int64_t size() const override { return size_; }
    bool has_labels() const override { return false; }
    Batch batch(int64_t start, int64_t count) const override {
        return {count, pixels_.data() + start * values_, {}};
    }

private:
    int64_t size_, values_;
    std::vector<float> pixels_;
};

}  // namespace

std::unique_ptr<ImageSource> open_data_file(const std::string& path, const std::vector<int64_t>& image_shape) {
    return std::make_unique<DataFile>(path, image_shape);
}

std::unique_ptr<ImageSource> random_images(int64_t size, const std::vector<int64_t>& image_shape) {
    return std::make_unique<RandomImages>(size, volume(image_shape));
}

std::string spell(const std::vector<int64_t>& shape) {
    std::string text;
    for (const int64_t size : shape) text += (text.empty() ? "" : "x") + (size < 0 ? "?" : std::to_string(size));
    return text;
}

int64_t volume(const std::vector<int64_t>& shape) {
    int64_t product = 1;
    for (const int64_t size : shape) {
        if (__builtin_mul_overflow(product, size, &product)) throw BenchError("shape " + spell(shape) + " is too large.");
    }
    return product;
}

}  // namespace quantrim
