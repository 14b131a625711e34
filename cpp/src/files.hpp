// Files that are whole or not there at all: written beside the target, then renamed.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

namespace quantrim {

class AtomicFile {
public:
    // Throws BenchError where the folder can't be written.
    explicit AtomicFile(const std::string& path);
    // Removes what was written unless it was committed.
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    void write_at(int64_t offset, const void* data, int64_t bytes);
    void commit();

private:
    std::string path_, temporary_;
    std::ofstream stream_;
};

}  // namespace quantrim
