// The forward pass of every architecture in the table: embed, then per layer attn_in, attention, attn_out, ffn (or
// moe_ffn in a layer with experts), then logits. What differs between families is in Config and Weights; there is no
// branch on an architecture's name here.
#pragma once

#include <functional>
#include <vector>

#include "kernels/backend.h"
#include "models/config.h"
#include "models/weights.h"

namespace infer {

/// One step's inputs, in buffers of the backend that keep their addresses from step to step.
struct Batch {
  int64_t n_tokens = 0, n_seqs = 0, n_outputs = 0;
  Tensor ids, positions, slots;  ///< i32 [n_tokens]
  Tensor page_table;             ///< i32 [n_seqs, max_pages]
  Tensor q_start;                ///< i32 [n_seqs + 1]
  Tensor kv_len;                 ///< i32 [n_seqs]
  Tensor outputs;                ///< i32 [n_outputs]: rows whose logits are wanted; may be empty
};

/// The KV cache of every layer, see ops.h for the page layout.
struct KvTensors {
  std::vector<Tensor> k, v;  ///< [n_layers] of [n_pages, n_kv_heads, kPageTokens, head_dim]
};

/// Buffers for intermediate results, allocated once for the largest step.
class Activations {
 public:
  Activations(Backend& backend, const Config& config, int64_t max_tokens, int64_t max_outputs);
  static size_t bytes(const Config& config, int64_t max_tokens, int64_t max_outputs);
  Tensor x, normed, q, k, v, attn, branch, gate, up, out_normed, logits;  ///< f32, first dimension = the maximum
  // Of layers with experts, see MoeFfnArgs; null where a model has none.
  Tensor router, expert_ids, expert_weights, expert_order, expert_starts, expert_gate, expert_up, expert_down;
  Tensor shared_gate, shared_up, shared_down;
  Tensor out_x, out_attn;  ///< x and attn of the wanted outputs alone, for the end of the last layer
  Tensor out_rows;         ///< i32 [max_outputs]: 0, 1, 2 ...

 private:
  Buffer buffer_;
};

/// Called after each stage when given: layer (-1: embedding, n_layers: logits), stage name, the stage's result.
using StageObserver = std::function<void(int layer, const char* stage, const Tensor& result)>;

/// Records or runs one step on the backend. Rows whose logits nobody wants end with the last layer's cache write,
/// unless an observer is there to see them. `ropes[i]`: f32 [n_positions, dim / 2, 2] of Config::ropes[i]. Results:
/// activations.logits [n_outputs, vocab].
void forward(Backend& backend, const Config& config, const Weights& weights, const std::vector<Tensor>& ropes,
             const KvTensors& kv, const Batch& batch, const Activations& activations,
             const StageObserver& observer = nullptr);

/// The arguments of a layer with experts as far as they are the model's: weights and settings, no activations.
MoeFfnArgs moe_weights(const Config& config, const LayerWeights& weights);

/// Rotation table rows of the positions [from, to): fills `rows` f32 [to - from, dim / 2, 2] in host memory; angles are
/// made in double. `n_ctx`: positions of the context that the table is for, which some scalings depend on.
void fill_rope_table(const RopeConfig& rope, int64_t n_ctx, int64_t from, int64_t to, float* rows);

}  // namespace infer
