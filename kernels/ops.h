// The vocabulary of the backend seam: one argument struct per op. Everything between two points where all results must
// be there is one op. Shapes stand beside every field; a null tensor switches an optional feature off. Activations are
// float32. All tensors of one call live in the backend's memory, per-step integers included, so that a recorded step
// can be replayed without patching anything. Names: n_tokens rows of this step (all sequences), n_seqs sequences,
// n_outputs rows whose logits are wanted.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/tensor.h"

namespace infer {

/// Tokens per page of the KV cache. One page of one layer holds [n_kv_heads, kPageTokens, head_dim] of K and of V.
inline constexpr int64_t kPageTokens = 32;

/// What the product of gate and up is: act(gate) * up, or, clamped as gpt-oss has it,
/// g * sigmoid(kClampedSlope * g) * (u + 1) with g = min(gate, kClampedLimit) and u = up between -kClampedLimit and it.
enum class Activation { silu, gelu_tanh, silu_clamped };
inline constexpr float kClampedLimit = 7, kClampedSlope = 1.702f;

/// Most experts that a layer may have: what backends sort by.
inline constexpr int64_t kMaxExperts = 4096;

/// Memory traffic and arithmetic of one call, for the profiler and bench.
struct OpCost {
  double weight_bytes = 0;      ///< weights, read once
  double activation_bytes = 0;  ///< activations and KV read and written
  double flops = 0;             ///< multiply and add counted as two
  OpCost& operator+=(const OpCost& other);
};

// ---- primitives ----------------------------------------------------------------------------------------------------

/// out[t] = scale * table[ids[t]]
struct EmbedArgs {
  Tensor table;  ///< any format [vocab, dim], layout 0 or packed as WeightRole::embedding
  Tensor ids;    ///< i32 [n_tokens], each in [0, vocab)
  float scale = 1;
  Tensor out;  ///< f32 [n_tokens, dim]
};

/// RMS norm, arXiv:1910.07467: out = x / sqrt(mean(x^2) + eps) * weight. Rows of `cols` numbers; in place is allowed.
struct NormArgs {
  Tensor x;       ///< f32 [rows, cols]
  Tensor weight;  ///< f32 [cols]
  float eps = 1e-5f;
  Tensor out;  ///< f32 [rows, cols]
};

/// out[m, n] = sum_k x[m, k] * w[n, k] + bias[n]
struct MatmulArgs {
  Tensor x;     ///< f32 [m, k]
  Tensor w;     ///< any format [n, k], as packed by the same kind of backend
  Tensor bias;  ///< f32 [n] or null
  Tensor out;   ///< f32 [m, n]
};

/// out = activation(gate) * up (see Activation), element by element; out may be gate.
struct ActivateArgs {
  Tensor gate, up;  ///< f32 [n_tokens, ffn_dim]
  Activation activation = Activation::silu;
  Tensor out;  ///< f32 [n_tokens, ffn_dim]
};

/// x = x + scale * norm(branch): closes a branch of the residual stream. Without `norm` the branch is added as it is.
struct AddArgs {
  Tensor x;       ///< f32 [n_tokens, dim], in and out
  Tensor branch;  ///< f32 [n_tokens, dim]; overwritten when norm is given
  Tensor norm;    ///< f32 [dim] or null: RMS norm of the branch before it is added (gemma)
  float eps = 1e-5f;
  float scale = 1;
};

/// Rotary embedding, arXiv:2104.09864. The table holds (cos, sin) per position and pair, made in double precision.
struct RopeArgs {
  Tensor cos_sin;         ///< f32 [n_positions, rope_dim / 2, 2] or null: no rotation
  bool adjacent = false;  ///< pairs (2i, 2i+1); else (i, i + rope_dim/2). Elements from rope_dim on stay as they are.
};

/// Norms q and k (optional), rotates both, writes k and v into the pages. Where kv_format.h says that a cache
/// holds its heads rotated once more, by the Walsh-Hadamard transform, so are q and k, or v, before the write.
struct RopeStoreArgs {
  Tensor q;     ///< f32 [n_tokens, n_heads, head_dim], in and out
  Tensor k, v;  ///< f32 [n_tokens, n_kv_heads, head_dim]; overwritten
  /// f32 [head_dim]: each head by itself; [n_heads * head_dim] and [n_kv_heads * head_dim]: all heads of a token as one
  /// row (olmoe; the same for one head); or null.
  Tensor q_norm, k_norm;
  float eps = 1e-5f;
  RopeArgs rope;
  Tensor positions;         ///< i32 [n_tokens]
  Tensor slots;             ///< i32 [n_tokens]: page * kPageTokens + offset within the page
  Tensor k_cache, v_cache;  ///< one of KvFormats [n_pages, n_kv_heads, kPageTokens, head_dim]

  /// Whether q_norm or k_norm spans all heads of a token.
  bool norms_span_heads() const { return spans_heads(q_norm) || spans_heads(k_norm); }
  bool spans_heads(const Tensor& norm) const { return norm && norm.n_elements() != q.dims[2]; }
};

/// Causal attention of the new tokens of every sequence over its pages (flash form, arXiv:2205.14135). Token i of
/// sequence s, q_start[s] <= i < q_start[s+1], has position kv_len[s] - (q_start[s+1] - i) and sees the positions up to
/// its own.
struct AttentionArgs {
  Tensor q;                 ///< f32 [n_tokens, n_heads, head_dim], as RopeStoreArgs left it
  Tensor k_cache, v_cache;  ///< [n_pages, n_kv_heads, kPageTokens, head_dim], as RopeStoreArgs wrote them
  Tensor page_table;        ///< i32 [n_seqs, max_pages]: the page of positions [p * kPageTokens, (p + 1) * kPageTokens)
  Tensor q_start;           ///< i32 [n_seqs + 1], ascending, q_start[n_seqs] == n_tokens
  Tensor kv_len;            ///< i32 [n_seqs]: positions in the cache, this step's included
  float scale = 1;          ///< factor on q . k
  int64_t window = 0;       ///< 0: all; W: positions j with i - j < W
  float softcap = 0;        ///< 0: off; else scores become c * tanh(score / c)
  Tensor sinks;             ///< f32 [n_heads] or null: one extra logit per head in the softmax (gpt-oss)
  Tensor out;               ///< f32 [n_tokens, n_heads, head_dim], of values as they were before the write
};

/// Chooses each token's experts: the n_active largest logits, largest first, of equal ones the lower id first. Their
/// weights are the softmax of all logits, or of the chosen ones alone, times `scale`. A NaN counts as the smallest
/// logit, and makes all weights of its token NaN; ids are valid and distinct whatever the logits are.
struct RouteArgs {
  Tensor logits;            ///< f32 [n_tokens, n_experts], n_experts up to kMaxExperts
  bool sum_to_one = false;  ///< softmax of the chosen ones: the same as all weights divided by the sum of the chosen
  float scale = 1;
  Tensor ids;      ///< i32 [n_tokens, n_active]
  Tensor weights;  ///< f32 [n_tokens, n_active]
};

/// out[t, s] = x[t, s] * w[ids[t, s]]^T + bias[ids[t, s]]: the products of each token with its own experts.
struct ExpertMatmulArgs {
  Tensor x;     ///< f32 [n_tokens, k], the same for all experts of a token; or [n_tokens, n_active, k]
  Tensor w;     ///< any format [n_experts, n, k], as packed by the same kind of backend
  Tensor bias;  ///< f32 [n_experts, n] or null
  Tensor ids;   ///< i32 [n_tokens, n_active], as RouteArgs left them
  Tensor out;   ///< f32 [n_tokens, n_active, n]
};

/// out[t] = sum_s weights[t, s] * experts[t, s], in this order, + shared[t] * sigmoid(x[t] . shared_mix)
struct CombineArgs {
  Tensor experts;        ///< f32 [n_tokens, n_active, dim]
  Tensor weights;        ///< f32 [n_tokens, n_active]
  Tensor shared;         ///< f32 [n_tokens, dim] or null
  Tensor x, shared_mix;  ///< f32 [n_tokens, dim], [dim]; null: the shared expert counts whole
  Tensor out;            ///< f32 [n_tokens, dim]
};

/// Tokens of a sequence that the penalties can look back on when a device draws.
inline constexpr int64_t kSampleHistory = 1024;
/// Logits that share one entry of SampleArgs::group_max.
inline constexpr int64_t kSampleGroup = 32;

/// How one row of logits becomes a token, and where its sequence is: device memory, counted on by every draw. The
/// fields mean what the public Sampling says. Which rows a backend can draw is Backend::samples().
struct SampleRow {
  uint64_t seed = 0;
  uint64_t n_drawn = 0;   ///< draws so far: each takes its random number from (seed, n_drawn)
  int32_t enabled = 0;    ///< 0: the row is left alone
  int32_t n_history = 0;  ///< tokens ever put into the row's ring
  float temperature = 0;  ///< 0: the largest logit
  int32_t top_k = 0;      ///< at least 1 where temperature is not 0
  float top_p = 1, min_p = 0;
  float repeat_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int32_t repeat_last_n = 0;  ///< tokens of the ring that the penalties count
  int32_t reserved[2] = {};
};
static_assert(sizeof(SampleRow) == 64);

/// What the host learns of a draw.
struct Drawn {
  int32_t id = 0;      ///< a valid id even when there is no token
  int32_t finite = 1;  ///< 0: a NaN or an infinity was among the row's logits, and no token was drawn
};

/// Draws one token per row: penalties, top-k, top-p, min-p, temperature (sample.h says how, in this order). What the
/// next step of the same sequences reads is moved on, so that it can be started before anybody has seen the tokens.
struct SampleArgs {
  Tensor logits;                    ///< f32 [n, vocab]; the penalties change it
  int64_t n_valid = 0;              ///< ids from here on are never drawn
  Tensor rows;                      ///< SampleRow [n] as i32 [n, 16], in and out
  Tensor history;                   ///< i32 [n, kSampleHistory]: token i of a sequence lies at i % kSampleHistory
  Tensor group_max;                 ///< scratch i32 [n, ceil(vocab / kSampleGroup)]
  Tensor out;                       ///< i32 [n]: the ids of the next step
  Tensor host_out;                  ///< Drawn [n] as i32 [n, 2], in pinned memory of the host
  Tensor positions, slots, kv_len;  ///< i32 [n], each made larger by one; or null
};

// ---- stages: each is defined by its body of primitives in backend.cpp; a backend may fuse it
// ---------------------------

/// norm, q k v projections, biases, per-head norms, rotation, KV write.
struct AttnInArgs {
  Tensor x;     ///< f32 [n_tokens, dim]
  Tensor norm;  ///< f32 [dim]
  float eps = 1e-5f;
  Tensor wq, wk, wv;         ///< [n_heads * head_dim, dim], [n_kv_heads * head_dim, dim] twice
  Tensor bq, bk, bv;         ///< f32, or null
  RopeStoreArgs rope_store;  ///< its q is the result, its k and v are scratch
  Tensor normed;             ///< scratch f32 [n_tokens, dim]
};

/// output projection, optional norm of the branch, residual.
struct AttnOutArgs {
  Tensor attn;  ///< f32 [n_tokens, n_heads * head_dim]
  Tensor wo;    ///< [dim, n_heads * head_dim]
  Tensor bo;    ///< f32 [dim] or null
  AddArgs add;  ///< add.branch is scratch
  /// f32 [dim] or null: the weights of the norm of add.x that an ffn begins with, which comes next. A backend may take
  /// part of that along.
  Tensor next_norm = {};
};

/// norm, gate and up, activation, down, optional norm of the branch, residual.
struct FfnArgs {
  Tensor norm;  ///< f32 [dim]
  float eps = 1e-5f;
  Tensor w_gate, w_up;          ///< [ffn_dim, dim]
  Tensor w_down;                ///< [dim, ffn_dim]
  Tensor b_gate, b_up, b_down;  ///< f32, or null
  Activation activation = Activation::silu;
  AddArgs add;      ///< add.x is the input too, add.branch is scratch
  Tensor normed;    ///< scratch f32 [n_tokens, dim]
  Tensor gate, up;  ///< scratch f32 [n_tokens, ffn_dim]
};

/// norm, router, choice of experts, their gate and up, activation and down, a shared expert beside them (optional), the
/// weighted sum, optional norm of the branch, residual. Nothing of the choice need ever reach the host.
struct MoeFfnArgs {
  Tensor norm;  ///< f32 [dim]
  float eps = 1e-5f;
  Tensor w_router;          ///< [n_experts, dim]
  Tensor b_router;          ///< f32 [n_experts] or null
  bool sum_to_one = false;  ///< as in RouteArgs
  float weight_scale = 1;
  Tensor w_gate, w_up;                ///< [n_experts, expert_dim, dim]
  Tensor w_down;                      ///< [n_experts, dim, expert_dim]
  Tensor b_gate, b_up, b_down;        ///< f32 [n_experts, expert_dim] twice, [n_experts, dim]; or null
  Tensor w_shared_gate, w_shared_up;  ///< [shared_dim, dim], or null: no shared expert
  Tensor w_shared_down;               ///< [dim, shared_dim]
  Tensor shared_mix;                  ///< f32 [dim] or null, as in CombineArgs
  Activation activation = Activation::silu;
  AddArgs add;     ///< add.x is the input too, add.branch is scratch
  Tensor normed;   ///< scratch f32 [n_tokens, dim]
  Tensor router;   ///< scratch f32 [n_tokens, n_experts]
  Tensor ids;      ///< scratch i32 [n_tokens, n_active]
  Tensor weights;  ///< scratch f32 [n_tokens, n_active]
  /// Scratch of a device that sorts rows by expert: i32 [n_tokens, 2 * n_active] and [n_experts + 1].
  Tensor order, starts;
  Tensor gate, up;                ///< scratch f32 [n_tokens, n_active, expert_dim]
  Tensor down;                    ///< scratch f32 [n_tokens, n_active, dim]
  Tensor shared_gate, shared_up;  ///< scratch f32 [n_tokens, shared_dim], or null
  Tensor shared_down;             ///< scratch f32 [n_tokens, dim], or null
};

/// gather of the wanted rows, final norm, head, scale, softcap.
struct LogitsArgs {
  Tensor x;     ///< f32 [n_tokens, dim]
  Tensor rows;  ///< i32 [n_outputs], each in [0, n_tokens)
  Tensor norm;  ///< f32 [dim]
  float eps = 1e-5f;
  Tensor head;      ///< [vocab, dim]
  Tensor bias;      ///< f32 [vocab] or null
  float scale = 1;  ///< on the logits, before the softcap
  float softcap = 0;
  Tensor normed;  ///< scratch f32 [n_outputs, dim]
  Tensor out;     ///< f32 [n_outputs, vocab]
};

// The definition of each stage: its primitives in order, with their arguments. Backend's default bodies run them,
// cost() adds them up, and a backend that fuses only part of a stage can take the rest from here.

struct AttnInSteps {
  NormArgs norm;
  MatmulArgs q, k, v;
  RopeStoreArgs rope_store;
};
struct AttnOutSteps {
  MatmulArgs project;
  AddArgs add;
};
struct FfnSteps {
  NormArgs norm;
  MatmulArgs gate, up;
  ActivateArgs activate;
  MatmulArgs down;
  AddArgs add;
};
/// The four of the shared expert count where MoeFfnArgs::w_shared_gate is not null.
struct MoeFfnSteps {
  NormArgs norm;
  MatmulArgs router;
  RouteArgs route;
  ExpertMatmulArgs gate, up;
  ActivateArgs activate;
  ExpertMatmulArgs down;
  MatmulArgs shared_gate, shared_up;
  ActivateArgs shared_activate;
  MatmulArgs shared_down;
  CombineArgs combine;
  AddArgs add;
};
/// After the gather of LogitsArgs::rows into LogitsArgs::normed, and before scale_softcap on LogitsArgs::out.
struct LogitsSteps {
  NormArgs norm;
  MatmulArgs head;
};

AttnInSteps steps(const AttnInArgs&);
AttnOutSteps steps(const AttnOutArgs&);
FfnSteps steps(const FfnArgs&);
MoeFfnSteps steps(const MoeFfnArgs&);
LogitsSteps steps(const LogitsArgs&);

/// Bytes of a tensor as its format stores it in a file; 0 for a null tensor. A packed form has at least as many.
int64_t tensor_file_bytes(const Tensor&);

/// Bytes that weights take where they are held; null: as in a file.
struct WeightSizes {
  std::function<double(const Tensor&)> matrix, table;
};

OpCost cost(const EmbedArgs&, const WeightSizes& = {});
OpCost cost(const NormArgs&);
OpCost cost(const MatmulArgs&, const WeightSizes& = {});
OpCost cost(const ActivateArgs&);
OpCost cost(const AddArgs&);
OpCost cost(const RouteArgs&);
/// Weights of the experts that tokens choosing at random would reach: all n_active of one token's.
OpCost cost(const ExpertMatmulArgs&, const WeightSizes& = {});
OpCost cost(const CombineArgs&);
OpCost cost(const RopeStoreArgs&);
/// `kv_tokens`: sum over query tokens of the positions they see (host knowledge; the args hold device integers).
/// `kv_read`: positions that are read from the cache, at least those that any token sees; negative: as many as
/// kv_tokens, which is exact for decoding.
OpCost cost(const AttentionArgs&, double kv_tokens, double kv_read = -1);
OpCost cost(const AttnInArgs&, const WeightSizes& = {});
OpCost cost(const AttnOutArgs&, const WeightSizes& = {});
OpCost cost(const FfnArgs&, const WeightSizes& = {});
OpCost cost(const MoeFfnArgs&, const WeightSizes& = {});
OpCost cost(const LogitsArgs&, const WeightSizes& = {});
OpCost cost(const SampleArgs&);
OpCost cost_of_gather(const Tensor& rows, const Tensor& out);
OpCost cost_of_scale_softcap(const Tensor& x);

/// Positions that `n` tokens from `position` on see, all of them together; window as in AttentionArgs.
double seen_positions(int64_t position, int64_t n, int64_t window);

}  // namespace infer
