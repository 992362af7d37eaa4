// The rules of the mixtures. They were found by measurement, not derived, and are kept as llama.cpp has them so that
// "Q4_K_M" means one thing.
#include "runtime/quantize_mix.h"

#include <charconv>

#include "quant/formats.h"

namespace infer {
namespace {

bool holds(std::string_view name, std::string_view part) { return name.find(part) != name.npos; }

bool is_value(std::string_view name) {
  return holds(name, "attn_v.weight") || holds(name, "attn_qkv.weight") || holds(name, "attn_kv_b.weight");
}

// The first eighth of the layers, the last, and every third between.
bool deserves_more(int64_t i, int64_t n) { return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2; }

// Of layer 0, where the file has one number for each.
int64_t head_count(const Checkpoint& checkpoint, const std::string& key, int64_t otherwise) {
  const auto found = checkpoint.metadata.find(key);
  if (found == checkpoint.metadata.end()) return otherwise;
  if (const auto* one = std::get_if<int64_t>(&found->second.data)) return *one;
  const auto* list = std::get_if<std::vector<int64_t>>(&found->second.data);
  return list && !list->empty() ? list->front() : otherwise;
}

}  // namespace

int64_t layer_of(std::string_view name) {
  int64_t layer = -1;
  if (name.starts_with("blk.")) std::from_chars(name.data() + 4, name.data() + name.size(), layer);
  return layer;
}

bool is_token_embedding(std::string_view name) {
  return name == "token_embd.weight" || name == "per_layer_token_embd.weight";
}

Mixer::Mixer(const Checkpoint& checkpoint, const Mix& mix, bool has_imatrix, std::optional<DType> output)
    : mix_(mix), output_(output), has_imatrix_(has_imatrix) {
  const std::string arch = checkpoint.find_string("general.architecture").value_or("");
  constexpr int64_t kMost = 1 << 20;
  n_layers_ = checkpoint.find_int(arch + ".block_count", 0, kMost).value_or(0);
  n_experts_ = checkpoint.find_int(arch + ".expert_count", 0, kMost).value_or(0);
  const int64_t heads = head_count(checkpoint, arch + ".attention.head_count", 1);
  const int64_t kv_heads = head_count(checkpoint, arch + ".attention.head_count_kv", heads);
  n_groups_ = kv_heads > 0 ? heads / kv_heads : 0;
  falcon_ = arch == "falcon";
  grouped_eight_ = n_layers_ == 80 && ((arch == "llama" && heads != kv_heads) || arch == "qwen2");  // the 70B shapes
  for (const HostTensor& tensor : checkpoint.tensors) {
    n_values_ += is_value(tensor.name);
    tied_ &= tensor.name != "output.weight";
  }
}

DType Mixer::head(const HostTensor& tensor) const {
  if (output_) return *output_;
  if (mix_.kind == MixKind::mxfp4_moe || falcon_ || row_bytes(mix_.dtype, tensor.dims.back()) < 0) return DType::Q8_0;
  return mix_.dtype == DType::Q8_0 ? DType::Q8_0 : DType::Q6_K;
}

DType Mixer::values() {
  const int64_t i = i_values_++;
  const bool grouped = n_groups_ >= 4;
  DType dtype = mix_.dtype;
  if (mix_.kind == MixKind::q2_k) {
    dtype = grouped ? DType::Q4_K : DType::Q3_K;
  } else if (mix_.kind == MixKind::q2_k_s && grouped) {
    dtype = DType::Q4_K;
  } else if (mix_.kind == MixKind::q3_k_m) {
    dtype = i < 2 ? DType::Q5_K : DType::Q4_K;
  } else if (mix_.kind == MixKind::q3_k_l) {
    dtype = DType::Q5_K;
  } else if ((dtype == DType::IQ4_NL || dtype == DType::IQ4_XS) && grouped) {
    dtype = DType::Q5_K;
  } else if ((mix_.kind == MixKind::q4_k_m || mix_.kind == MixKind::q5_k_m) && deserves_more(i, n_values_)) {
    dtype = DType::Q6_K;
  } else if (mix_.kind == MixKind::q4_k_s && i < 4) {
    dtype = DType::Q5_K;
  }
  if (grouped_eight_ && (dtype == DType::Q3_K || dtype == DType::Q4_K)) dtype = DType::Q5_K;
  return n_experts_ == 8 ? DType::Q8_0 : dtype;
}

DType Mixer::down(int64_t layer) {
  const int64_t i = n_experts_ > 1 ? layer : i_down_, n = n_layers_;
  ++i_down_;
  const bool early = i < n / 8, more = deserves_more(i, n);
  switch (mix_.kind) {
    case MixKind::q2_k:
      return DType::Q3_K;
    case MixKind::q2_k_s:
      return early ? DType::Q4_K : mix_.dtype;
    case MixKind::q3_k_m:
      if (i < n / 16) return DType::Q5_K;
      return !falcon_ || more ? DType::Q4_K : DType::Q3_K;
    case MixKind::q3_k_l:
      return falcon_ ? DType::Q4_K : DType::Q5_K;
    case MixKind::q4_k_m:
      if (falcon_) return i < n / 16 ? DType::Q6_K : more ? DType::Q5_K : DType::Q4_K;
      return more ? DType::Q6_K : mix_.dtype;
    case MixKind::q5_k_m:
      return more ? DType::Q6_K : mix_.dtype;
    case MixKind::q4_k_s:
      return !falcon_ && early ? DType::Q5_K : mix_.dtype;
    default:
      break;
  }
  if (early && !has_imatrix_ && (mix_.dtype == DType::IQ4_NL || mix_.dtype == DType::IQ4_XS)) return DType::Q5_K;
  if (early && has_imatrix_ && mix_.dtype == DType::Q4_0) return DType::Q4_1;
  if (early && has_imatrix_ && mix_.dtype == DType::Q5_0) return DType::Q5_1;
  return mix_.dtype;
}

DType Mixer::attention_output() const {
  if (falcon_) return mix_.kind == MixKind::q3_k_l ? DType::Q4_K : mix_.dtype;
  if (n_experts_ == 8) {
    switch (mix_.kind) {
      case MixKind::q2_k:
      case MixKind::q3_k_s:
      case MixKind::q3_k_m:
      case MixKind::q4_k_s:
      case MixKind::q4_k_m:
        return DType::Q5_K;
      default:
        return mix_.dtype == DType::IQ4_NL || mix_.dtype == DType::IQ4_XS ? DType::Q5_K : mix_.dtype;
    }
  }
  switch (mix_.kind) {
    case MixKind::q2_k:
      return DType::Q3_K;
    case MixKind::q3_k_m:
      return DType::Q4_K;
    case MixKind::q3_k_l:
      return DType::Q5_K;
    default:
      return mix_.dtype;
  }
}

DType Mixer::choose(const HostTensor& tensor) {
  const std::string_view name = tensor.name;
  const bool embedding = is_token_embedding(name);
  if (name == "output.weight" || (tied_ && embedding)) return head(tensor);
  if (mix_.kind == MixKind::mxfp4_moe) return tensor.dims.size() > 2 && tensor.dims[0] > 1 ? DType::MXFP4 : DType::Q8_0;
  if (embedding) return mix_.kind == MixKind::ternary ? DType::Q4_K : mix_.dtype;
  if (is_value(name)) return values();
  if (holds(name, "attn_k.weight")) return n_experts_ == 8 ? DType::Q8_0 : mix_.dtype;
  if (holds(name, "ffn_down")) return down(layer_of(name));
  if (holds(name, "attn_output.weight")) return attention_output();
  return mix_.dtype;
}

}  // namespace infer
