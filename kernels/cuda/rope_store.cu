// The end of attn_in: per-head norms, rotation of q and k, and the write of k and v into the pages. One warp takes one
// head of one token from beginning to end, so a head is read once and nothing is exchanged between warps.
#include "kernels/cuda/kv_cache.cuh"
#include "kernels/cuda/launchers.h"

namespace infer::cuda {
namespace {

constexpr int kHeadsPerBlock = 8;  ///< one warp each

struct RopeStoreParams {
  float *q, *k;    ///< [n_tokens, n_heads, head_dim], [n_tokens, n_kv_heads, head_dim]
  const float* v;  ///< as k
  const float *q_norm, *k_norm, *cos_sin;
  const int32_t *positions, *slots;
  uint8_t *k_cache, *v_cache;
  int64_t n_tokens, n_positions, n_slots;
  int n_heads, n_kv_heads, head_dim, n_pairs;
  bool adjacent;
  float eps;
  DType k_type, v_type;
};

/// x * weight / rms(x), on the head in shared memory.
__device__ __forceinline__ void norm_head(float* x, const float* weight, float eps, int head_dim, int lane) {
  float squares = 0;
  for (int i = lane; i < head_dim; i += 32) squares += x[i] * x[i];
  const float inverse = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(head_dim) + eps);
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

/// Grid: warps over n_tokens * (n_heads + 2 * n_kv_heads) heads. Block: 8 warps. Shared: a head per warp. Reads every
/// head and writes q, k and the cache once; bound by memory, or by the launch for few tokens.
__global__ void rope_store_kernel(const RopeStoreParams p) {
  extern __shared__ float heads[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, per_token = p.n_heads + 2 * p.n_kv_heads;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kHeadsPerBlock + warp;
  const int64_t token = number / per_token;
  if (token >= p.n_tokens) return;
  int head = static_cast<int>(number % per_token);
  float* x = heads + warp * p.head_dim;
  const bool is_q = head < p.n_heads, is_v = head >= p.n_heads + p.n_kv_heads;
  if (!is_q) head -= is_v ? p.n_heads + p.n_kv_heads : p.n_heads;
  const int64_t at = (token * (is_q ? p.n_heads : p.n_kv_heads) + head) * p.head_dim;
  const float* from = (is_q ? p.q : is_v ? p.v : p.k) + at;
  for (int i = lane; i < p.head_dim; i += 32) x[i] = from[i];
  __syncwarp();
  if (!is_v) {
    const float* weight = is_q ? p.q_norm : p.k_norm;
    if (weight) norm_head(x, weight, p.eps, p.head_dim, lane);
    const int64_t position = p.positions[token];
    if (p.cos_sin && position >= 0 && position < p.n_positions) {
      rotate_head(x, reinterpret_cast<const float2*>(p.cos_sin) + position * p.n_pairs, p.n_pairs, p.adjacent, lane);
    }
    float* back = (is_q ? p.q : p.k) + at;
    for (int i = lane; i < p.head_dim; i += 32) back[i] = x[i];
  }
  const int64_t slot = p.slots[token];
  if (is_q || slot < 0 || slot >= p.n_slots) return;
  store_kv(is_v ? p.v_type : p.k_type, is_v ? p.v_cache : p.k_cache, p.n_kv_heads, head, p.head_dim, slot, x, lane);
}

}  // namespace

void rope_store(const RopeStoreArgs& a, cudaStream_t stream) {
  RopeStoreParams p{};
  p.q = a.q.as<float>(), p.k = a.k.as<float>(), p.v = a.v.as<float>();
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
  const int64_t n_heads = p.n_tokens * (p.n_heads + 2 * p.n_kv_heads);
  if (n_heads == 0) return;
  const size_t shared = static_cast<size_t>(kHeadsPerBlock) * static_cast<size_t>(p.head_dim) * sizeof(float);
  rope_store_kernel<<<static_cast<unsigned>(ceil_div<int64_t>(n_heads, kHeadsPerBlock)), kHeadsPerBlock * 32, shared,
                      stream>>>(p);
  check_launch("rope_store");
}

}  // namespace infer::cuda
