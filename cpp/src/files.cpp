#include "files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "errors.hpp"

namespace quantrim {
namespace {

constexpr mode_t kMode = 0666;  // less the umask

std::string folder_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

}  // namespace

// A file without a name is gone with its process, however that ends. Where the file system has none (O_TMPFILE),
// there is a name from the beginning.
AtomicFile::AtomicFile(const std::string& path)
    : path_(path), temporary_(path + "." + std::to_string(::getpid()) + ".part") {
    file_ = ::open(folder_of(path).c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, kMode);
    if (file_ < 0) {
        file_ = ::open(temporary_.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, kMode);
        named_ = file_ >= 0;
    }
    if (file_ < 0) fail("Choose a writable folder.");
}

AtomicFile::~AtomicFile() {
    if (file_ >= 0) ::close(file_);
    if (named_) std::remove(temporary_.c_str());
}

void AtomicFile::write_at(int64_t offset, const void* data, int64_t bytes) {
    const char* rest = static_cast<const char*>(data);
    while (bytes > 0) {
        const ssize_t written = ::pwrite(file_, rest, static_cast<size_t>(std::min<int64_t>(bytes, 1 << 30)), offset);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) fail("Is the disk full?");
        rest += written;
        offset += written;
        bytes -= written;
    }
}

void AtomicFile::commit() {
    if (!named_) {  // a link can't replace a file, a renaming can
        const std::string self = "/proc/self/fd/" + std::to_string(file_);
        std::remove(temporary_.c_str());
        named_ = ::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, temporary_.c_str(), AT_SYMLINK_FOLLOW) == 0;
        if (!named_) fail("Choose another folder.");
    }
    const int closed = ::close(file_);
    file_ = -1;
    if (closed != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) fail("Is the disk full?");
    named_ = false;
}

void AtomicFile::fail(const char* hint) const {
    throw BenchError(path_ + ": can't be written (" + std::strerror(errno) + "). " + hint);
}

}  // namespace quantrim
