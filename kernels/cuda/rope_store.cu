// The end of attn_in: per-head norms, rotation of q and k, and the write of k and v into the pages, a warp a head.
#include "kernels/cuda/rope_head.cuh"

namespace infer::cuda {
namespace {

constexpr int kHeadsPerBlock = 8;  ///< one warp each

struct RopeStoreParams : HeadRows {
  float *q, *k;  ///< results [n_tokens, n_heads, head_dim], [n_tokens, n_kv_heads, head_dim]; k may be null
  int64_t n_tokens;
};

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
  const int64_t slot = is_q ? -1 : p.slots[token];
  Turns turns;
  if (!is_v) turns.load(p, token, lane);
  // Each warp of a row reads all of it: for few tokens that is sooner done than waiting for one another.
  const bool spans = is_q ? p.q_spans : !is_v && p.k_spans;
  const float squares = spans ? warp_sum(squares_of_row<kWide, 16>(p, is_q, token, p.head_dim, lane, 32)) : 0.0f;
  const HeadOf of = is_q ? HeadOf::q : is_v ? HeadOf::v : HeadOf::k;
  prepare_head<kWide>(p, of, token, head, p.head_dim, turns, squares, x, lane);
  if (float* to = is_q ? p.q : is_v ? nullptr : p.k) {
    to += (token * (is_q ? p.n_heads : p.n_kv_heads) + head) * p.head_dim;
    each<kWide>(p.head_dim, lane,
                [&](int i) { *reinterpret_cast<Run<kWide>*>(to + i) = *reinterpret_cast<const Run<kWide>*>(x + i); });
  }
  if (!is_q)
    store_head<kWide>(is_v ? p.v_type : p.k_type, is_v ? p.v_cache : p.k_cache, p, head, p.head_dim, slot, x, lane);
}

/// What does not depend on where q, k and v come from.
HeadRows common_rows(const RopeStoreArgs& a) {
  HeadRows p{};
  p.q_norm = a.q_norm.as<float>(), p.k_norm = a.k_norm.as<float>(), p.cos_sin = a.rope.cos_sin.as<float>();
  p.positions = a.positions.as<int32_t>(), p.slots = a.slots.as<int32_t>();
  p.k_cache = a.k_cache.as<uint8_t>(), p.v_cache = a.v_cache.as<uint8_t>();
  p.n_slots = a.k_cache.dims[0] * kPageTokens;
  p.n_heads = static_cast<int>(a.q.dims[1]), p.n_kv_heads = static_cast<int>(a.k.dims[1]);
  p.head_dim = static_cast<int>(a.q.dims[2]);
  if (a.rope.cos_sin) {
    p.n_positions = a.rope.cos_sin.dims[0];
    p.n_pairs = static_cast<int>(a.rope.cos_sin.dims[1]);
  }
  if (p.n_pairs > 32 * kMostTurns)
    throw Error(ErrorKind::usage, "rope_store", "head too large", std::to_string(p.head_dim),
                std::to_string(64 * kMostTurns));
  p.adjacent = a.rope.adjacent, p.eps = a.eps;
  p.k_type = a.k_cache.dtype, p.v_type = a.v_cache.dtype;
  p.k_rotation = static_cast<int>(kv_rotation(p.k_type, p.head_dim));
  p.v_rotation = static_cast<int>(kv_rotation(p.v_type, p.head_dim));
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

HeadRows head_rows(const MergedHeads& m) {
  HeadRows p = common_rows(m.args);
  const int q_dim = p.n_heads * p.head_dim, kv_dim = p.n_kv_heads * p.head_dim;
  p.q_from = m.merged.as<float>(), p.k_from = p.q_from + q_dim, p.v_from = p.k_from + kv_dim;
  p.q_stride = p.kv_stride = q_dim + 2 * kv_dim;
  p.q_bias = m.bq.as<float>(), p.k_bias = m.bk.as<float>(), p.v_bias = m.bv.as<float>();
  p.q_spans = m.args.spans_heads(m.args.q_norm), p.k_spans = m.args.spans_heads(m.args.k_norm);
  return p;
}

void rope_store(const RopeStoreArgs& a, cudaStream_t stream) {
  RopeStoreParams p{common_rows(a), a.q.as<float>(), a.k.as<float>(), a.q.rows()};
  p.q_from = p.q, p.k_from = p.k, p.v_from = a.v.as<float>();
  p.q_stride = p.n_heads * p.head_dim, p.kv_stride = p.n_kv_heads * p.head_dim;
  launch(p, stream);
}

void rope_store_merged(const MergedHeads& m, cudaStream_t stream) {
  launch({head_rows(m), m.args.q.as<float>(), nullptr, m.args.q.rows()}, stream);
}

}  // namespace infer::cuda
