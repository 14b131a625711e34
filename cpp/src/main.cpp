// quantrim_bench: speed and accuracy of an image model, measured without Python.
//
// Exit code 0: done; 1: failed, with one line that says why; 2: bad usage.
#include <iostream>

#include "benchmark.hpp"
#include "errors.hpp"
#include "files.hpp"
#include "options.hpp"
#include "result.hpp"

namespace {

void run(const quantrim::Options& options) {
    const auto result = quantrim::run_benchmark(options);
    // Text goes to stderr when stdout carries JSON.
    (options.json == "-" ? std::cerr : std::cout) << quantrim::as_text(options, result);
    const std::string json = quantrim::as_json(options, result);
    if (options.json == "-") {
        std::cout << json;
    } else if (!options.json.empty()) {
        quantrim::AtomicFile file(options.json);
        file.write_at(0, json.data(), static_cast<int64_t>(json.size()));
        file.commit();
    }
}

}  // namespace

int main(int count, char** arguments) {
    try {
        const auto options = quantrim::parse_options(count, arguments);
        if (options.help) std::cout << quantrim::usage();
        else run(options);
        return 0;
    } catch (const quantrim::UsageError& error) {
        std::cerr << "quantrim_bench: " << error.what() << "\n";
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "quantrim_bench: error: " << error.what() << "\n";
        return 1;
    }
}
