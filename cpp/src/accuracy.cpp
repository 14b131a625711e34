#include "accuracy.hpp"

#include <cmath>

#include "errors.hpp"

namespace quantrim {
namespace {

// Classes that come before `label` when sorted by falling score; a NaN score comes last.
int64_t rank_of(const float* scores, int64_t classes, int64_t label) {
    if (std::isnan(scores[label])) return classes;
    int64_t before = 0;
    for (int64_t i = 0; i < classes; ++i) {
        before += scores[i] > scores[label] || (scores[i] == scores[label] && i < label);
    }
    return before;
}

}  // namespace

void Accuracy::add(const Accuracy& other) {
    top1 += other.top1;
    top5 += other.top5;
    images += other.images;
}

std::optional<int64_t> classes_of(const Output& output, int64_t images) {
    if (output.shape.size() < 2 || output.shape[0] != images) return std::nullopt;
    const int64_t classes = output.shape[1];
    if (classes < 2 || volume(output.shape) != images * classes) return std::nullopt;
    return classes;
}

Accuracy count_hits(const Output& output, const std::vector<int64_t>& labels, int64_t first_image) {
    const int64_t classes = output.shape[1];
    Accuracy accuracy;
    for (size_t i = 0; i < labels.size(); ++i) {
        if (labels[i] < 0 || labels[i] >= classes) {
            throw BenchError("image " + std::to_string(first_image + static_cast<int64_t>(i)) + " has label " +
                             std::to_string(labels[i]) + ", but output '" + output.name + "' has " +
                             std::to_string(classes) + " classes. The data belong to another model.");
        }
        const int64_t rank = rank_of(output.values.data() + static_cast<int64_t>(i) * classes, classes, labels[i]);
        accuracy.top1 += rank < 1;
        accuracy.top5 += rank < 5;
    }
    accuracy.images = static_cast<int64_t>(labels.size());
    return accuracy;
}

Accuracy read_accuracy_layer(const std::vector<Output>& outputs, int64_t images) {
    std::vector<double> scalars;
    for (const auto& output : outputs) {
        if (output.values.size() == 1) scalars.push_back(output.values[0]);
    }
    if (scalars.size() < 2) {
        throw BenchError("--with_accuracy_layer: the model has " + std::to_string(scalars.size()) +
                         " outputs with a single value; top-1 and top-5 are needed.");
    }
    const auto weight = static_cast<double>(images);
    return {scalars[scalars.size() - 2] * weight, scalars.back() * weight, images};
}

}  // namespace quantrim
