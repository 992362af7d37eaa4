// From metadata to a Config, and the limits on it. base_config() reads what most architectures share and refuses by
// name what a file asks for and nobody here computes; validate() checks a finished Config alone, whatever made it.
#include "models/config.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "models/arch.h"
#include "models/checkpoint.h"

namespace infer {
namespace {

/// Reads keys below one prefix.
class Keys {
 public:
  Keys(const Checkpoint& checkpoint, const std::string& arch) : checkpoint_(checkpoint), prefix_(arch + ".") {}

  std::string name(const char* key) const { return prefix_ + key; }
  int64_t require(const char* key, int64_t min, int64_t max) const { return checkpoint_.get_int(name(key), min, max); }
  int64_t integer(const char* key, int64_t min, int64_t max, int64_t absent) const {
    return checkpoint_.find_int(name(key), min, max).value_or(absent);
  }
  double number(const char* key, double min, double max, double absent) const {
    return checkpoint_.find_float(name(key), min, max).value_or(absent);
  }

  /// A number that a file may also give as one per layer; layers that differ from each other are refused.
  std::optional<int64_t> per_layer(const char* key, int64_t n_layers, int64_t min, int64_t max) const {
    const auto it = checkpoint_.metadata.find(name(key));
    if (it == checkpoint_.metadata.end()) return std::nullopt;
    const Value::Data& data = it->second.data;
    if (std::holds_alternative<bool>(data) || std::holds_alternative<int64_t>(data) ||
        std::holds_alternative<uint64_t>(data) || std::holds_alternative<double>(data) ||
        std::holds_alternative<std::string>(data)) {
      return checkpoint_.find_int(name(key), min, max);
    }
    const std::vector<int64_t> values = *checkpoint_.find_ints(name(key), n_layers, min, max);
    for (int64_t value : values) {
      if (value != values[0]) {
        checkpoint_.refuse(name(key), "layers of different shapes are not supported", it->second.text(),
                           "the same number for all layers");
      }
    }
    return values.at(0);
  }

 private:
  const Checkpoint& checkpoint_;
  std::string prefix_;
};

/// Features that change the result and have no code: refused whenever a file asks for them.
void refuse_unsupported(const Checkpoint& c, const Keys& keys) {
  for (const char* key : {"expert_count", "expert_used_count"}) {
    const int64_t count = keys.integer(key, 0, INT64_MAX, 0);
    if (count > 0)
      c.refuse(keys.name(key), "mixture of experts is not supported", std::to_string(count), "absent or 0");
  }
  if (!c.find_bool(keys.name("attention.causal")).value_or(true)) {
    c.refuse(keys.name("attention.causal"), "attention that sees the future is not supported", "false", "true");
  }
}

void read_sizes(const Checkpoint& c, const Keys& keys, Config& config) {
  config.n_layers = keys.require("block_count", 1, kMaxLayers);
  config.n_ctx_train = keys.require("context_length", 1, kMaxContext);
  config.dim = keys.require("embedding_length", 1, kMaxWidth);
  const auto required = [&](const char* key, int64_t max) {
    const auto value = keys.per_layer(key, config.n_layers, 1, max);
    return value ? *value : keys.require(key, 1, max);
  };
  config.ffn_dim = required("feed_forward_length", kMaxWidth);
  config.n_heads = required("attention.head_count", kMaxHeads);
  config.n_kv_heads =
      keys.per_layer("attention.head_count_kv", config.n_layers, 1, config.n_heads).value_or(config.n_heads);
  config.head_dim = keys.integer("attention.key_length", 1, kMaxHeadDim, 0);
  if (config.head_dim == 0) {
    if (config.dim % config.n_heads != 0) {
      c.refuse(keys.name("attention.head_count"), "does not divide the embedding length " + std::to_string(config.dim),
               std::to_string(config.n_heads), "a divisor, or attention.key_length in the file");
    }
    config.head_dim = config.dim / config.n_heads;
  }
  const int64_t value_length = keys.integer("attention.value_length", 1, kMaxHeadDim, config.head_dim);
  if (value_length != config.head_dim) {
    c.refuse(keys.name("attention.value_length"), "keys and values of different sizes are not supported",
             std::to_string(value_length), std::to_string(config.head_dim));
  }
}

int64_t read_vocab(const Checkpoint& c) {
  const HostTensor* embed = c.find_tensor("token_embd.weight");
  if (!embed) c.refuse("token_embd.weight", "required tensor is missing; its rows are the vocabulary");
  if (embed->dims.size() != 2 || embed->dims[0] < 1 || embed->dims[0] > kMaxVocab) {
    c.refuse("token_embd.weight", "unusable shape",
             std::to_string(embed->dims.size()) + " dimensions, " +
                 std::to_string(embed->dims.empty() ? 0 : embed->dims[0]) + " rows",
             "2 dimensions, up to " + std::to_string(kMaxVocab) + " rows");
  }
  return embed->dims[0];
}

/// Divisors that Llama 3.x files carry as a tensor, the same for all layers.
std::vector<float> read_divisors(const Checkpoint& c, const HostTensor& tensor, int64_t rope_dim) {
  if (tensor.dtype != DType::F32 || tensor.dims != std::vector<int64_t>{rope_dim / 2} ||
      tensor.bytes != static_cast<size_t>(rope_dim / 2) * sizeof(float)) {
    c.refuse(tensor.name, "unusable rope divisors", std::to_string(tensor.n_elements()) + " numbers",
             "F32 [" + std::to_string(rope_dim / 2) + "], half the rotated dimensions");
  }
  std::vector<float> out(static_cast<size_t>(rope_dim / 2));
  std::copy_n(tensor.data, tensor.bytes, reinterpret_cast<std::byte*>(out.data()));
  return out;
}

void read_scaling(const Checkpoint& c, const Keys& keys, const Config& config, RopeConfig& rope) {
  const std::string type_key = keys.name("rope.scaling.type");
  // Files from before the type had a key were all linear; the oldest of them call the factor scale_linear.
  const double old_factor = keys.number("rope.scale_linear", kMinRopeFactor, kMaxRopeFactor, 1);
  const double factor = keys.number("rope.scaling.factor", kMinRopeFactor, kMaxRopeFactor, old_factor);
  const int64_t original = keys.integer("rope.scaling.original_context_length", 1, kMaxContext, config.n_ctx_train);
  const std::string type = c.find_string(type_key).value_or(factor == 1 ? "none" : "linear");
  rope.attn_factor = keys.number("rope.scaling.attn_factor", 1e-3, 1e3, 1);
  if (type == "none") return;
  if (type == "linear") {
    rope.scaling = RopeScaling::linear;
    rope.factor = factor;
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::yarn;
    rope.factor = c.get_float(keys.name("rope.scaling.factor"), kMinRopeFactor, kMaxRopeFactor);
    rope.original_context = original;
    rope.ext_factor = keys.number("rope.scaling.yarn_ext_factor", 0, 1, 1);
    rope.attn_factor = keys.number("rope.scaling.yarn_attn_factor", 1e-3, 1e3, rope.attn_factor);
    rope.beta_fast = keys.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32);
    rope.beta_slow = keys.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1);
    // A key of ours: only Hugging Face folders say it.
    rope.whole_pairs = c.find_bool(keys.name("rope.scaling.yarn_truncate")).value_or(true);
  } else if (type == "llama3") {
    const double low = c.get_float(keys.name("rope.scaling.low_freq_factor"), 1e-3, 1e6);
    const double high = c.get_float(keys.name("rope.scaling.high_freq_factor"), 1e-3, 1e6);
    if (low >= high) c.refuse(type_key, "low_freq_factor is not below high_freq_factor", std::to_string(low));
    if (rope.divisors.empty()) {
      rope.divisors = llama3_divisors(rope.dim, rope.base, factor, low, high, static_cast<double>(original));
    }
  } else {
    c.refuse(type_key, "unknown rope scaling", '"' + escaped(type) + '"', "none, linear, yarn, llama3");
  }
}

/// Throws for one field of a Config.
class Checker {
 public:
  explicit Checker(const std::string& path) : path_(path) {}

  void integer(const std::string& field, int64_t value, int64_t min, int64_t max) const {
    if (value < min || value > max) {
      fail(field, "out of range", std::to_string(value), std::to_string(min) + " to " + std::to_string(max));
    }
  }
  void number(const std::string& field, double value, double min, double max) const {
    if (!(value >= min && value <= max)) {  // NaN fails too
      fail(field, "out of range", text(value), text(min) + " to " + text(max));
    }
  }
  [[noreturn]] void fail(const std::string& field, const std::string& message, const std::string& found,
                         const std::string& allowed) const {
    throw Error(ErrorKind::bad_file, escaped(path_, 8192) + ": " + field, message, found, allowed);
  }

 private:
  static std::string text(double value) {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%g", value);
    return buffer;
  }

  std::string path_;
};

void validate_rope(const RopeConfig& rope, const std::string& name, int64_t head_dim, const Checker& check) {
  check.integer(name + ".dim", rope.dim, 2, head_dim);
  if (rope.dim % 2 != 0) check.fail(name + ".dim", "odd", std::to_string(rope.dim), "an even number");
  check.number(name + ".base", rope.base, kMinRopeBase, kMaxRopeBase);
  check.number(name + ".factor", rope.factor, kMinRopeFactor, kMaxRopeFactor);
  check.number(name + ".attn_factor", rope.attn_factor, 1e-3, 1e3);
  if (rope.scaling == RopeScaling::yarn) {
    check.integer(name + ".original_context", rope.original_context, 1, kMaxContext);
    check.number(name + ".ext_factor", rope.ext_factor, 0, 1);
    check.number(name + ".beta_fast", rope.beta_fast, 1e-3, 1e6);
    check.number(name + ".beta_slow", rope.beta_slow, 1e-3, 1e6);
    if (rope.base <= 1) check.fail(name + ".base", "too small for yarn", std::to_string(rope.base), "more than 1");
  }
  if (rope.divisors.empty()) return;
  const int64_t count = static_cast<int64_t>(rope.divisors.size());
  if (count != rope.dim / 2) {
    check.fail(name + ".divisors", "wrong count", std::to_string(count), std::to_string(rope.dim / 2));
  }
  for (float divisor : rope.divisors) check.number(name + ".divisors", divisor, kMinRopeFactor, kMaxRopeFactor);
}

}  // namespace

Config base_config(const Checkpoint& c) {
  Config config;
  config.arch = c.get_string("general.architecture");
  const Keys keys(c, config.arch);
  refuse_unsupported(c, keys);
  read_sizes(c, keys, config);
  config.vocab = read_vocab(c);
  keys.integer("vocab_size", 1, kMaxVocab,
               config.vocab);  // the rows of the embedding count, but no absurd claim passes
  config.norm_eps =
      static_cast<float>(c.get_float(keys.name("attention.layer_norm_rms_epsilon"), kMinNormEps, kMaxNormEps));
  config.attn_scale = static_cast<float>(
      keys.number("attention.scale", 1e-6, 1e6, 1 / std::sqrt(static_cast<double>(config.head_dim))));
  config.attn_softcap = static_cast<float>(keys.number("attn_logit_softcapping", kMinSoftcap, kMaxSoftcap, 0));
  config.logit_softcap = static_cast<float>(keys.number("final_logit_softcapping", kMinSoftcap, kMaxSoftcap, 0));

  RopeConfig rope;
  rope.dim = keys.integer("rope.dimension_count", 2, config.head_dim, config.head_dim);
  rope.base = keys.number("rope.freq_base", kMinRopeBase, kMaxRopeBase, 10000);
  if (const HostTensor* tensor = c.find_tensor("rope_freqs.weight"))
    rope.divisors = read_divisors(c, *tensor, rope.dim);
  read_scaling(c, keys, config, rope);
  config.ropes.push_back(std::move(rope));
  config.layers.resize(static_cast<size_t>(config.n_layers));
  return config;
}

void validate(const Config& config, const std::string& path) {
  const Checker check(path);
  check.integer("n_layers", config.n_layers, 1, kMaxLayers);
  check.integer("dim", config.dim, 1, kMaxWidth);
  check.integer("n_heads", config.n_heads, 1, kMaxHeads);
  check.integer("n_kv_heads", config.n_kv_heads, 1, config.n_heads);
  if (config.n_heads % config.n_kv_heads != 0) {
    check.fail("n_kv_heads", "does not divide the heads", std::to_string(config.n_kv_heads),
               "a divisor of " + std::to_string(config.n_heads));
  }
  check.integer("head_dim", config.head_dim, 1, kMaxHeadDim);
  check.integer("ffn_dim", config.ffn_dim, 1, kMaxWidth);
  check.integer("vocab", config.vocab, 1, kMaxVocab);
  check.integer("n_ctx_train", config.n_ctx_train, 1, kMaxContext);
  check.number("norm_eps", config.norm_eps, kMinNormEps, kMaxNormEps);
  for (const auto& [field, value] : {std::pair("embed_scale", config.embed_scale),
                                     {"attn_scale", config.attn_scale},
                                     {"residual_scale", config.residual_scale},
                                     {"logit_scale", config.logit_scale}}) {
    check.number(field, value, 1e-6, 1e6);
  }
  for (const auto& [field, value] :
       {std::pair("attn_softcap", config.attn_softcap), {"logit_softcap", config.logit_softcap}}) {
    if (value != 0) check.number(field, value, kMinSoftcap, kMaxSoftcap);
  }
  for (size_t i = 0; i < config.ropes.size(); ++i) {
    validate_rope(config.ropes[i], "ropes[" + std::to_string(i) + "]", config.head_dim, check);
  }
  check.integer("layers", static_cast<int64_t>(config.layers.size()), config.n_layers, config.n_layers);
  for (const LayerConfig& layer : config.layers) {
    check.integer("window", layer.window, 0, INT32_MAX);
    check.integer("rope", layer.rope, -1, static_cast<int64_t>(config.ropes.size()) - 1);
  }
}

}  // namespace infer
