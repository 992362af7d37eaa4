// What a model is: the numbers that fix its forward pass. Plain data, made by an architecture's reader from a
// Checkpoint and checked by validate() before anything divides by, allocates for or loops over one of its fields.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace infer {

class Checkpoint;

enum class RopeScaling {
  none,
  linear,
  yarn,     ///< arXiv:2309.00071
  dynamic,  ///< NTK-aware: a larger base, by how far the context goes beyond the original one
};

/// One rotary table. A model has as many as it has distinct (base, scaling) pairs; layers refer to them by index.
struct RopeConfig {
  int64_t dim = 0;  ///< rotated elements of each head, even, <= head_dim
  double base = 10000;
  bool adjacent = false;  ///< pairs (2i, 2i+1), as GGUF's permuted llama rows want
  RopeScaling scaling = RopeScaling::none;
  bool whole_pairs = true;       ///< yarn: the range that is blended begins and ends at whole pairs
  double factor = 1;             ///< linear and yarn: positions are divided by this; dynamic: see rope.cpp
  int64_t original_context = 0;  ///< yarn, dynamic and long_divisors
  double ext_factor = 1, beta_fast = 32, beta_slow = 1;  ///< yarn
  double attn_factor = 1;                                ///< on cos and sin, on top of what yarn itself puts there
  std::vector<float> divisors;  ///< [dim / 2] or empty: each frequency is divided by its own (llama 3.x: rope_freqs)
  std::vector<float> long_divisors;  ///< the same, instead, in contexts longer than the original one (longrope)
};

struct LayerConfig {
  int64_t window = 0;    ///< 0: full attention; W: sliding window of W positions, the own one included
  int rope = 0;          ///< index into Config::ropes; -1: this layer does not rotate
  bool experts = false;  ///< a mixture of experts in place of the dense hidden layer
};

/// The mixture of experts that a model's layers have, see MoeFfnArgs.
struct ExpertsConfig {
  int64_t n_experts = 0, n_active = 0;  ///< 0: the model is dense
  int64_t expert_dim = 0;               ///< hidden width of one expert
  int64_t shared_dim = 0;               ///< of the shared expert; 0: there is none
  bool sum_to_one = false;              ///< weights of the chosen experts
  float scale = 1;                      ///< on these weights
};

struct Config {
  std::string arch;  ///< name of the row in arch.h
  int64_t n_layers = 0, dim = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0, ffn_dim = 0, vocab = 0;
  int64_t n_ctx_train = 0;  ///< a ceiling from the file, never an allocation
  float norm_eps = 1e-5f;
  Activation activation = Activation::silu;
  float embed_scale = 1, attn_scale = 0 /* set to head_dim^-0.5 unless the arch says otherwise */, attn_softcap = 0;
  float residual_scale = 1, logit_scale = 1, logit_softcap = 0;
  bool qk_norm = false;        ///< RMS norm of q and k per head before the rotation
  bool qk_norm_whole = false;  ///< that norm runs over all heads at once (olmoe)
  bool attn_sinks = false;     ///< one more logit per head in the softmax (gpt-oss)
  /// The file's post_attention_norm is the norm before the hidden layer (gpt-oss).
  bool ffn_norm_is_post_attention_norm = false;
  bool post_norms = false;  ///< RMS norm of each branch before it is added (gemma)
  ExpertsConfig experts;
  std::vector<RopeConfig> ropes;
  std::vector<LayerConfig> layers;  ///< [n_layers]
};

/// Limits on what a file may claim (ours): far above any published model, far below what overflows.
inline constexpr int64_t kMaxLayers = 1024, kMaxHeads = 1024, kMaxWidth = 1 << 20, kMaxVocab = 1 << 24,
                         kMaxContext = 1 << 24, kMaxHeadDim = 1024;
inline constexpr double kMinNormEps = 1e-20, kMaxNormEps = 1, kMinSoftcap = 1e-3, kMaxSoftcap = 1e6, kMinRopeBase = 1,
                        kMaxRopeBase = 1e12, kMinRopeFactor = 1e-6, kMaxRopeFactor = 1e6, kMaxExpertScale = 1e6;

/// Frequency divisors of Llama 3.x [dim / 2]: waves longer than original_context / low are stretched by `factor`, those
/// shorter than original_context / high stay, between them the two are blended.
std::vector<float> llama3_divisors(int64_t dim, double base, double factor, double low, double high,
                                   double original_context);

/// Throws Error(bad_file) naming path, field, found and allowed. No side effects.
void validate(const Config& config, const std::string& path);

}  // namespace infer
