// ★ The table of model types. A row names the architecture whose reader takes it, the table of tensor names, the
// activation, and the function that translates what only its family has.
#include "runtime/hf_config.h"

#include <algorithm>
#include <cmath>

#include "infer/error.h"
#include "models/config.h"
#include "runtime/hf_quant.h"

namespace infer {
namespace {

constexpr int64_t kMaxExperts = 4096;

/// What a family's function works on.
struct Work {
  const JsonObject& config;
  HfKeys& keys;
  HfConfig& out;
  int64_t n_layers;
};

struct ModelType {
  const char* name;  ///< model_type
  const char* arch;
  const NameTable* names;
  const char* activation;  ///< the only one the family's reader computes
  bool halves;             ///< GGUF files of this architecture have q and k permuted, this one has not
  double theta;            ///< and the next: what the library takes for a config without the key
  bool tied;
  void (*translate)(const Work&);
};

/// Which layers have the window, by layer_types.
std::vector<bool> windowed_layers(const Work& w, const Json::array_t& types) {
  if (types.size() != static_cast<size_t>(w.n_layers))
    w.config.refuse("layer_types", "wrong length", std::to_string(types.size()), std::to_string(w.n_layers));
  std::vector<bool> out;
  for (const Json& type : types) {
    const bool windowed = type == "sliding_attention";
    if (!windowed && type != "full_attention")
      w.config.refuse("layer_types", "unknown layer type", json_text(type), "full_attention, sliding_attention");
    out.push_back(windowed);
  }
  return out;
}

/// The window, on the layers that layer_types names, else on those of `otherwise`.
void put_window(const Work& w, const std::vector<bool>& otherwise) {
  const auto window = w.config.find_int("sliding_window", 1, INT32_MAX);
  const Json::array_t* types = w.config.find_array("layer_types");
  const std::vector<bool> layers = types ? windowed_layers(w, *types) : otherwise;
  if (std::find(layers.begin(), layers.end(), true) == layers.end()) return;
  if (!window) {
    if (types) w.config.refuse("sliding_window", "required by layer_types, and missing");
    return;
  }
  w.keys.integer("attention.sliding_window", *window);
  if (std::find(layers.begin(), layers.end(), false) != layers.end())
    w.keys.flags("attention.sliding_window_pattern", layers);
}

std::vector<bool> all_layers(const Work& w) { return std::vector<bool>(static_cast<size_t>(w.n_layers), true); }

/// All but every n-th layer.
std::vector<bool> all_but_every(const Work& w, int64_t n) {
  std::vector<bool> out;
  for (int64_t i = 0; i < w.n_layers; ++i) out.push_back((i + 1) % n != 0);
  return out;
}

// Files of this family always say the window, 0 for none, and the original context.
void phi3(const Work& w) {
  w.keys.integer("attention.sliding_window", 0);
  put_window(w, all_layers(w));
  const auto original = w.config.find_int("original_max_position_embeddings", 1, kMaxContext);
  w.keys.integer("rope.scaling.original_context_length",
                 original ? *original : w.config.get_int("max_position_embeddings", 1, kMaxContext));
}

void put_experts(const Work& w, const char* count_key, bool sum_to_one) {
  w.out.rename.n_experts = w.config.get_int(count_key, 1, kMaxExperts);
  w.keys.integer("expert_count", w.out.rename.n_experts);
  w.keys.integer("expert_used_count", w.config.get_int("num_experts_per_tok", 1, w.out.rename.n_experts));
  w.keys.boolean("expert_weights_norm", sum_to_one);
}

void llama(const Work&) {}

void mistral(const Work& w) { put_window(w, all_layers(w)); }

void mixtral(const Work& w) {
  mistral(w);
  put_experts(w, "num_local_experts", true);
}

// The window of a config counts only where it is switched on, and from max_window_layers up.
void qwen(const Work& w) {
  if (!w.config.find_bool("use_sliding_window").value_or(false)) return;
  const int64_t first = w.config.find_int("max_window_layers", 0, INT32_MAX).value_or(28);
  std::vector<bool> layers;
  for (int64_t i = 0; i < w.n_layers; ++i) layers.push_back(i >= first);
  put_window(w, layers);
}

// Layers that decoder_sparse_step and mlp_only_layers leave without experts have no router, which tells them.
void qwen_moe(const Work& w) {
  qwen(w);
  put_experts(w, "num_experts", w.config.find_bool("norm_topk_prob").value_or(false));
  w.keys.integer("expert_feed_forward_length", w.config.get_int("moe_intermediate_size", 1, kMaxWidth));
  if (const auto shared = w.config.find_int("shared_expert_intermediate_size", 1, kMaxWidth))
    w.keys.integer("expert_shared_feed_forward_length", *shared);
}

void olmoe(const Work& w) {
  if (w.config.has("clip_qkv"))
    w.config.refuse("clip_qkv", "clipping of q, k and v is not supported", json_text(*w.config.find("clip_qkv")),
                    "null");
  put_experts(w, "num_experts", w.config.find_bool("norm_topk_prob").value_or(false));
}

void gpt_oss(const Work& w) {
  put_experts(w, "num_local_experts", true);
  w.keys.integer("expert_feed_forward_length", w.config.get_int("intermediate_size", 1, kMaxWidth));
  const double limit = w.config.find_number("swiglu_limit").value_or(7);
  if (limit != 7) w.config.refuse("swiglu_limit", "not supported", json_text(*w.config.find("swiglu_limit")), "7");
  put_window(w, all_but_every(w, 2));
}

void put_gemma_scales(const Work& w) {
  if (const auto scalar = w.config.find_number("query_pre_attn_scalar")) {
    if (*scalar <= 0) w.config.refuse("query_pre_attn_scalar", "out of range", std::to_string(*scalar), "above 0");
    w.keys.number("attention.scale", 1 / std::sqrt(*scalar));
  }
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"})
    if (const auto cap = w.config.find_number(key)) w.keys.number(key, *cap);
}

void gemma2(const Work& w) {
  put_gemma_scales(w);
  put_window(w, all_but_every(w, 2));
}

void gemma3(const Work& w) {
  put_gemma_scales(w);
  if (w.config.find_bool("use_bidirectional_attention").value_or(false))
    w.config.refuse("use_bidirectional_attention", "attention that sees the future is not supported", "true", "false");
  put_window(w, all_but_every(w, w.config.find_int("sliding_window_pattern", 1, kMaxLayers).value_or(6)));
}

// Layers without rope: a list in which 1 means rope, or every n-th.
void smollm3(const Work& w) {
  qwen(w);
  std::vector<bool> rotates;
  if (const Json::array_t* list = w.config.find_array("no_rope_layers")) {
    if (list->size() != static_cast<size_t>(w.n_layers))
      w.config.refuse("no_rope_layers", "wrong length", std::to_string(list->size()), std::to_string(w.n_layers));
    for (const Json& flag : *list) {
      if (flag != 0 && flag != 1) w.config.refuse("no_rope_layers", "unusable", json_text(flag), "0 or 1");
      rotates.push_back(flag == 1);
    }
  } else {
    rotates = all_but_every(w, w.config.find_int("no_rope_layer_interval", 1, kMaxLayers).value_or(4));
  }
  w.keys.flags("rope.layer_pattern", rotates);
}

void granite(const Work& w) {
  const auto factor = [&](const char* theirs, const char* ours) {
    w.keys.number(ours, w.config.find_number(theirs).value_or(1));
  };
  factor("embedding_multiplier", "embedding_scale");
  factor("attention_multiplier", "attention.scale");
  factor("residual_multiplier", "residual_scale");
  factor("logits_scaling", "logit_scale");
}

constexpr const char* kSilu = "silu";
constexpr const char* kGeluTanh = "gelu_pytorch_tanh";

constexpr ModelType kModelTypes[] = {
    {"llama", "llama", &kLlamaNames, kSilu, true, 10000, false, llama},
    {"mistral", "llama", &kLlamaNames, kSilu, true, 10000, false, mistral},
    {"mixtral", "llama", &kMixtralNames, kSilu, true, 1e6, false, mixtral},
    {"qwen2", "qwen2", &kLlamaNames, kSilu, false, 10000, false, qwen},
    {"qwen3", "qwen3", &kLlamaNames, kSilu, false, 10000, false, qwen},
    {"qwen2_moe", "qwen2moe", &kQwenMoeNames, kSilu, false, 10000, false, qwen_moe},
    {"qwen3_moe", "qwen3moe", &kQwenMoeNames, kSilu, false, 10000, false, qwen_moe},
    {"olmoe", "olmoe", &kQwenMoeNames, kSilu, false, 10000, false, olmoe},
    {"gpt_oss", "gpt-oss", &kGptOssNames, kSilu, false, 150000, false, gpt_oss},
    {"gemma2", "gemma2", &kGemmaNames, kGeluTanh, false, 10000, true, gemma2},
    {"gemma3_text", "gemma3", &kGemmaNames, kGeluTanh, false, 1e6, true, gemma3},
    {"phi3", "phi3", &kPhi3Names, kSilu, false, 10000, false, phi3},
    {"smollm3", "smollm3", &kLlamaNames, kSilu, true, 2e6, true, smollm3},
    {"granite", "granite", &kLlamaNames, kSilu, true, 10000, false, granite},
};

const ModelType& find_model_type(const JsonObject& config) {
  const std::string name = config.get_string("model_type");
  std::string known;
  for (const ModelType& type : kModelTypes) {
    if (name == type.name) return type;
    known += (known.empty() ? "" : ", ") + std::string(type.name);
  }
  config.refuse("model_type", "unsupported model type", '"' + escaped(name) + '"', known);
}

// Gemma's own key counts where it is there; the general one is a default of the library then.
void require_activation(const JsonObject& config, const ModelType& type) {
  const bool gelu = type.activation == kGeluTanh;
  const char* key = gelu ? "hidden_activation" : "hidden_act";
  const std::string found = config.find_string(key).value_or(type.activation);
  if (found != type.activation)
    config.refuse(key, "unsupported activation", '"' + escaped(found) + '"', type.activation);
}

void require_causal(const JsonObject& config) {
  const Json::array_t* list = config.find_array("architectures");
  if (!list) return;
  for (const Json& name : *list)
    if (!name.is_string() || !name.get_ref<const std::string&>().ends_with("ForCausalLM"))
      config.refuse("architectures", "not a model that continues text", json_text(name), "...ForCausalLM");
}

int64_t put_sizes(const JsonObject& config, HfKeys& keys) {
  const auto copy = [&](const char* theirs, const char* ours, int64_t max) {
    const int64_t value = config.get_int(theirs, 1, max);
    keys.integer(ours, value);
    return value;
  };
  copy("num_hidden_layers", "block_count", kMaxLayers);
  const int64_t dim = copy("hidden_size", "embedding_length", kMaxWidth);
  copy("intermediate_size", "feed_forward_length", kMaxWidth);
  copy("max_position_embeddings", "context_length", kMaxContext);
  copy("vocab_size", "vocab_size", kMaxVocab);
  const int64_t n_heads = copy("num_attention_heads", "attention.head_count", kMaxHeads);
  keys.integer("attention.head_count_kv", config.find_int("num_key_value_heads", 1, n_heads).value_or(n_heads));
  const auto head_dim = config.find_int("head_dim", 1, kMaxHeadDim);
  if (!head_dim && dim % n_heads != 0)
    config.refuse("num_attention_heads", "does not divide hidden_size, and there is no head_dim",
                  std::to_string(n_heads), "a divisor of " + std::to_string(dim));
  for (const char* key : {"attention.key_length", "attention.value_length"})
    keys.integer(key, head_dim.value_or(dim / n_heads));
  keys.number("attention.layer_norm_rms_epsilon", config.get_number("rms_norm_eps"));
  return head_dim.value_or(dim / n_heads);
}

}  // namespace

HfConfig translate_config(const JsonObject& config) {
  const ModelType& type = find_model_type(config);
  require_causal(config);
  require_activation(config, type);
  HfConfig out;
  out.quant = read_quantisation(config, type.name);
  out.names = type.names;
  out.metadata.emplace("general.architecture", Value{std::string(type.arch), "string"});
  HfKeys keys(type.arch, out.metadata);
  const int64_t head_dim = put_sizes(config, keys);
  if (type.halves) keys.boolean("rope.adjacent", false);
  translate_rope(config, head_dim, type.theta, keys, out);
  out.rename.n_layers = config.get_int("num_hidden_layers", 1, kMaxLayers);
  out.rename.tied = config.find_bool("tie_word_embeddings").value_or(type.tied);
  type.translate({config, keys, out, out.rename.n_layers});
  return out;
}

void translate_generation(const JsonObject& generation, Metadata& out) {
  const auto put = [&](const char* theirs, const char* ours) {
    if (const auto value = generation.find_number(theirs))
      out.insert_or_assign(std::string("general.sampling.") + ours, Value{*value, "f64"});
  };
  // Without sampling the author means the most likely token.
  if (generation.find_bool("do_sample") == false) {
    out.insert_or_assign("general.sampling.temp", Value{0.0, "f64"});
    return;
  }
  put("temperature", "temp");
  put("top_k", "top_k");
  put("top_p", "top_p");
  put("min_p", "min_p");
  put("typical_p", "typ_p");
  put("repetition_penalty", "penalty_repeat");
}

std::vector<int64_t> read_eos_ids(const JsonObject& config) {
  const Json* value = config.find("eos_token_id");
  if (!value) return {};
  if (!value->is_array()) return {config.get_int("eos_token_id", 0, kMaxVocab)};
  std::vector<int64_t> ids;
  for (const Json& id : *value) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > uint64_t{kMaxVocab} || ids.size() == 1024)
      config.refuse("eos_token_id", "unusable", json_text(id), "token ids");
    ids.push_back(id.get<int64_t>());
  }
  return ids;
}

}  // namespace infer
