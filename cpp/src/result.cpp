#include "result.hpp"

#include <cmath>
#include <cstdio>
#include <map>
#include <sstream>

#include "machine.hpp"

namespace quantrim {
namespace {

std::string fixed(double value, int digits) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", digits, value);
    return text;
}

// Bytes of the UTF-8 character that begins at a place; 0 where none does (RFC 3629, section 4).
size_t character_at(const std::string& text, size_t at) {
    const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
    const unsigned first = byte(at), second = byte(at + 1);
    if (first < 0x80) return 1;
    const size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4) return 0;
    if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F)) return 0;  // too long; surrogates
    if ((first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) return 0;  // too long; too large
    for (size_t i = 1; i < length; ++i) {
        if ((byte(at + i) & 0xC0) != 0x80) return 0;
    }
    return length;
}

// A JSON string; paths and names of nodes may hold any bytes, and what is no UTF-8 becomes U+FFFD.
std::string quoted(const std::string& text) {
    std::string made = "\"";
    for (size_t at = 0; at < text.size();) {
        const size_t length = character_at(text, at);
        const char c = text[at];
        if (length == 0) {
            made += "\\ufffd";
        } else if (length == 1 && static_cast<unsigned char>(c) < 0x20) {
            char code[8];
            std::snprintf(code, sizeof code, "\\u%04x", c);
            made += code;
        } else {
            if (c == '"' || c == '\\') made += '\\';
            made += text.substr(at, length);
        }
        at += length == 0 ? 1 : length;
    }
    return made + "\"";
}

std::string number(double value) {
    if (!std::isfinite(value)) return "null";  // JSON has no NaN
    char text[64];
    std::snprintf(text, sizeof text, "%.10g", value);
    return text;
}

std::string list(const std::vector<std::string>& words) {
    std::string made;
    for (const auto& word : words) made += (made.empty() ? "" : ", ") + quoted(word);
    return "[" + made + "]";
}

std::string latency_json(const Latency& l) {
    return "{\"median\": " + number(l.median) + ", \"mean\": " + number(l.mean) + ", \"p90\": " + number(l.p90) +
           ", \"std\": " + number(l.std) + ", \"p99\": " + number(l.p99) + ", \"min\": " + number(l.min) +
           ", \"max\": " + number(l.max) + "}";
}

std::string machine_json(const Options& options, const Result& result) {
    const Machine machine = describe_machine();
    return "{\"processor\": " + quoted(machine.processor) + ", \"cores\": " + std::to_string(machine.cores) +
           ", \"memory_gb\": " + number(machine.memory_gb) + ", \"flags\": " + list(machine.flags) +
           ", \"system\": " + quoted(machine.system) + ", \"versions\": {" + quoted(options.engine) + ": " +
           quoted(result.engine_version) + "}, \"date\": " + quoted(machine.date) + "}";
}

std::string layers_json(const std::vector<LayerRun>& layers) {
    std::string made;
    for (const auto& layer : layers) {
        made += std::string(made.empty() ? "" : ",") + "\n      {\"nodes\": " + list(layer.nodes) +
                ", \"kind\": " + quoted(layer.kind) + ", \"precision\": " + quoted(layer.precision) +
                ", \"kernel\": " + quoted(layer.kernel) + ", \"time_ms\": " + number(layer.time_ms) + "}";
    }
    return "[" + made + "\n    ]";
}

double share(double sum, int64_t images) { return images > 0 ? sum / static_cast<double>(images) : 0; }

void profile_text(std::ostringstream& text, const std::vector<LayerRun>& layers) {
    std::map<std::string, double> spent;
    text << "\n  time ms  precision  kind, kernel, nodes\n";
    for (const auto& layer : layers) {
        char head[64];
        std::snprintf(head, sizeof head, "%9.3f  %-9s  ", layer.time_ms, layer.precision.c_str());
        text << head << layer.kind << ", " << layer.kernel << ", " << (layer.nodes.empty() ? "-" : layer.nodes[0]);
        text << (layer.nodes.size() > 1 ? " and " + std::to_string(layer.nodes.size() - 1) + " more\n" : "\n");
        spent[layer.precision] += layer.time_ms;
    }
    for (const auto& [precision, time] : spent) text << precision << ": " << fixed(time, 3) << " ms in all\n";
}

}  // namespace

std::string as_text(const Options& options, const Result& result) {
    std::ostringstream text;
    const Latency& l = result.latency;
    text << options.infer_model << " on " << options.engine << " " << result.engine_version << ", "
         << result.precision << "\nthreads " << options.num_threads << ", streams " << options.streams
         << ", batch " << result.batch_size << " x " << spell(result.image_shape) << ", " << result.images
         << " images in " << result.batches << " batches, repeat " << options.repeat << ", warm-up "
         << options.warmup_size << "\n";
    text << "latency of a batch, ms: median " << fixed(l.median, 3) << ", mean " << fixed(l.mean, 3) << ", p90 "
         << fixed(l.p90, 3) << ", p99 " << fixed(l.p99, 3) << ", std " << fixed(l.std, 3) << ", min "
         << fixed(l.min, 3) << ", max " << fixed(l.max, 3) << " (" << result.runs << " runs)\n";
    text << "images/s: " << fixed(result.throughput, 2) << "\n";
    if (result.accuracy) {
        const Accuracy& a = *result.accuracy;
        text << "top-1 " << fixed(100 * share(a.top1, a.images), 2) << " %, top-5 "
             << fixed(100 * share(a.top5, a.images), 2) << " % of " << a.images << " images\n";
    } else {
        text << "no accuracy: " << result.no_accuracy << "\n";
    }
    if (!result.layers.empty()) profile_text(text, result.layers);
    return text.str();
}

std::string as_json(const Options& options, const Result& result) {
    std::ostringstream text;
    text << "[\n  {\n    \"model\": " << quoted(options.infer_model) << ",\n    \"engine\": " << quoted(options.engine)
         << ",\n    \"precision\": " << quoted(result.precision) << ",\n    \"threads\": " << options.num_threads
         << ",\n    \"streams\": " << options.streams << ",\n    \"batch_size\": " << result.batch_size
         << ",\n    \"latency_ms\": " << latency_json(result.latency) << ",\n    \"throughput\": "
         << number(result.throughput) << ",\n    \"runs\": " << result.runs << ",\n    \"images\": " << result.images;
    for (const char* key : {"top1", "top5"}) {
        text << ",\n    \"" << key << "\": ";
        if (result.accuracy) {
            const Accuracy& a = *result.accuracy;
            text << number(share(std::string(key) == "top1" ? a.top1 : a.top5, a.images));
        } else {
            text << "null";
        }
    }
    if (!result.layers.empty()) text << ",\n    \"layers\": " << layers_json(result.layers);
    text << ",\n    \"machine\": " << machine_json(options, result) << "\n  }\n]\n";
    return text.str();
}

}  // namespace quantrim
