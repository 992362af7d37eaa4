// See hf_families.h.
#include "tests/runtime/hf_families.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "runtime/gguf.h"
#include "tests/folder.h"
#include "tests/tiny_model.h"

namespace infer::test {
namespace {

using Json = nlohmann::ordered_json;
using Dims = std::vector<int64_t>;

constexpr int64_t kDim = 64, kHeads = 4, kKvHeads = 2, kLayers = 5, kFfn = 96, kExperts = 5, kExpertFfn = 32;

class Family {
 public:
  Family(const std::string& type, const Json& more, int64_t n_padding) : type_(type) {
    const Folder folder;
    write_tiny_model(folder / "m.gguf", {});
    files_ = hf_files(read_gguf(folder / "m.gguf"));
    files_.header = {}, files_.data.clear();
    rows_ = files_.config["vocab_size"].get<int64_t>() + n_padding;
    files_.config = {{"architectures", {"AnyForCausalLM"}},
                     {"model_type", type},
                     {"hidden_size", kDim},
                     {"num_hidden_layers", kLayers},
                     {"num_attention_heads", kHeads},
                     {"num_key_value_heads", kKvHeads},
                     {"intermediate_size", kFfn},
                     {"max_position_embeddings", 512},
                     {"vocab_size", rows_},
                     {"rope_theta", 20000.0},
                     {"rms_norm_eps", 1e-5},
                     {"tie_word_embeddings", gemma() || type == "smollm3"}};
    put_config();
    files_.config.update(more);
    head_dim_ = files_.config.value("head_dim", kDim / kHeads);
  }

  HfFiles make() {
    add("model.embed_tokens.weight", {rows_, kDim}, 1);
    norm("model.norm.weight", kDim);
    if (!files_.config["tie_word_embeddings"]) add("lm_head.weight", {rows_, kDim}, 0.3f);
    for (layer_ = 0; layer_ < kLayers; ++layer_) {
      norm(at("input_layernorm.weight"), kDim);
      norm(at("post_attention_layernorm.weight"), kDim);
      attention();
      hidden();
    }
    return std::move(files_);
  }

 private:
  bool gemma() const { return type_.starts_with("gemma"); }
  bool is(std::initializer_list<const char*> names) const {
    return std::find(names.begin(), names.end(), type_) != names.end();
  }
  std::string at(const std::string& name) const { return "model.layers." + std::to_string(layer_) + "." + name; }

  void put_config() {
    Json& c = files_.config;
    if (is({"qwen3", "qwen3_moe", "gemma2", "gemma3_text", "gpt_oss"})) c["head_dim"] = 32;
    if (is({"mistral", "mixtral", "phi3"})) c["sliding_window"] = 6;
    if (gemma()) c["sliding_window"] = 6, c["query_pre_attn_scalar"] = 24;
    if (type_ == "gemma2") c["attn_logit_softcapping"] = 5.0, c["final_logit_softcapping"] = 8.0;
    if (type_ == "gemma3_text") c["sliding_window_pattern"] = 3, c["rope_local_base_freq"] = 7000.0;
    if (type_ == "granite")
      c["embedding_multiplier"] = 3.0, c["attention_multiplier"] = 0.2, c["residual_multiplier"] = 0.5,
      c["logits_scaling"] = 4.0;
    if (type_ == "smollm3") c["no_rope_layers"] = {1, 0, 1, 1, 0};
    if (is({"mixtral", "gpt_oss"})) c["num_local_experts"] = kExperts;
    if (is({"qwen2_moe", "qwen3_moe", "olmoe"})) c["num_experts"] = kExperts;
    if (experts()) c["num_experts_per_tok"] = 2;
    if (is({"qwen2_moe", "qwen3_moe"})) c["moe_intermediate_size"] = kExpertFfn, c["norm_topk_prob"] = true;
    if (type_ == "qwen2_moe") c["shared_expert_intermediate_size"] = 48;
    if (type_ == "gpt_oss") c["sliding_window"] = 6, c["quantization_config"] = {{"quant_method", "mxfp4"}};
  }
  bool experts() const { return is({"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"}); }

  void attention() {
    const int64_t q = kHeads * head_dim_, kv = kKvHeads * head_dim_;
    if (type_ == "phi3") {
      add(at("self_attn.qkv_proj.weight"), {q + 2 * kv, kDim}, 0.2f);
    } else {
      add(at("self_attn.q_proj.weight"), {q, kDim}, 0.2f);
      add(at("self_attn.k_proj.weight"), {kv, kDim}, 0.2f);
      add(at("self_attn.v_proj.weight"), {kv, kDim}, 0.2f);
    }
    add(at("self_attn.o_proj.weight"), {kDim, q}, 0.2f);
    if (is({"qwen2", "qwen2_moe", "gpt_oss"}) || files_.config.value("attention_bias", false)) {
      add(at("self_attn.q_proj.bias"), {q}, 0.5f);
      add(at("self_attn.k_proj.bias"), {kv}, 0.5f);
      add(at("self_attn.v_proj.bias"), {kv}, 0.5f);
    }
    if (type_ == "gpt_oss") {
      add(at("self_attn.o_proj.bias"), {kDim}, 0.5f);
      add(at("self_attn.sinks"), {kHeads}, 1);
    }
    const bool whole = type_ == "olmoe";
    if (is({"qwen3", "qwen3_moe", "gemma3_text"}) || whole) {
      norm(at("self_attn.q_norm.weight"), whole ? q : head_dim_);
      norm(at("self_attn.k_norm.weight"), whole ? kv : head_dim_);
    }
  }

  void hidden() {
    if (gemma()) {
      norm(at("pre_feedforward_layernorm.weight"), kDim);
      norm(at("post_feedforward_layernorm.weight"), kDim);
    }
    if (type_ == "gpt_oss") return gpt_oss_experts();
    if (type_ == "mixtral") return add_experts("block_sparse_moe.", {"w1", "w3", "w2"}, kFfn);
    if (type_ == "olmoe") return add_experts("mlp.", {"gate_proj", "up_proj", "down_proj"}, kFfn);
    if (experts()) add_experts("mlp.", {"gate_proj", "up_proj", "down_proj"}, kExpertFfn);
    if (type_ == "qwen2_moe") {
      add(at("mlp.shared_expert_gate.weight"), {1, kDim}, 0.2f);
      return dense("mlp.shared_expert.", 48);
    }
    if (experts()) return;
    if (type_ != "phi3") return dense("mlp.", kFfn);
    add(at("mlp.gate_up_proj.weight"), {2 * kFfn, kDim}, 0.2f);
    add(at("mlp.down_proj.weight"), {kDim, kFfn}, 0.2f);
  }

  void dense(const std::string& prefix, int64_t width) {
    add(at(prefix + "gate_proj.weight"), {width, kDim}, 0.2f);
    add(at(prefix + "up_proj.weight"), {width, kDim}, 0.2f);
    add(at(prefix + "down_proj.weight"), {kDim, width}, 0.2f);
  }

  void add_experts(const std::string& prefix, const std::vector<std::string>& names, int64_t width) {
    add(at(prefix + "gate.weight"), {kExperts, kDim}, 0.3f);
    for (int64_t e = 0; e < kExperts; ++e) {
      const std::string expert = prefix + "experts." + std::to_string(e) + ".";
      add(at(expert + names[0] + ".weight"), {width, kDim}, 0.2f);
      add(at(expert + names[1] + ".weight"), {width, kDim}, 0.2f);
      add(at(expert + names[2] + ".weight"), {kDim, width}, 0.2f);
    }
  }

  void gpt_oss_experts() {
    add(at("mlp.router.weight"), {kExperts, kDim}, 0.3f);
    add(at("mlp.router.bias"), {kExperts}, 0.3f);
    add(at("mlp.experts.gate_up_proj_bias"), {kExperts, 2 * kFfn}, 0.3f);
    add(at("mlp.experts.down_proj_bias"), {kExperts, kDim}, 0.3f);
    add_codes(at("mlp.experts.gate_up_proj"), 2 * kFfn, kDim);
    add_codes(at("mlp.experts.down_proj"), kDim, kFfn);
  }

  void add_codes(const std::string& name, int64_t rows, int64_t cols) {
    std::string codes(static_cast<size_t>(kExperts * rows * cols / 2), '\0'),
        scales(static_cast<size_t>(kExperts * rows * cols / 32), '\x7B');
    for (char& c : codes) c = static_cast<char>(random_());
    put(name + "_blocks", "U8", {kExperts, rows, cols / 32, 16}, codes);
    put(name + "_scales", "U8", {kExperts, rows, cols / 32}, scales);
  }

  /// Gemma's norms mean 1 + w.
  void norm(const std::string& name, int64_t n) { add(name, {n}, 0.3f, gemma() ? 0 : 1); }

  void add(const std::string& name, const Dims& dims, float scale, float middle = 0) {
    int64_t n = 1;
    for (const int64_t d : dims) n *= d;
    std::string bytes(static_cast<size_t>(n) * sizeof(float), '\0');
    for (int64_t i = 0; i < n; ++i) {
      const float value = middle + scale * (static_cast<float>(random_() % 2001) / 1000 - 1);
      std::memcpy(bytes.data() + static_cast<size_t>(i) * sizeof value, &value, sizeof value);
    }
    put(name, "F32", dims, bytes);
  }

  void put(const std::string& name, const char* type, const Dims& dims, const std::string& bytes) {
    files_.header[name] = {
        {"dtype", type}, {"shape", dims}, {"data_offsets", {files_.data.size(), files_.data.size() + bytes.size()}}};
    files_.data += bytes;
  }

  std::string type_;
  HfFiles files_;
  std::mt19937 random_{7};
  int64_t rows_ = 0, head_dim_ = 0, layer_ = 0;
};

}  // namespace

std::vector<std::string> hf_model_types() {
  return {"llama", "mistral", "mixtral", "qwen2",       "qwen3", "qwen2_moe", "qwen3_moe",
          "olmoe", "gpt_oss", "gemma2",  "gemma3_text", "phi3",  "smollm3",   "granite"};
}

HfFiles hf_family(const std::string& model_type, const Json& more, int64_t n_padding) {
  return Family(model_type, more, n_padding).make();
}

}  // namespace infer::test
