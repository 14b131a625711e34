#include "runner.hpp"

#include <algorithm>

#include "errors.hpp"

namespace quantrim {

Inputs choose_inputs(const std::vector<Port>& ports, bool with_accuracy_layer, const std::string& model) {
    const auto is_image = [](const Port& port) { return port.type == Element::f32 && port.shape.size() >= 2; };
    const auto is_label = [](const Port& port) { return port.type == Element::i64 || port.type == Element::i32; };
    if (ports.size() == 1 && is_image(ports[0]) && !with_accuracy_layer) return {};
    if (ports.size() == 2 && with_accuracy_layer) {
        if (is_image(ports[0]) && is_label(ports[1])) return {0, 1};
        if (is_label(ports[0]) && is_image(ports[1])) return {1, 0};
    }
    std::string found;
    for (const auto& port : ports) found += (found.empty() ? "'" : ", '") + port.name + "' " + spell(port.shape);
    throw BenchError(model + ": one float32 image input" +
                     (with_accuracy_layer ? " and one integer label input are" : " is") + " needed, it has " + found +
                     (with_accuracy_layer ? ". Leave out --with_accuracy_layer where labels are no input."
                                          : ". Pass --with_accuracy_layer where labels are an input."));
}

std::vector<int64_t> batch_shape(int64_t count, const std::vector<int64_t>& image_shape) {
    std::vector<int64_t> shape = {count};
    shape.insert(shape.end(), image_shape.begin(), image_shape.end());
    return shape;
}

std::vector<int64_t> label_shape(int64_t count, const Port& port) {
    std::vector<int64_t> shape(std::max<size_t>(port.shape.size(), 1), 1);
    shape[0] = count;
    return shape;
}

}  // namespace quantrim
