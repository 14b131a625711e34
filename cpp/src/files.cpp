#include "files.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "errors.hpp"

namespace quantrim {

AtomicFile::AtomicFile(const std::string& path)
    : path_(path), temporary_(path + "." + std::to_string(::getpid()) + ".part"),
      stream_(temporary_, std::ios::binary | std::ios::trunc) {
    if (!stream_) throw BenchError(path + ": can't be written (" + std::strerror(errno) + "). Choose a writable folder.");
}

AtomicFile::~AtomicFile() {
    stream_.close();
    std::remove(temporary_.c_str());  // gone already after a commit
}

void AtomicFile::write_at(int64_t offset, const void* data, int64_t bytes) {
    stream_.seekp(offset);
    stream_.write(static_cast<const char*>(data), bytes);
    if (!stream_) throw BenchError(path_ + ": can't be written (" + std::strerror(errno) + "). Is the disk full?");
}

void AtomicFile::commit() {
    stream_.close();
    if (!stream_ || std::rename(temporary_.c_str(), path_.c_str()) != 0) {
        throw BenchError(path_ + ": can't be written (" + std::strerror(errno) + ").");
    }
}

}  // namespace quantrim
