#include "machine.hpp"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <ctime>
#include <fstream>
#include <sstream>

namespace quantrim {
namespace {

// First value of a key of /proc/cpuinfo; empty where there is none.
std::string cpuinfo(const std::string& key) {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        const size_t colon = line.find(':');
        if (line.rfind(key, 0) == 0 && colon != std::string::npos && colon + 2 <= line.size()) {
            return line.substr(colon + 2);
        }
    }
    return "";
}

std::vector<std::string> int8_flags() {
    static const std::array<std::string, 7> telling = {"avx2",        "avx512f",  "avx_vnni", "avx512_vnni",
                                                       "avx512_bf16", "amx_int8", "amx_bf16"};
    const std::string present = " " + cpuinfo("flags") + " ";
    std::vector<std::string> found;
    for (const auto& flag : telling) {
        if (present.find(" " + flag + " ") != std::string::npos) found.push_back(flag);
    }
    return found;
}

std::string today() {
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    gmtime_r(&now, &utc);
    char text[11];
    std::strftime(text, sizeof text, "%Y-%m-%d", &utc);
    return text;
}

int64_t usable_cores() {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
}

}  // namespace

Machine describe_machine() {
    utsname names{};
    uname(&names);
    const double bytes = static_cast<double>(sysconf(_SC_PAGE_SIZE)) * static_cast<double>(sysconf(_SC_PHYS_PAGES));
    Machine machine;
    machine.processor = cpuinfo("model name").empty() ? names.machine : cpuinfo("model name");
    machine.system = std::string(names.sysname) + " " + names.release + ", C++";
    machine.date = today();
    machine.cores = usable_cores();
    machine.memory_gb = std::round(bytes / 1e8) / 10;
    machine.flags = int8_flags();
    return machine;
}

}  // namespace quantrim
