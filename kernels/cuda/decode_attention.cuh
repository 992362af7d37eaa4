// The attention stage of a decode step: units of (token, KV head, up to 8 query heads, split of the positions). A unit
// norms and rotates its queries, the one that holds the newest position also norms, rotates and stores K and V, and each
// attends over its range with the tensor cores (attention_decode.cuh). Splits of one head meet in global memory: the
// last to arrive adds them up in fixed order, so the result does not depend on who that is.
#pragma once

#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/decode_stage.cuh"

namespace infer::cuda {

/// Where a unit's values lie in the CTA's activation area.
struct AttentionArea {
  float *q, *out, *k, *v, *row_max, *row_sum, *scratch;
  int* last;
  __device__ AttentionArea(uint8_t* area, int head_dim) {
    q = reinterpret_cast<float*>(area);
    out = q + kUnitRows * head_dim;
    k = out + kUnitRows * head_dim;
    v = k + head_dim;
    row_max = v + head_dim;
    row_sum = row_max + kUnitRows;
    last = reinterpret_cast<int*>(row_sum + kUnitRows);
    scratch = row_sum + 2 * kUnitRows;
  }
};

/// One warp brings one head of q or k from the exchange: norm (optional), factor, rotation.
__device__ inline void load_head(const float* from, float* to, int head_dim, const float* norm, float eps, float factor,
                                 const AttentionArg& a, int position, bool rotates) {
  const int lane = threadIdx.x % 32;
  float squares = 0;
  for (int i = lane * 4; i < head_dim; i += 128) {
    const float4 v = poll4(from + i);
    *reinterpret_cast<float4*>(to + i) = v;
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  if (norm) factor *= inverse_rms(warp_sum(squares), head_dim, eps);
  __syncwarp();
  for (int i = lane; i < head_dim; i += 32) to[i] *= norm ? factor * norm[i] : factor;
  __syncwarp();
  if (!rotates) return;
  const float2* table = reinterpret_cast<const float2*>(a.cos_sin) + static_cast<int64_t>(position) * a.rope_pairs;
  for (int p = lane; p < a.rope_pairs; p += 32) {
    const int i = a.adjacent ? 2 * p : p, j = a.adjacent ? 2 * p + 1 : p + a.rope_pairs;
    const float2 cs = table[p];
    const float x = to[i], y = to[j];
    to[i] = x * cs.x - y * cs.y;
    to[j] = x * cs.y + y * cs.x;
  }
  __syncwarp();
}

template <int kHeadDim>
__device__ __noinline__ void attend_f16(const AttentionUnit& unit, float* scratch) {
  attend_range<kHeadDim, CacheF16, kWarps>(unit, scratch);
}
template <int kHeadDim>
__device__ __noinline__ void attend_bf16(const AttentionUnit& unit, float* scratch) {
  attend_range<kHeadDim, CacheBF16, kWarps>(unit, scratch);
}
template <int kHeadDim>
__device__ __noinline__ void attend_q8(const AttentionUnit& unit, float* scratch) {
  attend_range<kHeadDim, CacheQ8_0, kWarps>(unit, scratch);
}
template <int kHeadDim>
__device__ __noinline__ void attend_f32(const AttentionUnit& unit, float* scratch) {
  attend_range<kHeadDim, CacheF32, kWarps>(unit, scratch);
}

template <int kHeadDim>
__device__ inline void attend_head_dim(DType type, const AttentionUnit& unit, float* scratch) {
  if (type == DType::F16) return attend_f16<kHeadDim>(unit, scratch);
  if (type == DType::BF16) return attend_bf16<kHeadDim>(unit, scratch);
  if constexpr (kHeadDim % 32 == 0)
    if (type == DType::Q8_0) return attend_q8<kHeadDim>(unit, scratch);
  attend_f32<kHeadDim>(unit, scratch);
}

__device__ inline void attend_any(const AttentionArg& a, const AttentionUnit& unit, float* scratch) {
  const DType type = static_cast<DType>(a.k_type);
  if (a.head_dim == 128) return attend_head_dim<128>(type, unit, scratch);
  if (a.head_dim == 64) return attend_head_dim<64>(type, unit, scratch);
  if (a.head_dim == 256) return attend_head_dim<256>(type, unit, scratch);
  if (a.head_dim == 96) return attend_head_dim<96>(type, unit, scratch);
  if (a.head_dim == 80) return attend_head_dim<80>(type, unit, scratch);
  attend_head_dim<32>(type, unit, scratch);
}

/// Publishes value `v` of the attention result at `at` of row m.
__device__ __forceinline__ void put_attention(const DecodeStage& s, const DecodeContext& ctx, int m, int at, float v) {
  const uint32_t copy = (ctx.parity + s.out_layer) & 1;
  const int64_t now = static_cast<int64_t>(copy) * ctx.n_rows + m, other = static_cast<int64_t>(copy ^ 1) * ctx.n_rows + m;
  put(s.out + now * s.out_width + at, s.out + other * s.out_width + at, v);
}

/// Adds up the splits of one part, of which each left 8 rows of [head_dim] sums, maximum, total.
static __device__ __noinline__ void combine_splits(const DecodeStage& s, const DecodeContext& ctx, int m, int first_head,
                                            int n_rows, const float* partial, int n_splits) {
  const AttentionArg& a = s.attention;
  const int stride = a.head_dim + 2;
  for (int i = threadIdx.x; i < n_rows * a.head_dim; i += kConsumers) {
    const int r = i / a.head_dim, d = i % a.head_dim;
    const float sink = a.sinks ? a.sinks[first_head + r] * kLog2e : -INFINITY;
    float top = sink;
    for (int p = 0; p < n_splits; ++p) top = fmaxf(top, __ldcg(partial + (p * kUnitRows + r) * stride + a.head_dim));
    float sum = 0, total = exp2_fast(sink - top);
    for (int p = 0; p < n_splits; ++p) {
      const float* of = partial + (p * kUnitRows + r) * stride;
      const float factor = exp2_fast(__ldcg(of + a.head_dim) - top);
      sum += factor * __ldcg(of + d);
      total += factor * __ldcg(of + a.head_dim + 1);
    }
    put_attention(s, ctx, m, (first_head + r) * a.head_dim + d, sum / total);
  }
}

static __device__ __noinline__ void attention_unit(const DecodeStage& s, DecodeContext& ctx, uint8_t* memory, int part,
                                            int split) {
  const AttentionArg& a = s.attention;
  const int group = a.n_heads / a.n_kv_heads, n_head_groups = ceil_div(group, kUnitRows);
  const int m = part / (a.n_kv_heads * n_head_groups), kv_head = part / n_head_groups % a.n_kv_heads,
            head_group = part % n_head_groups;
  const SplitPlan plan = plan_splits(a.kv_len[m], a.window, a.max_splits);
  if (split >= plan.n_splits) return;
  const int n_rows = min(kUnitRows, group - head_group * kUnitRows), first_head = kv_head * group + head_group * kUnitRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, position = a.positions[m], dim = a.head_dim;
  const AttentionArea area(memory, dim);
  const uint32_t copy = (ctx.parity + s.in_layer) & 1;
  const float* qkv = s.in + (static_cast<int64_t>(copy) * ctx.n_rows + m) * s.in_width;
  const bool newest = split == plan.n_splits - 1;
  consumer_sync();
  if (warp < n_rows) {
    load_head(qkv + (first_head + warp) * dim, area.q + warp * dim, dim, a.q_norm, a.eps, a.scale, a, position,
              a.rope_pairs > 0);
  } else if (newest && warp == kUnitRows) {
    load_head(qkv + (a.n_heads + kv_head) * dim, area.k, dim, a.k_norm, a.eps, 1.0f, a, position, a.rope_pairs > 0);
    store_kv(static_cast<DType>(a.k_type), a.k_cache, a.n_kv_heads, kv_head, dim, a.slots[m], area.k, lane);
  } else if (newest && warp == kUnitRows + 1) {
    load_head(qkv + (a.n_heads + a.n_kv_heads + kv_head) * dim, area.v, dim, nullptr, 0, 1.0f, a, position, false);
    store_kv(static_cast<DType>(a.v_type), a.v_cache, a.n_kv_heads, kv_head, dim, a.slots[m], area.v, lane);
  }
  consumer_sync();
  const AttentionUnit unit{area.q,  n_rows,  a.k_cache, a.v_cache, a.n_kv_heads,
                           kv_head, a.page_table + static_cast<int64_t>(m) * a.max_pages,
                           plan.begin(split), plan.end_of(split), a.softcap, area.out, area.row_max, area.row_sum};
  attend_any(a, unit, area.scratch);
  if (plan.n_splits == 1) {
    for (int i = threadIdx.x; i < n_rows * dim; i += kConsumers) {
      const int r = i / dim;
      float sum = area.out[i], total = area.row_sum[r];
      if (a.sinks) {
        const float sink = a.sinks[first_head + r] * kLog2e, top = fmaxf(sink, area.row_max[r]);
        const float factor = exp2_fast(area.row_max[r] - top);
        sum *= factor, total = total * factor + exp2_fast(sink - top);
      }
      put_attention(s, ctx, m, first_head * dim + i, sum / total);
    }
    return;
  }
  const int stride = dim + 2;
  float* partial = a.partial + static_cast<int64_t>(part) * a.max_splits * kUnitRows * stride;
  float* mine = partial + split * kUnitRows * stride;
  for (int i = threadIdx.x; i < n_rows * dim; i += kConsumers) mine[i / dim * stride + i % dim] = area.out[i];
  if (threadIdx.x < n_rows) {
    mine[threadIdx.x * stride + dim] = area.row_max[threadIdx.x];
    mine[threadIdx.x * stride + dim + 1] = area.row_sum[threadIdx.x];
  }
  __threadfence();
  consumer_sync();
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(a.arrived + part, 1) == plan.n_splits - 1;
    if (last) a.arrived[part] = 0;
    __threadfence();
    *area.last = last;
  }
  consumer_sync();
  if (*area.last) combine_splits(s, ctx, m, first_head, n_rows, partial, plan.n_splits);
}

__device__ inline void attention_stage(const DecodeStage& s, DecodeContext& ctx, uint8_t* memory) {
  const AttentionArg& a = s.attention;
  const int n_parts = ctx.n_rows * a.n_kv_heads * ceil_div(a.n_heads / a.n_kv_heads, kUnitRows);
  int unit = static_cast<int>(blockIdx.x) - s.first_cta;
  if (unit < 0) unit += gridDim.x;
  for (; unit < n_parts * a.max_splits; unit += gridDim.x) attention_unit(s, ctx, memory, unit % n_parts, unit / n_parts);
}

static_assert(kUnitRows == 8 && attend_shared_bytes<256, kWarps>() <= kAttendBytes &&
              attend_shared_bytes<32, kWarps>() <= kAttendBytes);

}  // namespace infer::cuda
