// Ropes of a config.json. The older form has rope_theta beside rope_scaling, the newer one rope_parameters with the
// theta inside, for Gemma 3 once for each kind of layer.
#include <cmath>

#include "infer/error.h"
#include "models/config.h"
#include "runtime/hf_config.h"

namespace infer {
namespace {

constexpr const char* kKnownTypes = "default, linear, dynamic, yarn, longrope, llama3";

std::string type_of(const JsonObject& scaling) {
  return scaling.find_string("rope_type").value_or(scaling.find_string("type").value_or("default"));
}

/// A number that stands in the scaling or, in older files, beside it.
std::optional<double> find_either(const JsonObject& scaling, const JsonObject& config, const char* key) {
  const auto inside = scaling.find_number(key);
  return inside ? inside : config.find_number(key);
}

void put_original_context(const JsonObject& scaling, const JsonObject& config, HfKeys& keys) {
  auto value = scaling.find_int("original_max_position_embeddings", 1, kMaxContext);
  if (!value) value = config.find_int("original_max_position_embeddings", 1, kMaxContext);
  if (value) keys.integer("rope.scaling.original_context_length", *value);
}

/// The library multiplies cos and sin by one factor; models/ expects it without the part that yarn always has.
void put_yarn(const JsonObject& scaling, HfKeys& keys) {
  const double factor = scaling.get_number("factor");
  const auto length = [&](double scale) { return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0; };
  const auto mscale = scaling.find_number("mscale"), all = scaling.find_number("mscale_all_dim");
  std::optional<double> wanted = scaling.find_number("attention_factor");
  if (!wanted && mscale && all && *mscale != 0 && *all != 0) wanted = length(*mscale) / length(*all);
  if (wanted) keys.number("rope.scaling.yarn_attn_factor", *wanted / length(1));
  keys.number("rope.scaling.yarn_beta_fast", scaling.find_number("beta_fast").value_or(32));
  keys.number("rope.scaling.yarn_beta_slow", scaling.find_number("beta_slow").value_or(1));
  if (!scaling.find_bool("truncate").value_or(true)) keys.boolean("rope.scaling.yarn_truncate", false);
}

HfVector factors(const JsonObject& scaling, const char* key, const char* name, int64_t rope_dim) {
  const Json::array_t* list = scaling.find_array(key);
  if (!list) scaling.refuse(key, "required key is missing");
  if (list->size() != static_cast<size_t>(rope_dim / 2))
    scaling.refuse(key, "wrong length", std::to_string(list->size()), std::to_string(rope_dim / 2));
  HfVector out{name, {}};
  for (const Json& factor : *list) {
    if (!factor.is_number() || !(factor.get<double>() >= kMinRopeFactor && factor.get<double>() <= kMaxRopeFactor))
      scaling.refuse(key, "unusable factor", json_text(factor), "a number above 0");
    out.values.push_back(factor.get<float>());
  }
  return out;
}

void put_longrope(const JsonObject& scaling, const JsonObject& config, int64_t rope_dim, HfKeys& keys, HfConfig& out) {
  out.vectors.push_back(factors(scaling, "short_factor", "rope_factors_short.weight", rope_dim));
  out.vectors.push_back(factors(scaling, "long_factor", "rope_factors_long.weight", rope_dim));
  if (const auto factor = scaling.find_number("attention_factor")) {
    keys.number("rope.scaling.attn_factor", *factor);
    return;
  }
  auto original = scaling.find_int("original_max_position_embeddings", 1, kMaxContext);
  if (!original) original = config.find_int("original_max_position_embeddings", 1, kMaxContext);
  if (!original) config.refuse("original_max_position_embeddings", "required key is missing");
  const auto longest = static_cast<double>(config.get_int("max_position_embeddings", 1, kMaxContext));
  const double stretch = scaling.find_number("factor").value_or(longest / static_cast<double>(*original));
  const double length =
      *original > 1 && stretch > 1 ? std::sqrt(1 + std::log(stretch) / std::log(static_cast<double>(*original))) : 1.0;
  keys.number("rope.scaling.attn_factor", length);
}

void put_scaling(const JsonObject& scaling, const JsonObject& config, int64_t rope_dim, HfKeys& keys, HfConfig& out) {
  const std::string type = type_of(scaling);
  if (type == "default") return;
  put_original_context(scaling, config, keys);
  keys.string("rope.scaling.type", type == "su" ? "longrope" : type);
  if (type == "longrope" || type == "su") return put_longrope(scaling, config, rope_dim, keys, out);
  if (type != "linear" && type != "dynamic" && type != "yarn" && type != "llama3")
    scaling.refuse("rope_type", "unsupported rope scaling", '"' + escaped(type) + '"', kKnownTypes);
  keys.number("rope.scaling.factor", scaling.get_number("factor"));
  if (type == "yarn") put_yarn(scaling, keys);
  if (type == "llama3") {
    keys.number("rope.scaling.low_freq_factor", scaling.get_number("low_freq_factor"));
    keys.number("rope.scaling.high_freq_factor", scaling.get_number("high_freq_factor"));
  }
}

}  // namespace

void translate_rope(const JsonObject& config, int64_t head_dim, double absent_theta, HfKeys& keys, HfConfig& out) {
  static const Json kNothing = Json::object();
  const auto old_form = config.find_object("rope_scaling"), new_form = config.find_object("rope_parameters");
  JsonObject scaling = new_form ? *new_form : old_form ? *old_form : JsonObject(kNothing, config.where("rope_scaling"));
  // One for each kind of layer: the windowed ones have a theta of their own and no scaling.
  std::optional<double> local_theta = config.find_number("rope_local_base_freq");
  if (const auto local = scaling.find_object("sliding_attention")) {
    if (const std::string type = type_of(*local); type != "default")
      local->refuse("rope_type", "scaling in layers with a window is not supported", '"' + escaped(type) + '"',
                    "default");
    local_theta = local->get_number("rope_theta");
    const auto global = scaling.find_object("full_attention");
    if (!global) scaling.refuse("full_attention", "required key is missing");
    scaling = *global;
  }
  const auto theta = find_either(scaling, config, "rope_theta");
  keys.number("rope.freq_base", theta.value_or(absent_theta));
  if (local_theta) keys.number("rope.freq_base_swa", *local_theta);
  const double partial = find_either(scaling, config, "partial_rotary_factor").value_or(1);
  if (!(partial > 0 && partial <= 1))
    config.refuse("partial_rotary_factor", "out of range", std::to_string(partial), "above 0, at most 1");
  const auto rope_dim = static_cast<int64_t>(partial * static_cast<double>(head_dim));
  keys.integer("rope.dimension_count", rope_dim);
  put_scaling(scaling, config, rope_dim, keys, out);
}

}  // namespace infer
