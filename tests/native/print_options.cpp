// Prints what the native runner makes of its command line, for tests that need no engine.
#include <iostream>

#include "../../cpp/src/errors.hpp"
#include "../../cpp/src/options.hpp"

int main(int count, char** arguments) {
    try {
        const auto options = quantrim::parse_options(count, arguments);
        std::cout << options.infer_model << "\n" << options.precision << "\n";
        return 0;
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
}
