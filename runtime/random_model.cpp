// The shapes of published models, and tensors filled with one draw of normal weights, encoded once for each format.
#include "runtime/random_model.h"

#include <algorithm>
#include <map>
#include <random>

#include "quant/encode.h"
#include "quant/formats.h"
#include "runtime/memory.h"
#include "runtime/plan.h"
#include "runtime/quantize_plan.h"

namespace infer {
namespace {

struct Shape {
  const char* name;
  const char* of;  ///< whose it is
  int64_t n_layers, dim, ffn_dim, n_heads, n_kv_heads, head_dim, vocab;
  bool tied;  ///< the head is the embedding
  double rope_base;
  const char* arch = "llama";
  int64_t n_experts = 0, n_active = 0;  ///< ffn_dim wide each
};

// From the models' config.json.
constexpr Shape kShapes[] = {
    {"135m", "SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152, true, 100000},
    {"360m", "SmolLM2-360M", 32, 960, 2560, 15, 5, 64, 49152, true, 100000},
    {"1b", "Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256, true, 500000},
    {"1.7b", "SmolLM2-1.7B", 24, 2048, 8192, 32, 32, 64, 49152, true, 130000},
    {"3b", "Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, 128256, true, 500000},
    {"7b", "Mistral-7B-v0.3", 32, 4096, 14336, 32, 8, 128, 32768, false, 1000000},
    {"8b", "Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256, false, 500000},
    {"13b", "Llama-2-13B", 40, 5120, 13824, 40, 40, 128, 32000, false, 10000},
    {"olmoe", "OLMoE-1B-7B", 16, 2048, 1024, 16, 16, 128, 50304, false, 10000, "olmoe", 64, 8},
    {"70b", "Llama-3.1-70B", 80, 8192, 28672, 64, 8, 128, 128256, false, 500000},
};

constexpr int64_t kDrawn = int64_t{1} << 20;  // weights that are drawn and encoded; whole blocks of every format
constexpr float kDeviation = 0.02f;           // of the weights: activations stay in the range of a trained model's

const Shape& find_shape(const std::string& name) {
  std::string known;
  for (const Shape& shape : kShapes) {
    if (name == shape.name) return shape;
    known += (known.empty() ? "" : ", ") + std::string(shape.name) + " (" + shape.of + ")";
  }
  throw Error(ErrorKind::usage, "shape", "unknown", "'" + escaped(name) + "'", known);
}

void add_metadata(const Shape& s, const Mix& mix, Checkpoint& checkpoint) {
  const auto put = [&](const std::string& key, Value value) {
    checkpoint.metadata.insert_or_assign(key.starts_with('.') ? s.arch + key : key, std::move(value));
  };
  const auto number = [&](const char* key, int64_t value) { put(key, {value, "u32"}); };
  put("general.architecture", {std::string(s.arch), "string"});
  put("general.name", {"random weights, shape of " + std::string(s.of), "string"});
  number("general.file_type", mix.file_type);
  number(".block_count", s.n_layers);
  number(".context_length", 131072);
  number(".embedding_length", s.dim);
  number(".feed_forward_length", s.ffn_dim);
  number(".attention.head_count", s.n_heads);
  number(".attention.head_count_kv", s.n_kv_heads);
  number(".attention.key_length", s.head_dim);
  number(".attention.value_length", s.head_dim);
  number(".rope.dimension_count", s.head_dim);
  number(".vocab_size", s.vocab);
  put(".rope.freq_base", {s.rope_base, "f32"});
  put(".attention.layer_norm_rms_epsilon", {1e-5, "f32"});
  if (s.n_experts == 0) return;
  number(".expert_count", s.n_experts);
  number(".expert_used_count", s.n_active);
}

// In F16, as a published file before it is quantised; norms and routers in F32.
class Tensors {
 public:
  explicit Tensors(Checkpoint& checkpoint) : checkpoint_(checkpoint) {}
  void operator()(std::string name, std::vector<int64_t> dims) const {
    const DType dtype = dims.size() == 1 || name.ends_with("ffn_gate_inp.weight") ? DType::F32 : DType::F16;
    checkpoint_.tensors.push_back({std::move(name), dtype, std::move(dims), nullptr, 0});
  }

 private:
  Checkpoint& checkpoint_;
};

void add_hidden_layer(const Shape& s, const std::string& blk, const Tensors& add) {
  if (s.n_experts == 0) {
    add(blk + "ffn_gate.weight", {s.ffn_dim, s.dim});
    add(blk + "ffn_up.weight", {s.ffn_dim, s.dim});
    add(blk + "ffn_down.weight", {s.dim, s.ffn_dim});
    return;
  }
  add(blk + "ffn_gate_inp.weight", {s.n_experts, s.dim});
  add(blk + "ffn_gate_exps.weight", {s.n_experts, s.ffn_dim, s.dim});
  add(blk + "ffn_up_exps.weight", {s.n_experts, s.ffn_dim, s.dim});
  add(blk + "ffn_down_exps.weight", {s.n_experts, s.dim, s.ffn_dim});
}

void add_tensors(const Shape& s, Checkpoint& checkpoint) {
  const Tensors add(checkpoint);
  const int64_t q = s.n_heads * s.head_dim, kv = s.n_kv_heads * s.head_dim;
  add("token_embd.weight", {s.vocab, s.dim});
  for (int64_t i = 0; i < s.n_layers; ++i) {
    const std::string blk = "blk." + std::to_string(i) + ".";
    add(blk + "attn_norm.weight", {s.dim});
    add(blk + "attn_q.weight", {q, s.dim});
    add(blk + "attn_k.weight", {kv, s.dim});
    add(blk + "attn_v.weight", {kv, s.dim});
    add(blk + "attn_output.weight", {s.dim, q});
    add(blk + "ffn_norm.weight", {s.dim});
    add_hidden_layer(s, blk, add);
    if (std::string_view(s.arch) != "olmoe") continue;
    add(blk + "attn_q_norm.weight", {q});
    add(blk + "attn_k_norm.weight", {kv});
  }
  add("output_norm.weight", {s.dim});
  if (!s.tied) add("output.weight", {s.vocab, s.dim});
}

/// Bytes that tensors of one format share: vectors of ones, or matrices of random weights.
struct Pool {
  size_t bytes = 0;
  std::unique_ptr<std::byte[]> data;
};
using Pools = std::map<std::pair<DType, bool>, Pool>;  // by format, and whether they are vectors

void fill(Pool& pool, DType dtype, bool vectors, const std::vector<float>& weights) {
  const std::vector<float> ones(vectors ? weights.size() : 0, 1.0f);
  const auto unit = static_cast<size_t>(row_bytes(dtype, kDrawn));
  std::vector<std::byte> drawn(unit);
  encode_weights(dtype, (vectors ? ones : weights).data(), nullptr, drawn.data(), kDrawn);
  pool.data = std::make_unique_for_overwrite<std::byte[]>(pool.bytes);
  for (size_t at = 0; at < pool.bytes; at += unit)
    std::copy_n(drawn.data(), std::min(unit, pool.bytes - at), pool.data.get() + at);
}

void fill_all(Pools& pools) {
  size_t total = 0;
  for (const auto& [key, pool] : pools) total += pool.bytes;
  if (const size_t available = available_memory(); total > available)
    throw Error(ErrorKind::does_not_fit, "random weights",
                "need " + human_size(total) + ", and " + human_size(available) + " are available");
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, kDeviation);
  std::vector<float> weights(static_cast<size_t>(kDrawn));
  for (float& weight : weights) weight = normal(random);
  for (auto& [key, pool] : pools) fill(pool, key.first, key.second, weights);
}

}  // namespace

std::vector<std::string> random_shapes() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.push_back(shape.name);
  return names;
}

Checkpoint random_checkpoint(const std::string& shape_name, const std::string& type) {
  const Shape& shape = find_shape(shape_name);
  const Mix& mix = find_mix(type.empty() ? "F16" : type);
  Checkpoint checkpoint;
  checkpoint.path = "random " + shape_name;
  checkpoint.format = "random weights";
  add_metadata(shape, mix, checkpoint);
  add_tensors(shape, checkpoint);
  const std::vector<TensorChoice> choices = choose_formats(checkpoint, mix, {});
  auto pools = std::make_shared<Pools>();
  for (size_t i = 0; i < choices.size(); ++i) {
    HostTensor& tensor = checkpoint.tensors[i];
    tensor.dtype = choices[i].dtype;
    tensor.bytes =
        static_cast<size_t>(tensor_bytes(tensor.dtype, tensor.n_elements() / tensor.dims.back(), tensor.dims.back()));
    size_t& bytes = (*pools)[{tensor.dtype, tensor.dims.size() == 1}].bytes;
    bytes = std::max(bytes, tensor.bytes);
    checkpoint.file_bytes += tensor.bytes;
  }
  fill_all(*pools);
  for (HostTensor& tensor : checkpoint.tensors)
    tensor.data = (*pools)[{tensor.dtype, tensor.dims.size() == 1}].data.get();
  checkpoint.storage = std::move(pools);
  checkpoint.index_tensors();
  return checkpoint;
}

}  // namespace infer
