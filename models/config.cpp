// From metadata to a Config, and the limits on it. base_config() reads what most architectures share and refuses by
// name what a file asks for and nobody here computes; validate() checks a finished Config alone, whatever made it.
#include "models/config.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "models/arch.h"
#include "models/checkpoint.h"
#include "models/keys.h"
#include "models/rope_config.h"

namespace infer {
namespace {

/// Features that change the result and have no code: refused whenever a file asks for them.
void refuse_unsupported(const Checkpoint& c, const Keys& keys) {
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
  const bool yarn = rope.scaling == RopeScaling::yarn, dynamic = rope.scaling == RopeScaling::dynamic;
  if (yarn || dynamic || !rope.long_divisors.empty()) {
    check.integer(name + ".original_context", rope.original_context, 1, kMaxContext);
  }
  if (yarn) {
    check.number(name + ".ext_factor", rope.ext_factor, 0, 1);
    check.number(name + ".beta_fast", rope.beta_fast, 1e-3, 1e6);
    check.number(name + ".beta_slow", rope.beta_slow, 1e-3, 1e6);
    if (rope.base <= 1) check.fail(name + ".base", "too small for yarn", std::to_string(rope.base), "more than 1");
  }
  if (dynamic) {
    check.number(name + ".factor", rope.factor, 1, kMaxRopeFactor);
    check.integer(name + ".dim", rope.dim, 4, head_dim);
  }
  for (const std::vector<float>* divisors : {&rope.divisors, &rope.long_divisors}) {
    const int64_t count = static_cast<int64_t>(divisors->size());
    if (count != 0 && count != rope.dim / 2) {
      check.fail(name + ".divisors", "wrong count", std::to_string(count), std::to_string(rope.dim / 2));
    }
    for (float divisor : *divisors) check.number(name + ".divisors", divisor, kMinRopeFactor, kMaxRopeFactor);
  }
}

void validate_experts(const ExpertsConfig& experts, const std::vector<LayerConfig>& layers, const Checker& check) {
  const auto sparse = std::count_if(layers.begin(), layers.end(), [](const LayerConfig& l) { return l.experts; });
  check.integer("n_experts", experts.n_experts, sparse > 0 ? 1 : 0, sparse > 0 ? kMaxExperts : 0);
  if (sparse == 0) return;
  check.integer("n_active", experts.n_active, 1, experts.n_experts);
  check.integer("expert_dim", experts.expert_dim, 1, kMaxWidth);
  check.integer("shared_dim", experts.shared_dim, 0, kMaxWidth);
  check.number("experts.scale", experts.scale, 1e-6, kMaxExpertScale);
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
  config.attn_softcap = static_cast<float>(keys.number("attn_logit_softcapping", 0, kMaxSoftcap, 0));
  config.logit_softcap = static_cast<float>(keys.number("final_logit_softcapping", 0, kMaxSoftcap, 0));

  config.ropes.push_back(read_rope(c, config));
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
  validate_experts(config.experts, config.layers, check);
}

void read_windows(const Checkpoint& c, int64_t absent_window, int64_t absent_pattern, Config& config) {
  const Keys keys(c, config.arch);
  const int64_t window = keys.integer("attention.sliding_window", 0, INT32_MAX, absent_window);
  const auto windowed = keys.layer_flags("attention.sliding_window_pattern", config.n_layers, absent_pattern);
  for (size_t i = 0; i < config.layers.size(); ++i) config.layers[i].window = windowed[i] ? window : 0;
}

}  // namespace infer
