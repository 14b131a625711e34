#include "options.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <sstream>

#include "deploy.hpp"
#include "errors.hpp"

namespace quantrim {
namespace {

struct Option {
    std::string name;
    std::string value;  // placeholder in the help; empty for a switch
    std::string help;
    std::function<void(Options&, const std::string&)> set;
};

int64_t number(const std::string& name, const std::string& text, int64_t least) {
    try {
        size_t used = 0;
        const int64_t value = std::stoll(text, &used);
        if (used == text.size() && value >= least && value <= std::numeric_limits<int32_t>::max()) return value;
    } catch (const std::logic_error&) {  // not a number, or out of range: told below
    }
    throw UsageError("--" + name + " '" + text + "' is no whole number of at least " + std::to_string(least) + ".");
}

bool is_boolean(const std::string& text) {
    static const std::vector<std::string> words = {"true", "false", "1", "0", "yes", "no"};
    return std::find(words.begin(), words.end(), text) != words.end();
}

bool boolean(const std::string& name, const std::string& text) {
    if (!is_boolean(text)) throw UsageError("--" + name + " '" + text + "'; legal: true, false.");
    return text == "true" || text == "1" || text == "yes";
}

std::string one_of(const std::string& name, const std::string& text, const std::vector<std::string>& legal) {
    if (std::find(legal.begin(), legal.end(), text) != legal.end()) return text;
    std::string list;
    for (const auto& word : legal) list += (list.empty() ? "" : ", ") + word;
    throw UsageError("--" + name + " '" + text + "'; legal: " + list + ".");
}

std::vector<int64_t> shape(const std::string& name, std::string text) {
    std::replace(text.begin(), text.end(), 'x', ',');
    std::vector<int64_t> sizes;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) sizes.push_back(number(name, part, 1));
    if (sizes.empty()) throw UsageError("--" + name + " is empty; give sizes such as 3,224,224.");
    return sizes;
}

Option text_option(const char* name, const char* value, const char* help, std::string Options::*field) {
    return {name, value, help, [field](Options& o, const std::string& text) { o.*field = text; }};
}

Option number_option(const char* name, const char* help, int64_t Options::*field, int64_t least) {
    return {name, "N", help, [=](Options& o, const std::string& text) { o.*field = number(name, text, least); }};
}

Option switch_option(const char* name, const char* help, bool Options::*field) {
    return {name, "", help, [=](Options& o, const std::string& text) { o.*field = boolean(name, text); }};
}

Option word_option(const char* name, const char* help, std::string Options::*field, std::vector<std::string> legal) {
    return {name, "WORD", help,
            [=](Options& o, const std::string& text) { o.*field = one_of(name, text, legal); }};
}

const std::vector<Option>& table() {
    static const std::vector<Option> options = {
        text_option("infer_model", "FILE", ".onnx file, or .xml on OpenVINO.", &Options::infer_model),
        text_option("config", "FILE", "deploy.yaml that names the model and its precision, as for `quantrim infer`.",
                    &Options::config),
        text_option("infer_data", "FILE", "int64 N, N x float32[C,H,W], N x int64 labels; random images by default.",
                    &Options::infer_data),
        word_option("engine", "openvino or onnxruntime.", &Options::engine, {"openvino", "onnxruntime"}),
        number_option("batch_size", "Images a batch; the model's where it is fixed, else 50.",
                      &Options::batch_size, 1),
        number_option("iterations", "Batches to run; 0 for all.", &Options::iterations, 0),
        number_option("repeat", "Timed runs of every batch (1).", &Options::repeat, 1),
        number_option("warmup_size", "Untimed runs before the timed ones (0).", &Options::warmup_size, 0),
        number_option("num_threads", "CPU threads (1).", &Options::num_threads, 1),
        number_option("streams", "Batches in flight; above 1 measures throughput (1).", &Options::streams, 1),
        word_option("precision", "Of layers that are not INT8: f32, bf16, auto, or file: as it asks (file).",
                    &Options::precision, {"file", "f32", "bf16", "auto"}),
        {"input_shape", "C,H,W", "Shape of an image, where the model leaves it open.",
         [](Options& o, const std::string& text) { o.input_shape = shape("input_shape", text); }},
        switch_option("with_accuracy_layer", "The model takes labels and returns top-1 and top-5 (false).",
                      &Options::with_accuracy_layer),
        switch_option("profile", "Time and precision of every layer (OpenVINO).", &Options::profile),
        text_option("json", "FILE", "Write the result as JSON ('-': stdout).", &Options::json),
        text_option("dump_outputs", "FILE", "Write the first output of every image as float32.",
                    &Options::dump_outputs),
        text_option("onnxruntime_library", "FILE", "libonnxruntime.so to open; that of the build by default.",
                    &Options::onnxruntime_library),
        switch_option("help", "Print this.", &Options::help),
    };
    return options;
}

// The option that an argument names; `value` gets what follows "=" and `inline_value` tells whether it does.
const Option& find_option(const std::string& argument, std::string& value, bool& inline_value) {
    if (argument.rfind("--", 0) != 0) throw UsageError("'" + argument + "' is no option; see --help.");
    const size_t equals = argument.find('=');
    inline_value = equals != std::string::npos;
    value = inline_value ? argument.substr(equals + 1) : "";
    std::string name = argument.substr(2, inline_value ? equals - 2 : std::string::npos);
    std::replace(name.begin(), name.end(), '-', '_');
    for (const auto& option : table()) {
        if (option.name == name) return option;
    }
    throw UsageError("unknown option '--" + name + "'; see --help.");
}

// Of the precisions only bf16 is asked for by a deploy.yaml; a file's own request holds else.
void apply_deploy(Options& options) {
    const Deploy deploy = read_deploy(options.config);
    if (options.infer_model.empty()) options.infer_model = deploy.model;
    if (options.infer_model.empty()) {
        throw BenchError(options.config + ": Deploy.model is missing; give --infer_model, too.");
    }
    if (options.precision == "file" && deploy.precision == "bf16") options.precision = "bf16";
}

}  // namespace

Options parse_options(int count, const char* const* arguments) {
    Options options;
    for (int i = 1; i < count; ++i) {
        std::string value;
        bool inline_value = false;
        const Option& option = find_option(arguments[i], value, inline_value);
        const bool has_next = i + 1 < count;
        if (!inline_value && option.value.empty()) {
            value = has_next && is_boolean(arguments[i + 1]) ? arguments[++i] : "true";
        } else if (!inline_value) {
            if (!has_next) throw UsageError("--" + option.name + " needs a value.");
            value = arguments[++i];
        }
        option.set(options, value);
    }
    if (!options.help && !options.config.empty()) apply_deploy(options);
    if (!options.help && options.infer_model.empty()) throw UsageError("--infer_model or --config is missing; see --help.");
    return options;
}

std::string usage() {
    std::ostringstream text;
    text << "usage: quantrim_bench --infer_model FILE | --config deploy.yaml [--infer_data FILE] [options]\n\n"
            "Latency, images per second and accuracy of an image model.\n\n";
    for (const auto& option : table()) {
        std::string head = "  --" + option.name + (option.value.empty() ? "[=true|false]" : " " + option.value);
        head.resize(std::max<size_t>(head.size() + 2, 38), ' ');
        text << head << option.help << "\n";
    }
    return text.str();
}

}  // namespace quantrim
