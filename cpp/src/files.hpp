// Files that are whole or not there at all: written without a name, or beside the target, then put in place.
#pragma once

#include <cstdint>
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
    [[noreturn]] void fail(const char* hint) const;

    std::string path_, temporary_;
    int file_ = -1;
    bool named_ = false;  // the temporary name is in the folder
};

}  // namespace quantrim
