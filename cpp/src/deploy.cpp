#include "deploy.hpp"

#include <fstream>
#include <map>

#include "errors.hpp"

namespace quantrim {
namespace {

constexpr std::streamsize kLongest = 1 << 17;  // as the Python reader: larger is no configuration

std::string stripped(const std::string& text) {
    const size_t first = text.find_first_not_of(" \t\r");
    return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

// A scalar without quotes and without the comment behind it; null is empty.
std::string scalar(const std::string& text, const std::string& where) {
    const std::string value = stripped(text);
    if (value.empty() || value[0] == '#') return "";
    if (value[0] == '\'' || value[0] == '"') {
        const size_t end = value.find(value[0], 1);
        if (end == std::string::npos) throw BenchError(where + ": a quote is not closed.");
        return value.substr(1, end - 1);
    }
    const std::string plain = stripped(value.substr(0, value.find(" #")));
    return plain == "null" || plain == "~" ? "" : plain;
}

// Keys and scalars one level below `Deploy:`.
std::map<std::string, std::string> section(std::istream& file, const std::string& path) {
    std::map<std::string, std::string> found;
    bool inside = false;
    size_t depth = 0;
    int64_t number = 0;
    for (std::string line; std::getline(file, line);) {
        const std::string where = path + ":" + std::to_string(++number);
        const std::string text = stripped(line);
        if (text.empty() || text[0] == '#') continue;
        const size_t indent = line.find_first_not_of(' ');
        if (indent == 0) {
            inside = text.rfind("Deploy:", 0) == 0;
            if (inside && !scalar(text.substr(7), where).empty()) {
                throw BenchError(where + ": Deploy is a mapping, one key a line.");
            }
            continue;
        }
        if (!inside) continue;
        if (depth == 0) depth = indent;
        const size_t colon = text.find(':');
        if (indent != depth || text[0] == '-' || colon == std::string::npos) continue;  // part of a list or mapping
        if (!found.emplace(text.substr(0, colon), scalar(text.substr(colon + 1), where)).second) {
            throw BenchError(where + ": " + text.substr(0, colon) + " stands twice.");
        }
    }
    if (depth == 0) throw BenchError(path + ": no section Deploy; is it the deploy.yaml of an export?");
    return found;
}

}  // namespace

Deploy read_deploy(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) throw BenchError(path + ": no such deploy.yaml.");
    if (file.tellg() > kLongest) throw BenchError(path + ": is larger than 128 kB, so it is no deploy.yaml.");
    file.seekg(0);
    auto keys = section(file, path);
    const size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "" : path.substr(0, slash + 1);
    Deploy found{keys["model"], keys["precision"], keys["task"]};
    if (!found.model.empty() && found.model[0] != '/') found.model = folder + found.model;
    return found;
}

}  // namespace quantrim
