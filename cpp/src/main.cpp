// quantrim_bench: speed and accuracy of an image model, measured without Python.
//
// Exit code 0: done; 1: failed, with one line that says why; 2: bad usage.
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>

#include "benchmark.hpp"
#include "errors.hpp"
#include "files.hpp"
#include "options.hpp"
#include "result.hpp"

namespace {

// An engine may loop for ever on a damaged file: QUANTRIM_TIME_LIMIT, seconds, ends the process in one line, as it
// does the verbs of `quantrim`. Files that are not finished have no name and go with it.
void limit_time() {
    const char* text = std::getenv("QUANTRIM_TIME_LIMIT");
    if (text == nullptr || *text == '\0') return;
    char* end = nullptr;
    const double seconds = std::strtod(text, &end);
    if (*end != '\0' || !(seconds > 0 && seconds < 1e9)) {
        throw quantrim::UsageError("QUANTRIM_TIME_LIMIT is '" + std::string(text) + "'; it must be a positive number.");
    }
    std::signal(SIGALRM, [](int) {
        constexpr char kWords[] = "quantrim_bench: error: no end within QUANTRIM_TIME_LIMIT.\n";
        const auto told = ::write(STDERR_FILENO, kWords, sizeof kWords - 1);
        ::_exit(told < 0 ? 70 : 1);
    });
    ::alarm(static_cast<unsigned>(seconds < 1 ? 1 : seconds));
}

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
        limit_time();
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
