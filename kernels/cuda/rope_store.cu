// The end of attn_in: per-head norms, rotation of q and k, and the write of k and v into the pages. One warp takes one
// head of one token from beginning to end, so a head is read once and nothing is exchanged between warps.
#include "kernels/cuda/kv_cache.cuh"
#include "kernels/cuda/launchers.h"

namespace infer::cuda {
namespace {

constexpr int kHeadsPerBlock = 8;  ///< one warp each

struct RopeStoreParams {
  float *q, *k;  ///< results [n_tokens, n_heads, head_dim], [n_tokens, n_kv_heads, head_dim]; k may be null
  const float *q_from, *k_from, *v_from;
  int q_stride, kv_stride;                ///< numbers from token to token of those
  const float *q_bias, *k_bias, *v_bias;  ///< or null
  const float *q_norm, *k_norm, *cos_sin;
  bool q_spans, k_spans;  ///< a norm over all heads of a token: only where those come from elsewhere than results go
  const int32_t *positions, *slots;
  uint8_t *k_cache, *v_cache;
  int64_t n_tokens, n_positions, n_slots;
  int n_heads, n_kv_heads, head_dim, n_pairs;
  bool adjacent;
  float eps;
  DType k_type, v_type;
};

/// Numbers that lie side by side.
template <int kWide>
struct alignas(4 * kWide) Run {
  float x[kWide];
};

/// 1 / rms of `n` numbers.
__device__ __forceinline__ float inverse_rms(float squares, int n, float eps) {
  return 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(n) + eps);
}

/// x * weight / rms(x), on the head in shared memory.
__device__ __forceinline__ void norm_head(float* x, const float* weight, float eps, int head_dim, int lane) {
  float squares = 0;
  for (int i = lane; i < head_dim; i += 32) squares += x[i] * x[i];
  const float inverse = inverse_rms(squares, head_dim, eps);
  for (int i = lane; i < head_dim; i += 32) x[i] = x[i] * inverse * weight[i];
  __syncwarp();
}

/// The same where the norm is over a token's whole row of `n` numbers. Each warp of the row reads all of it: for few
/// tokens that is sooner done than waiting for one another.
template <int kWide>
__device__ __forceinline__ void norm_head_of_row(float* x, const float* weight, const float* row, const float* bias,
                                                 float eps, int head_dim, int n, int lane) {
  float squares = 0;
#pragma unroll 16
  for (int i = lane * kWide; i < n; i += 32 * kWide) {
    const auto run = *reinterpret_cast<const Run<kWide>*>(row + i);
    for (int e = 0; e < kWide; ++e) {
      const float v = run.x[e] + (bias ? bias[i + e] : 0.0f);
      squares += v * v;
    }
  }
  const float inverse = inverse_rms(squares, n, eps);
  for (int i = lane; i < head_dim; i += 32) x[i] = x[i] * inverse * weight[i];
  __syncwarp();
}

__device__ __forceinline__ void rotate_head(float* x, const float2* cos_sin, int n_pairs, bool adjacent, int lane) {
  for (int i = lane; i < n_pairs; i += 32) {
    const int at = adjacent ? 2 * i : i, other = adjacent ? 2 * i + 1 : i + n_pairs;
    const float2 turn = cos_sin[i];
    const float a = x[at], b = x[other];
    x[at] = a * turn.x - b * turn.y;
    x[other] = a * turn.y + b * turn.x;
  }
  __syncwarp();
}

/// head_dim numbers, four at a time where kWide; f(i) makes numbers i .. i + kWide - 1.
template <int kWide, class Function>
__device__ __forceinline__ void each(int head_dim, int lane, Function&& f) {
  for (int i = lane * kWide; i < head_dim; i += 32 * kWide) f(i);
}

/// store_kv for 16-bit caches, eight bytes at a time.
__device__ __forceinline__ void store_kv_16(bool half, uint8_t* cache, const RopeStoreParams& p, int kv_head,
                                            int64_t slot, const float* row, int lane) {
  uint8_t* page = head_page(cache, head_page_bytes(DType::F16, p.head_dim), p.n_kv_heads, slot / kPageTokens, kv_head);
  auto* to = reinterpret_cast<uint16_t*>(page) + slot % kPageTokens * p.head_dim;
  each<4>(p.head_dim, lane, [&](int i) {
    uint32_t x[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] = half ? f32_to_f16(row[i + e]) : f32_to_bf16(row[i + e]);
    *reinterpret_cast<uint2*>(to + i) = make_uint2(x[0] | x[1] << 16, x[2] | x[3] << 16);
  });
}

/// Grid: warps over n_tokens * (n_heads + 2 * n_kv_heads) heads. Block: 8 warps. Shared: a head per warp. Reads every
/// head and writes q, k and the cache once; bound by memory, or by the launch for few tokens. kWide: 4 where head_dim
/// and addresses allow it, else 1.
template <int kWide>
__global__ void __launch_bounds__(kHeadsPerBlock * 32) rope_store_kernel(const RopeStoreParams p) {
  extern __shared__ __align__(16) float heads[];
  start_next_kernel();
  wait_for_previous_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, per_token = p.n_heads + 2 * p.n_kv_heads;
  const unsigned number = blockIdx.x * kHeadsPerBlock + warp;
  const int64_t token = number / per_token;
  if (token >= p.n_tokens) return;
  int head = static_cast<int>(number % per_token);
  float* x = heads + warp * p.head_dim;
  const bool is_q = head < p.n_heads, is_v = head >= p.n_heads + p.n_kv_heads;
  if (!is_q) head -= is_v ? p.n_heads + p.n_kv_heads : p.n_heads;
  // All loads that depend on nothing, before the first wait.
  const int64_t position = is_v ? -1 : p.positions[token], slot = is_q ? -1 : p.slots[token];
  const float* from = (is_q   ? p.q_from
                       : is_v ? p.v_from
                              : p.k_from) +
                      token * (is_q ? p.q_stride : p.kv_stride) + head * p.head_dim;
  each<kWide>(p.head_dim, lane,
              [&](int i) { *reinterpret_cast<Run<kWide>*>(x + i) = *reinterpret_cast<const Run<kWide>*>(from + i); });
  const float* bias = is_q ? p.q_bias : is_v ? p.v_bias : p.k_bias;
  if (bias)
    each<kWide>(p.head_dim, lane, [&](int i) {
      for (int e = 0; e < kWide; ++e) x[i + e] += bias[head * p.head_dim + i + e];
    });
  __syncwarp();
  if (!is_v) {
    const float* weight = is_q ? p.q_norm : p.k_norm;
    const int n_heads = is_q ? p.n_heads : p.n_kv_heads;
    if (weight && (is_q ? p.q_spans : p.k_spans))
      norm_head_of_row<kWide>(x, weight + head * p.head_dim, from - head * p.head_dim, bias, p.eps, p.head_dim,
                              n_heads * p.head_dim, lane);
    else if (weight)
      norm_head(x, weight, p.eps, p.head_dim, lane);
    if (p.cos_sin && position >= 0 && position < p.n_positions) {
      rotate_head(x, reinterpret_cast<const float2*>(p.cos_sin) + position * p.n_pairs, p.n_pairs, p.adjacent, lane);
    }
    hadamard(x, p.head_dim, static_cast<int>(kv_rotation(p.k_type, p.head_dim)), lane);
    float* to = is_q ? p.q : p.k;
    if (to) {
      to += (token * n_heads + head) * p.head_dim;
      each<kWide>(p.head_dim, lane,
                  [&](int i) { *reinterpret_cast<Run<kWide>*>(to + i) = *reinterpret_cast<const Run<kWide>*>(x + i); });
    }
  }
  if (is_q || slot < 0 || slot >= p.n_slots) return;
  if (is_v) hadamard(x, p.head_dim, static_cast<int>(kv_rotation(p.v_type, p.head_dim)), lane);
  const DType type = is_v ? p.v_type : p.k_type;
  uint8_t* cache = is_v ? p.v_cache : p.k_cache;
  if (kWide == 4 && (type == DType::F16 || type == DType::BF16)) {
    store_kv_16(type == DType::F16, cache, p, head, slot, x, lane);
  } else {
    store_kv(type, cache, p.n_kv_heads, head, p.head_dim, slot, x, lane);
  }
}

/// What does not depend on where q, k and v come from.
RopeStoreParams common_params(const RopeStoreArgs& a) {
  RopeStoreParams p{};
  p.q = a.q.as<float>();
  p.q_norm = a.q_norm.as<float>(), p.k_norm = a.k_norm.as<float>(), p.cos_sin = a.rope.cos_sin.as<float>();
  p.positions = a.positions.as<int32_t>(), p.slots = a.slots.as<int32_t>();
  p.k_cache = a.k_cache.as<uint8_t>(), p.v_cache = a.v_cache.as<uint8_t>();
  p.n_tokens = a.q.rows(), p.n_slots = a.k_cache.dims[0] * kPageTokens;
  p.n_heads = static_cast<int>(a.q.dims[1]), p.n_kv_heads = static_cast<int>(a.k.dims[1]);
  p.head_dim = static_cast<int>(a.q.dims[2]);
  if (a.rope.cos_sin) {
    p.n_positions = a.rope.cos_sin.dims[0];
    p.n_pairs = static_cast<int>(a.rope.cos_sin.dims[1]);
  }
  p.adjacent = a.rope.adjacent, p.eps = a.eps;
  p.k_type = a.k_cache.dtype, p.v_type = a.v_cache.dtype;
  return p;
}

void launch(const RopeStoreParams& p, cudaStream_t stream) {
  const int64_t n_heads = p.n_tokens * (p.n_heads + 2 * p.n_kv_heads);
  if (n_heads == 0) return;
  bool wide = p.head_dim % 4 == 0;
  for (const void* address :
       {static_cast<const void*>(p.q), static_cast<const void*>(p.k), static_cast<const void*>(p.q_from),
        static_cast<const void*>(p.k_from), static_cast<const void*>(p.v_from), static_cast<const void*>(p.k_cache),
        static_cast<const void*>(p.v_cache)}) {
    wide = wide && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  }
  const size_t shared = static_cast<size_t>(kHeadsPerBlock) * static_cast<size_t>(p.head_dim) * sizeof(float);
  const auto kernel = wide ? rope_store_kernel<4> : rope_store_kernel<1>;
  launch_early("rope_store", kernel, ceil_div<int64_t>(n_heads, kHeadsPerBlock), kHeadsPerBlock * 32, shared, stream,
               p);
}

}  // namespace

void rope_store(const RopeStoreArgs& a, cudaStream_t stream) {
  RopeStoreParams p = common_params(a);
  p.k = a.k.as<float>();
  p.q_from = p.q, p.k_from = p.k, p.v_from = a.v.as<float>();
  p.q_stride = p.n_heads * p.head_dim, p.kv_stride = p.n_kv_heads * p.head_dim;
  launch(p, stream);
}

void rope_store_merged(const RopeStoreArgs& a, const Tensor& merged, const Tensor& bq, const Tensor& bk,
                       const Tensor& bv, cudaStream_t stream) {
  RopeStoreParams p = common_params(a);
  const int q_dim = p.n_heads * p.head_dim, kv_dim = p.n_kv_heads * p.head_dim;
  p.q_from = merged.as<float>(), p.k_from = p.q_from + q_dim, p.v_from = p.k_from + kv_dim;
  p.q_stride = p.kv_stride = q_dim + 2 * kv_dim;
  p.q_bias = bq.as<float>(), p.k_bias = bk.as<float>(), p.v_bias = bv.as<float>();
  p.q_spans = a.spans_heads(a.q_norm), p.k_spans = a.spans_heads(a.k_norm);
  launch(p, stream);
}

}  // namespace infer::cuda
