// A model's weights as tensors in a backend's memory, bound by name and shape from a Checkpoint. Immutable after load
// and shared by all engines. Every expected tensor is checked (name, shape, format for its role) before anything is
// packed; tensors that nothing asked for are refused, except the few known to be optional.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "models/checkpoint.h"
#include "models/config.h"

namespace infer {

struct LayerWeights {
  Tensor attn_norm, wq, wk, wv, bq, bk, bv, q_norm, k_norm, attn_sinks, wo, bo, attn_post_norm;
  Tensor ffn_norm, w_gate, w_up, w_down, b_gate, b_up, b_down, ffn_post_norm;
  // Of a layer with experts, whose w_gate .. b_down are stacks with the experts' first: see MoeFfnArgs.
  Tensor w_router, b_router, w_shared_gate, w_shared_up, w_shared_down, shared_mix;
};

struct NamedMatrix {
  std::string name;
  Tensor w;  ///< [rows, columns], packed
};

struct Weights {
  Tensor embed;  ///< [vocab, dim]
  Tensor output_norm;
  Tensor head;       ///< [vocab, dim]; packed from the embedding when the file has no output.weight
  Tensor head_bias;  ///< or null
  std::vector<LayerWeights> layers;
  std::vector<Buffer> buffers;  ///< owns the packed copies
  /// Every matrix with the name of the file's tensor; of a tensor that is split by rows the first part only.
  std::vector<NamedMatrix> matrices;
  size_t file_bytes = 0;    ///< bytes of tensors used where they lie in the file
  size_t packed_bytes = 0;  ///< bytes of packed copies
  size_t n_params = 0;
  size_t stream_bytes = 0;  ///< bytes of weights that one decoded token reads
};

/// One tensor that a Config calls for, found in the checkpoint and checked.
struct BoundTensor {
  const HostTensor* source;  ///< never null
  Tensor host;               ///< view of the rows that this use takes (a fused tensor is split by rows)
  WeightRole role;
  Tensor* target;         ///< field in a Weights
  int64_t first_row = 0;  ///< of the source; of a vector the first number
};

/// All tensors of the model, checked, nothing packed yet. `weights` gets its layers sized. Throws Error(bad_file).
std::vector<BoundTensor> bind_weights(const Checkpoint& checkpoint, const Config& config, Weights& weights);

/// What this model asks of a backend. The caller adds what it decides itself: KV types, step sizes, context.
Needs model_needs(const Config& config, const std::vector<BoundTensor>& bound);

/// Bytes that load_weights() will allocate on this backend.
size_t planned_packed_bytes(const std::vector<BoundTensor>& bound, const Backend& backend);

/// Weight bytes that one decoded token reads of this one, which takes `packed` bytes in a backend's form (0: as it is).
size_t stream_bytes(const BoundTensor& tensor, size_t packed, const ExpertsConfig& experts);

/// Binds and packs, several tensors at a time on `n_threads`. `progress(fraction)` is called from this thread; false
/// cancels (Error run). `check_tensors` decodes every weight once and refuses NaN and Inf by tensor name and index.
/// The copies live in one buffer of `backend`, which they outlive.
Weights load_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, int n_threads,
                     bool check_tensors, const std::function<bool(double)>& progress);

}  // namespace infer
