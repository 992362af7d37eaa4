// What comes between the product of q, k and v and attention, for one head of one token by one warp: bias, norm,
// rotation, and the write of k and v into their page. A head is read once, lies in shared memory and is exchanged with
// no other warp. Used by rope_store.cu, and by attention where it takes this along.
#pragma once

#include "kernels/cuda/kv_cache.cuh"
#include "kernels/cuda/launchers.h"

namespace infer::cuda {

/// Where the heads of some tokens come from, and what becomes of them. Null: not wanted.
struct HeadRows {
  const float *q_from, *k_from, *v_from;  ///< of the first token
  int q_stride, kv_stride;                ///< numbers from token to token of those
  const float *q_bias, *k_bias, *v_bias;
  const float *q_norm, *k_norm, *cos_sin;
  bool q_spans, k_spans;  ///< a norm is over all heads of a token: only where heads lie elsewhere than results go
  const int32_t *positions, *slots;
  uint8_t *k_cache, *v_cache;
  int64_t n_positions, n_slots;
  int n_heads, n_kv_heads, head_dim, n_pairs;
  int k_rotation, v_rotation;  ///< blocks of kv_format.h's rotation, of q and k and of v; 1: none
  bool adjacent;
  float eps;
  DType k_type, v_type;
};

/// Of a product; rope_store.cu.
HeadRows head_rows(const MergedHeads&);

enum class HeadOf { q, k, v };

/// Numbers that lie side by side.
template <int kWide>
struct alignas(4 * kWide) Run {
  float x[kWide];
};

/// head_dim numbers, four at a time where kWide; f(i) makes numbers i .. i + kWide - 1.
template <int kWide, class Function>
__device__ __forceinline__ void each(int head_dim, int lane, Function&& f) {
  for (int i = lane * kWide; i < head_dim; i += 32 * kWide) f(i);
}

inline constexpr int kMostTurns = 4;  ///< of a lane: for 128 pairs, a head of 256 numbers

/// Cosines and sines of a lane's pairs at the position of a token.
template <int kMost = kMostTurns>
struct Turns {
  float2 pair[kMost];
  int n_pairs = 0;  ///< of the head; 0: it does not turn

  /// From the L2, since it may be before the wait for the kernel before.
  __device__ __forceinline__ void load(const HeadRows& p, int64_t token, int lane) {
    load_at(p, position_of(p, token), lane);
  }
  /// -1 where nothing turns.
  static __device__ __forceinline__ int64_t position_of(const HeadRows& p, int64_t token) {
    return p.cos_sin ? __ldcg(p.positions + token) : -1;
  }
  __device__ __forceinline__ void load_at(const HeadRows& p, int64_t position, int lane) {
    n_pairs = position >= 0 && position < p.n_positions ? p.n_pairs : 0;
    const float2* table = reinterpret_cast<const float2*>(p.cos_sin) + position * p.n_pairs;
#pragma unroll
    for (int k = 0; k < kMost; ++k)
      if (lane + 32 * k < n_pairs) pair[k] = __ldcg(table + lane + 32 * k);
  }
  __device__ __forceinline__ void rotate(float* x, bool adjacent, int lane) const {
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      const int i = lane + 32 * k;
      if (i >= n_pairs) break;
      const int at = adjacent ? 2 * i : i, other = adjacent ? 2 * i + 1 : i + n_pairs;
      const float a = x[at], b = x[other];
      x[at] = a * pair[k].x - b * pair[k].y;
      x[other] = a * pair[k].y + b * pair[k].x;
    }
    __syncwarp();
  }
};

/// Sum of squares of a head in shared memory.
__device__ __forceinline__ float squares_of_head(const float* x, int head_dim, int lane) {
  float squares = 0;
  for (int i = lane; i < head_dim; i += 32) squares += x[i] * x[i];
  return warp_sum(squares);
}

/// The same of a token's whole row of `n` numbers, or a thread's share of it before a sum over `n_threads` of them.
template <int kWide, int kUnroll>
__device__ __forceinline__ float squares_of_row(const HeadRows& p, bool is_q, int64_t token, int head_dim, int thread,
                                                int n_threads) {
  const float *row = is_q ? p.q_from + token * p.q_stride : p.k_from + token * p.kv_stride,
              *bias = is_q ? p.q_bias : p.k_bias;
  const int n = (is_q ? p.n_heads : p.n_kv_heads) * head_dim;
  float squares = 0;
#pragma unroll kUnroll
  for (int i = thread * kWide; i < n; i += n_threads * kWide) {
    auto run = *reinterpret_cast<const Run<kWide>*>(row + i);
    for (int e = 0; e < kWide; ++e) {
      if (bias) run.x[e] += bias[i + e];
      squares += run.x[e] * run.x[e];
    }
  }
  return squares;
}

/// One head into `x`, shared f32 [head_dim], as attention wants it but for its scale; all lanes see it. row_squares:
/// the sum of a token's row, where p says that a norm spans it. kWide: 4 where head_dim and addresses allow it, else 1.
template <int kWide, int kMost>
__device__ __forceinline__ void prepare_head(const HeadRows& p, HeadOf of, int64_t token, int head, int head_dim,
                                             const Turns<kMost>& turns, float row_squares, float* x, int lane) {
  const bool is_q = of == HeadOf::q, is_v = of == HeadOf::v;
  const float* row = is_q ? p.q_from + token * p.q_stride : (is_v ? p.v_from : p.k_from) + token * p.kv_stride;
  const float* bias = is_q ? p.q_bias : is_v ? p.v_bias : p.k_bias;
  const int first = head * head_dim;
  each<kWide>(head_dim, lane, [&](int i) {
    *reinterpret_cast<Run<kWide>*>(x + i) = *reinterpret_cast<const Run<kWide>*>(row + first + i);
  });
  if (bias)
    each<kWide>(head_dim, lane, [&](int i) {
      for (int e = 0; e < kWide; ++e) x[i + e] += bias[first + i + e];
    });
  __syncwarp();
  const float* weight = is_q ? p.q_norm : is_v ? nullptr : p.k_norm;
  if (weight) {
    const bool spans = is_q ? p.q_spans : p.k_spans;
    const int n = spans ? (is_q ? p.n_heads : p.n_kv_heads) * head_dim : head_dim;
    const float squares = spans ? row_squares : squares_of_head(x, head_dim, lane);
    const float inverse = inverse_rms(squares, n, p.eps);
    for (int i = lane; i < head_dim; i += 32) x[i] = x[i] * inverse * weight[(spans ? first : 0) + i];
    __syncwarp();
  }
  if (!is_v) turns.rotate(x, p.adjacent, lane);
  hadamard(x, head_dim, is_v ? p.v_rotation : p.k_rotation, lane);
}

/// Asks the L2 for the weights that prepare_head() will want.
__device__ __forceinline__ void ask_for_head(const HeadRows& p, HeadOf of, int head, int head_dim, int lane) {
  const auto ask = [&](const float* from) {
    if (from && lane * 32 < head_dim) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + lane * 32));
  };
  const bool is_q = of == HeadOf::q, is_v = of == HeadOf::v;
  const float *bias = is_q ? p.q_bias : is_v ? p.v_bias : p.k_bias, *norm = is_q ? p.q_norm : is_v ? nullptr : p.k_norm;
  ask(bias ? bias + head * head_dim : nullptr);
  ask(norm ? norm + ((is_q ? p.q_spans : p.k_spans) ? head * head_dim : 0) : nullptr);
}

/// A head of k or v to its place: `slot` is page * kPageTokens + offset; what has none is stored nowhere.
template <int kWide>
__device__ __forceinline__ void store_head(DType type, uint8_t* cache, const HeadRows& p, int kv_head, int head_dim,
                                           int64_t slot, const float* x, int lane) {
  if (slot < 0 || slot >= p.n_slots) return;
  if (kWide == 1 || (type != DType::F16 && type != DType::BF16))
    return store_kv(type, cache, p.n_kv_heads, kv_head, head_dim, slot, x, lane);
  uint8_t* page = head_page(cache, head_page_bytes(DType::F16, head_dim), p.n_kv_heads, slot / kPageTokens, kv_head);
  auto* to = reinterpret_cast<uint16_t*>(page) + slot % kPageTokens * head_dim;
  each<4>(head_dim, lane, [&](int i) {  // eight bytes at a time
    uint32_t n[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) n[e] = type == DType::F16 ? f32_to_f16(x[i + e]) : f32_to_bf16(x[i + e]);
    *reinterpret_cast<uint2*>(to + i) = make_uint2(n[0] | n[1] << 16, n[2] | n[3] << 16);
  });
}

}  // namespace infer::cuda
