// Takes every file named on the command line as the arguments of quantrim_bench (each ends with a zero byte), and its
// bytes as names, shapes, scores and labels of a result. JSON goes to stdout, a line of its own behind each.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>

#include "../../cpp/src/errors.hpp"
#include "../../cpp/src/files.hpp"
#include "../../cpp/src/result.hpp"

namespace {

using namespace quantrim;

std::vector<std::string> words_of(const std::string& bytes) {
    std::vector<std::string> words = {""};
    for (const char c : bytes) {
        if (c == '\0') words.emplace_back();
        else words.back() += c;
    }
    return words;
}

std::vector<int64_t> numbers_of(const std::string& bytes) {
    std::vector<int64_t> numbers(std::min<size_t>(bytes.size() / 8, 6));
    if (!numbers.empty()) std::memcpy(numbers.data(), bytes.data(), 8 * numbers.size());
    return numbers;
}

Options options_of(const std::vector<std::string>& words) {
    std::vector<const char*> arguments = {"quantrim_bench"};
    for (const auto& word : words) arguments.push_back(word.c_str());
    return parse_options(static_cast<int>(arguments.size()), arguments.data());
}

Result result_of(const std::vector<std::string>& words, const std::vector<int64_t>& numbers, const std::string& bytes) {
    Result result;
    result.engine_version = words.front();
    result.precision = words.back();
    result.image_shape = numbers;
    result.latency = latency_of({1.0, static_cast<double>(bytes.size())});
    result.layers.push_back({words, words[0], words.back(), words[words.size() / 2], 0.5});
    result.layers.push_back({});
    Output output{words[0], {static_cast<int64_t>(numbers.size()), 2}, std::vector<float>(2 * numbers.size())};
    const size_t size = std::min(bytes.size(), 4 * output.values.size());
    if (size > 0) std::memcpy(output.values.data(), bytes.data(), size);
    if (classes_of(output, static_cast<int64_t>(numbers.size()))) result.accuracy = count_hits(output, numbers, 0);
    return result;
}

void touch(const std::vector<int64_t>& numbers) {
    const int64_t each = std::min<int64_t>(volume(numbers), 1 << 12);
    const auto source = random_images(numbers.empty() ? 1 : numbers[0], {std::max<int64_t>(each, 1)});
    source->batch(0, 1);
}

}  // namespace

int main(int count, char** paths) {
    int read = 0, refused = 0;
    for (int index = 1; index < count; ++index) {
        std::ifstream file(paths[index], std::ios::binary);
        const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        const auto words = words_of(bytes);
        const auto numbers = numbers_of(bytes);
        Options options;
        for (int part = 0; part < 4; ++part) {
            try {
                if (part == 0) options = options_of(words);
                if (part == 1) touch(numbers);
                if (part == 2) choose_inputs({{words[0], numbers, Element::f32}}, bytes.size() % 2 == 1, words.back());
                if (part == 3) {
                    const auto result = result_of(words, numbers, bytes);
                    options.infer_model = words.front();
                    const std::string json = as_json(options, result) + as_text(options, result).substr(0, 0);
                    AtomicFile whole(std::string(paths[index]) + ".json");
                    whole.write_at(0, json.data(), static_cast<int64_t>(json.size()));
                    whole.commit();
                }
                ++read;
            } catch (const BenchError&) {
                ++refused;
            } catch (const UsageError&) {
                ++refused;
            } catch (const std::bad_alloc&) {  // one line of main's, too
                ++refused;
            } catch (const std::length_error&) {
                ++refused;
            }
        }
    }
    std::printf("%d read, %d refused\n", read, refused);
    return 0;
}
