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

std::string quoted(const std::string& text) {
    std::string made = "\"";
    for (const unsigned char c : text) {
        if (c == '"' || c == '\\') made += '\\';
        if (c < 0x20) {
            char code[8];
            std::snprintf(code, sizeof code, "\\u%04x", c);
            made += code;
        } else {
            made += static_cast<char>(c);
        }
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
        text << head << layer.kind << ", " << layer.kernel << ", " << layer.nodes.front();
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
