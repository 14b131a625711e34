// What a user sees when something is wrong: one line that says what, where, and how to mend it.
#pragma once

#include <stdexcept>

namespace quantrim {

// The command line is wrong; exit code 2.
struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A file, a model or an engine is at fault; exit code 1.
struct BenchError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace quantrim
