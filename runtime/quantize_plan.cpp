// The order of decisions: tensors that stay as they are, formats that the user gave, the mixture, the length of the
// rows. What the mixtures give to which tensor is in quantize_mix.cpp.
#include "runtime/quantize_plan.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <numeric>

#include "quant/encode.h"
#include "quant/formats.h"
#include "runtime/name_pattern.h"
#include "runtime/quantize_mix.h"

namespace infer {
namespace {

std::string upper(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

// Names that hold one of these stay as they are: small, or read by code that wants floats. As in llama.cpp.
constexpr const char* kUntouched[] = {
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    "position_embd",
    "token_types.weight",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
};

bool may_change(const HostTensor& tensor, const QuantizeOptions& options) {
  // A matrix with one row is a vector to GGUF, which does not count trailing ones.
  const bool matrix = tensor.dims.size() >= 2 && tensor.n_elements() > tensor.dims.back();
  if (!matrix || !tensor.name.ends_with("weight")) return false;
  if (options.leave_output_tensor && tensor.name == "output.weight") return false;
  return std::none_of(std::begin(kUntouched), std::end(kUntouched),
                      [&](const char* part) { return tensor.name.find(part) != std::string::npos; });
}

DType format_named(const std::string& name, const char* option) {
  const FormatInfo* format = find_format(name);
  if (format && encodable(format->id)) return format->id;
  std::string known;
  for (uint32_t i = 0; i < 64; ++i)
    if (encodable(static_cast<DType>(i)))
      known += (known.empty() ? "" : ", ") + std::string(find_format(static_cast<DType>(i))->name);
  throw Error(ErrorKind::usage, option, format ? "this format cannot be written" : "unknown format",
              "'" + escaped(name) + "'", known);
}

/// Experts that were trained in their format: going elsewhere only loses, so it takes the user's word.
bool keeps_format(const HostTensor& tensor, const QuantizeOptions& options) {
  return tensor.dtype == DType::MXFP4 && tensor.dims.size() > 2 && !options.allow_requantize;
}

// What llama.cpp writes instead when rows are no multiple of a block of 256.
struct Shorter {
  DType format, instead;
};
constexpr Shorter kShorter[] = {
    {DType::IQ4_XS, DType::IQ4_NL}, {DType::Q2_K, DType::Q4_0}, {DType::Q3_K, DType::Q4_0}, {DType::TQ1_0, DType::Q4_0},
    {DType::TQ2_0, DType::Q4_0},    {DType::Q4_K, DType::Q5_0}, {DType::Q5_K, DType::Q5_1}, {DType::Q6_K, DType::Q8_0},
};

TensorChoice that_fits(DType wanted, int64_t cols) {
  DType dtype = wanted;
  for (const Shorter& shorter : kShorter)
    if (shorter.format == wanted && row_bytes(wanted, cols) < 0) dtype = shorter.instead;
  if (row_bytes(dtype, cols) < 0) dtype = DType::F16;
  if (dtype == wanted) return {dtype, {}};
  const FormatInfo &from = *find_format(wanted), &to = *find_format(dtype);
  return {dtype, "rows of " + std::to_string(cols) + " are no multiple of " + std::to_string(from.block) + ": " +
                     to.name + " instead of " + from.name};
}

// Layers in order, what belongs to none first: the mixtures count tensors of a kind in this order.
std::vector<size_t> in_layer_order(const std::vector<HostTensor>& tensors) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const int64_t layer_a = layer_of(tensors[a].name), layer_b = layer_of(tensors[b].name);
    return layer_a != layer_b ? layer_a < layer_b : tensors[a].name < tensors[b].name;
  });
  return order;
}

}  // namespace

const std::vector<Mix>& mixes() {
  static const std::vector<Mix> table = {
      {"F32", 0, DType::F32, MixKind::plain},
      {"F16", 1, DType::F16, MixKind::plain},
      {"BF16", 32, DType::BF16, MixKind::plain},
      {"Q8_0", 7, DType::Q8_0, MixKind::plain},
      {"Q6_K", 18, DType::Q6_K, MixKind::plain},
      {"Q5_K_M", 17, DType::Q5_K, MixKind::q5_k_m},
      {"Q5_K_S", 16, DType::Q5_K, MixKind::q5_k_s},
      {"Q5_1", 9, DType::Q5_1, MixKind::plain},
      {"Q5_0", 8, DType::Q5_0, MixKind::plain},
      {"Q4_K_M", 15, DType::Q4_K, MixKind::q4_k_m},
      {"Q4_K_S", 14, DType::Q4_K, MixKind::q4_k_s},
      {"Q4_1", 3, DType::Q4_1, MixKind::plain},
      {"Q4_0", 2, DType::Q4_0, MixKind::plain},
      {"IQ4_NL", 25, DType::IQ4_NL, MixKind::plain},
      {"IQ4_XS", 30, DType::IQ4_XS, MixKind::plain},
      {"MXFP4", 38, DType::MXFP4, MixKind::plain},
      {"MXFP4_MOE", 38, DType::MXFP4, MixKind::mxfp4_moe},
      {"Q3_K_L", 13, DType::Q3_K, MixKind::q3_k_l},
      {"Q3_K_M", 12, DType::Q3_K, MixKind::q3_k_m},
      {"Q3_K_S", 11, DType::Q3_K, MixKind::q3_k_s},
      {"Q2_K", 10, DType::Q2_K, MixKind::q2_k},
      {"Q2_K_S", 21, DType::Q2_K, MixKind::q2_k_s},
      {"TQ2_0", 37, DType::TQ2_0, MixKind::ternary},
      {"TQ1_0", 36, DType::TQ1_0, MixKind::ternary},
  };
  return table;
}

const Mix& find_mix(const std::string& name) {
  std::string wanted = upper(name), names;
  for (const char* short_name : {"Q3_K", "Q4_K", "Q5_K"})
    if (wanted == short_name) wanted += "_M";
  for (const Mix& mix : mixes()) {
    if (wanted == mix.name) return mix;
    names += (names.empty() ? "" : ", ") + std::string(mix.name);
  }
  const bool known = find_format(wanted) != nullptr;
  throw Error(ErrorKind::usage, "type", known ? "this format cannot be written" : "unknown type",
              "'" + escaped(name) + "'", names);
}

std::vector<std::string> quantize_types() {
  std::vector<std::string> names;
  for (const Mix& mix : mixes()) names.push_back(mix.name);
  return names;
}

std::string quantize_type(const std::string& name) { return find_mix(name).name; }

std::vector<TensorChoice> choose_formats(const Checkpoint& checkpoint, const Mix& mix, const QuantizeOptions& options) {
  std::vector<std::pair<NamePattern, DType>> patterns;
  for (const auto& [pattern, format] : options.tensor_types)
    patterns.emplace_back(NamePattern(pattern, "--tensor-type"), format_named(format, "--tensor-type"));
  std::optional<DType> output, embedding;
  if (!options.output_tensor_type.empty()) output = format_named(options.output_tensor_type, "--output-tensor-type");
  if (!options.token_embedding_type.empty())
    embedding = format_named(options.token_embedding_type, "--token-embedding-type");

  const bool quantised = row_bytes(mix.dtype, 1) < 0;
  Mixer mixer(checkpoint, mix, !options.imatrix.empty(), output);
  std::vector<TensorChoice> choices(checkpoint.tensors.size());
  for (const size_t i : in_layer_order(checkpoint.tensors)) {
    const HostTensor& tensor = checkpoint.tensors[i];
    choices[i] = {tensor.dtype, {}};
    if (!may_change(tensor, options)) continue;
    const auto pattern =
        std::find_if(patterns.begin(), patterns.end(), [&](const auto& p) { return p.first.found_in(tensor.name); });
    if (pattern == patterns.end() && keeps_format(tensor, options)) continue;
    DType wanted = mix.dtype;
    if (embedding && is_token_embedding(tensor.name)) {
      wanted = *embedding;
    } else if (output && tensor.name == "output.weight") {
      wanted = *output;
    } else if (pattern != patterns.end()) {
      wanted = pattern->second;
    } else if (quantised && !options.pure) {
      wanted = mixer.choose(tensor);
    }
    choices[i] = that_fits(wanted, tensor.dims.back());
  }
  return choices;
}

}  // namespace infer
