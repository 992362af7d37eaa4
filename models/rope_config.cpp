// See rope_config.h. Tables of divisors belong to the model: no scaling that is chosen instead takes them away.
#include "models/rope_config.h"

#include <algorithm>
#include <cmath>

#include "models/keys.h"

namespace infer {
namespace {

/// Divisors that files carry as a tensor, the same for all layers.
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

/// longrope: one table for contexts up to the original one, another for longer ones.
void read_factors(const Checkpoint& c, const Keys& keys, const Config& config, RopeConfig& rope) {
  const auto table = [&](const char* name) {
    const HostTensor* tensor = c.find_tensor(name);
    if (!tensor) c.refuse(name, "required tensor is missing", "nothing, although the rope is longrope");
    return read_divisors(c, *tensor, rope.dim);
  };
  rope.divisors = table("rope_factors_short.weight");
  rope.long_divisors = table("rope_factors_long.weight");
  if (keys.has("rope.scaling.attn_factor") || rope.original_context <= 1) return;
  const double original = static_cast<double>(rope.original_context);
  const double stretch = static_cast<double>(config.n_ctx_train) / original;
  if (stretch > 1) rope.attn_factor = std::sqrt(1 + std::log(stretch) / std::log(original));
}

/// The divisors of Llama 3.x of a file that names their parameters instead of holding the table.
void make_llama3_divisors(const Checkpoint& c, const Keys& keys, double factor, RopeConfig& rope) {
  const double low = c.get_float(keys.name("rope.scaling.low_freq_factor"), 1e-3, 1e6);
  const double high = c.get_float(keys.name("rope.scaling.high_freq_factor"), 1e-3, 1e6);
  if (low >= high) {
    c.refuse(keys.name("rope.scaling.type"), "low_freq_factor is not below high_freq_factor", std::to_string(low));
  }
  if (!rope.divisors.empty()) return;
  const double original = static_cast<double>(rope.original_context);
  rope.divisors = llama3_divisors(rope.dim, rope.base, factor, low, high, original);
}

void read_scaling(const Checkpoint& c, const Keys& keys, const Config& config, RopeConfig& rope) {
  const std::string type_key = keys.name("rope.scaling.type");
  const bool has_factors = c.find_tensor("rope_factors_short.weight") || c.find_tensor("rope_factors_long.weight");
  // Files from before the type had a key were all linear; the oldest of them call the factor scale_linear.
  const double old_factor = keys.number("rope.scale_linear", kMinRopeFactor, kMaxRopeFactor, 1);
  const double factor = keys.number("rope.scaling.factor", kMinRopeFactor, kMaxRopeFactor, old_factor);
  const std::string untold = has_factors ? "longrope" : factor == 1 ? "none" : "linear";
  const std::string type = c.find_string(type_key).value_or(untold);
  rope.attn_factor = keys.number("rope.scaling.attn_factor", 1e-3, 1e3, 1);
  if (has_factors || type == "longrope") read_factors(c, keys, config, rope);
  if (type == "none" || type == "longrope") return;
  if (type == "llama3") return make_llama3_divisors(c, keys, factor, rope);
  if (type == "linear") {
    rope.scaling = RopeScaling::linear;
    rope.factor = factor;
  } else if (type == "yarn" || type == "dynamic") {
    rope.scaling = type == "yarn" ? RopeScaling::yarn : RopeScaling::dynamic;
    rope.factor = c.get_float(keys.name("rope.scaling.factor"), kMinRopeFactor, kMaxRopeFactor);
  } else {
    c.refuse(type_key, "unknown rope scaling", '"' + escaped(type) + '"',
             "none, linear, yarn, llama3, longrope, dynamic");
  }
}

/// What only yarn takes, from the file and then from the person. The factor on cos and sin counts in any case.
void read_yarn(const Checkpoint& c, const Keys& keys, RopeConfig& rope) {
  const auto either = [&](const char* ours, const char* theirs, double min, double max, double absent) {
    return c.find_float(ours, min, max).value_or(keys.number(theirs, min, max, absent));
  };
  const auto ext = c.find_float(kRopeExtKey, 0, 1);
  if (ext && *ext > 0 && rope.scaling == RopeScaling::linear) rope.scaling = RopeScaling::yarn;
  if (const auto attn = c.find_float(kRopeAttnKey, 1e-3, 1e3)) rope.attn_factor *= *attn;
  if (rope.scaling != RopeScaling::yarn) return;
  if (!c.has(kRopeAttnKey)) rope.attn_factor *= keys.number("rope.scaling.yarn_attn_factor", 1e-3, 1e3, 1);
  rope.ext_factor = either(kRopeExtKey, "rope.scaling.yarn_ext_factor", 0, 1, 1);
  rope.beta_fast = either(kRopeBetaFastKey, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32);
  rope.beta_slow = either(kRopeBetaSlowKey, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1);
  // A key of ours: only Hugging Face folders say it.
  rope.whole_pairs = c.find_bool(keys.name("rope.scaling.yarn_truncate")).value_or(true);
}

void replace_scaling(const Checkpoint& c, RopeConfig& rope) {
  const std::string type = c.find_string(kRopeScalingKey).value_or("");
  const auto factor = c.find_float(kRopeFactorKey, kMinRopeFactor, kMaxRopeFactor);
  if (factor) rope.factor = *factor;
  if (type == "none") {
    rope.scaling = RopeScaling::none;
    rope.factor = 1;
  } else if (type == "linear" || (type.empty() && factor && rope.scaling == RopeScaling::none)) {
    rope.scaling = RopeScaling::linear;
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::yarn;
  } else if (type == "dynamic") {
    rope.scaling = RopeScaling::dynamic;
  } else if (!type.empty()) {
    c.refuse(kRopeScalingKey, "unknown rope scaling", '"' + escaped(type) + '"', "none, linear, yarn, dynamic");
  }
  const bool has_original = rope.scaling == RopeScaling::yarn || rope.scaling == RopeScaling::dynamic;
  const auto original = c.find_int(kRopeOriginalKey, 1, kMaxContext);
  if (original && has_original) rope.original_context = *original;
}

}  // namespace

RopeConfig read_rope(const Checkpoint& c, const Config& config) {
  const Keys keys(c, config.arch);
  RopeConfig rope;
  rope.dim = keys.integer("rope.dimension_count", 2, config.head_dim, config.head_dim);
  rope.base = keys.number("rope.freq_base", kMinRopeBase, kMaxRopeBase, 10000);
  rope.original_context = keys.integer("rope.scaling.original_context_length", 1, kMaxContext, config.n_ctx_train);
  if (const HostTensor* tensor = c.find_tensor("rope_freqs.weight"))
    rope.divisors = read_divisors(c, *tensor, rope.dim);
  read_scaling(c, keys, config, rope);
  rope.base = c.find_float(kRopeBaseKey, kMinRopeBase, kMaxRopeBase).value_or(rope.base);
  replace_scaling(c, rope);
  read_yarn(c, keys, rope);
  return rope;
}

}  // namespace infer
