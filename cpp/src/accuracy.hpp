// Top-1 and top-5, every image weighing the same.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runner.hpp"

namespace quantrim {

struct Accuracy {
    double top1 = 0, top5 = 0;  // sums over images; divided by `images` they are shares
    int64_t images = 0;

    void add(const Accuracy& other);
};

// Number of classes where an output holds one score a class and image, else nothing.
std::optional<int64_t> classes_of(const Output& output, int64_t images);

// Rank of each label among the scores, equal scores in order of class.
// Throws BenchError where a label is no class of the model.
Accuracy count_hits(const Output& output, const std::vector<int64_t>& labels, int64_t first_image);

// Accuracy that the model computed itself: its last two outputs with a single value, top-1 and top-5.
// Throws BenchError where it has none.
Accuracy read_accuracy_layer(const std::vector<Output>& outputs, int64_t images);

}  // namespace quantrim
