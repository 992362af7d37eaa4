// The attention stage of a decode step: units of (token, KV head, up to 8 query heads, split of the positions). A unit
// norms and rotates its queries, the one that holds the newest position also norms, rotates and stores K and V, and
// each attends over its range with the tensor cores (attention_decode.cuh). Splits of one head meet in global memory:
// the last to arrive adds them up in fixed order, so the result does not depend on who that is.
#pragma once

#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/decode_stage.cuh"

namespace infer::cuda {

/// What a CTA works on, in its activation area: first this, then q, out [8][head_dim] each, k, v [head_dim], scratch.
/// In shared memory and read again where it is needed: what the compiler parks in local memory costs a trip to the L2,
/// since the ring leaves hardly any L1.
struct UnitShared {
  AttentionUnit range;
  float row_max[kUnitRows], row_sum[kUnitRows];
  float *k, *v, *scratch, *partial;  ///< partial: of this unit, where several splits meet
  int m, first_head, part, split, n_splits, last;
};
static_assert(sizeof(UnitShared) <= 512);

__device__ __forceinline__ UnitShared& unit_at(int area) {
  return *reinterpret_cast<UnitShared*>(decode_memory + area);
}

/// One warp brings one head of q or k from the exchange: norm (optional), factor, rotation.
__device__ inline void load_head(const float* from, float* to, int head_dim, const float* norm, float eps, float factor,
                                 const AttentionArg& a, int position, bool rotates) {
  constexpr int kMostPairs = 4;  // of a lane: heads of 256
  const int lane = threadIdx.x % 32;
  const float2* table = reinterpret_cast<const float2*>(a.cos_sin) + static_cast<int64_t>(position) * a.rope_pairs;
  float2 turn[kMostPairs];  // asked for before the wait
#pragma unroll
  for (int k = 0; k < kMostPairs; ++k)
    if (rotates && lane + 32 * k < a.rope_pairs) turn[k] = table[lane + 32 * k];
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
#pragma unroll
  for (int k = 0; k < kMostPairs; ++k) {
    const int p = lane + 32 * k;
    if (p >= a.rope_pairs) break;
    const int i = a.adjacent ? 2 * p : p, j = a.adjacent ? 2 * p + 1 : p + a.rope_pairs;
    const float x = to[i], y = to[j];
    to[i] = x * turn[k].x - y * turn[k].y;
    to[j] = x * turn[k].y + y * turn[k].x;
  }
  __syncwarp();
}

/// Publishes value `v` of the attention result at `at` of row m.
__device__ __forceinline__ void put_attention(const DecodeStage& s, const DecodeContext& ctx, int m, int at, float v) {
  const uint32_t copy = (ctx.parity + s.out_layer) & 1;
  const int64_t now = static_cast<int64_t>(copy) * ctx.n_rows + m,
                other = static_cast<int64_t>(copy ^ 1) * ctx.n_rows + m;
  put(s.out + now * s.out_width + at, s.out + other * s.out_width + at, v);
}

/// Adds up the splits of one part, of which each left 8 rows of [head_dim] sums, maximum, total.
static __device__ __noinline__ void combine_splits(int m, int first_head, int n_rows, const float* partial,
                                                   int n_splits) {
  const DecodeStage& s = current_stage();
  const DecodeContext& ctx = decode_context;
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

/// Asks the L2 for the first pages of a unit, while the queries are still on their way.
__device__ inline void prefetch_pages(const AttentionArg& a, const int32_t* pages, int kv_head, int begin, int end) {
  constexpr int kMostPages = 8;
  const DType type = static_cast<DType>(a.k_type);
  const int bytes = static_cast<int>(head_page_bytes(type, a.head_dim)), lines = bytes / 128;
  const int first = begin / kPageTokens, n = min(kMostPages, ceil_div(end, static_cast<int>(kPageTokens)) - first);
  for (int i = threadIdx.x; i < n * 2 * lines; i += kConsumers) {
    const uint8_t* cache = i / lines % 2 ? a.v_cache : a.k_cache;
    const uint8_t* page = head_page(cache, bytes, a.n_kv_heads, pages[first + i / (2 * lines)], kv_head);
    asm volatile("prefetch.global.L2 [%0];" ::"l"(page + i % lines * 128));
  }
}

/// Queries, and the newest position's key and value, from the exchange: one warp a head.
static __device__ __noinline__ void prepare_unit(int area) {
  const DecodeStage& s = current_stage();
  const DecodeContext& ctx = decode_context;
  const AttentionArg& a = s.attention;
  const UnitShared& u = unit_at(area);
  const int warp = threadIdx.x / 32, dim = a.head_dim, kv_head = u.range.kv_head;
  const bool newest = u.split == u.n_splits - 1, key = warp == kUnitRows, value = warp == kUnitRows + 1;
  if (warp < u.range.n_rows || (newest && (key || value))) {
    const uint32_t copy = (ctx.parity + s.in_layer) & 1;
    const float* qkv = s.in + (static_cast<int64_t>(copy) * ctx.n_rows + u.m) * s.in_width;
    const int head = key ? a.n_heads + kv_head : value ? a.n_heads + a.n_kv_heads + kv_head : u.first_head + warp;
    float* to = key ? u.k : value ? u.v : const_cast<float*>(u.range.q) + warp * dim;
    const float* norm = key ? a.k_norm : value ? nullptr : a.q_norm;
    load_head(qkv + head * dim, to, dim, norm, a.eps, key || value ? 1.0f : a.scale, a, ctx.position[u.m],
              !value && a.rope_pairs > 0);
    if (key || value)
      store_kv(static_cast<DType>(a.k_type), key ? a.k_cache : a.v_cache, a.n_kv_heads, kv_head, dim,
               ctx.cache_slot[u.m], to, threadIdx.x % 32);
  }
  consumer_sync();
}

/// A sum of the unit, on its way: to the other CTAs, or to where the splits meet.
__device__ __forceinline__ void emit_sum(const DecodeStage& s, const DecodeContext& ctx, const UnitShared& u,
                                         int head_dim, int head, int dim, float sum) {
  if (u.n_splits > 1) {
    u.partial[head * (head_dim + 2) + dim] = sum;
    return;
  }
  const float* sinks = s.attention.sinks;
  float total = u.row_sum[head];
  if (sinks) {
    const float sink = sinks[u.first_head + head] * kLog2e, top = fmaxf(sink, u.row_max[head]);
    const float factor = exp2_fast(u.row_max[head] - top);
    sum *= factor, total = total * factor + exp2_fast(sink - top);
  }
  put_attention(s, ctx, u.m, (u.first_head + head) * head_dim + dim, sum / total);
}

/// After the unit's partial results are written: the last split of a part to arrive adds them all up.
static __device__ __noinline__ void meet_splits(int area) {
  const DecodeStage& s = current_stage();
  const DecodeContext& ctx = decode_context;
  const AttentionArg& a = s.attention;
  UnitShared& u = unit_at(area);
  const int stride = a.head_dim + 2;
  if (threadIdx.x < u.range.n_rows) {
    float* mine = u.partial + threadIdx.x * stride + a.head_dim;
    mine[0] = u.row_max[threadIdx.x], mine[1] = u.row_sum[threadIdx.x];
  }
  __threadfence();
  consumer_sync();
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(a.arrived + u.part, 1) == u.n_splits - 1;
    if (last) a.arrived[u.part] = 0;
    __threadfence();
    u.last = last;
  }
  consumer_sync();
  if (u.last)
    combine_splits(u.m, u.first_head, u.range.n_rows,
                   a.partial + static_cast<int64_t>(u.part) * a.max_splits * kUnitRows * stride, u.n_splits);
}

template <int kHeadDim, class Cache>
static __device__ __noinline__ void attend(int area) {
  const DecodeStage& s = current_stage();
  DecodeContext& ctx = decode_context;
  const UnitShared& u = unit_at(area);
  attend_range<kHeadDim, Cache, kWarps, 2>(
      u.range, u.scratch, [&] { prepare_unit(area); },
      [&](int head, int dim, float sum) { emit_sum(s, ctx, u, kHeadDim, head, dim, sum); });
}

template <int kHeadDim>
__device__ inline void attend_head_dim(int area) {
  const DecodeStage& s = current_stage();
  const DType type = static_cast<DType>(s.attention.k_type);
  if (type == DType::F16) return attend<kHeadDim, CacheF16>(area);
  if (type == DType::BF16) return attend<kHeadDim, CacheBF16>(area);
  if constexpr (kHeadDim % 32 == 0)
    if (type == DType::Q8_0) return attend<kHeadDim, CacheQ8_0>(area);
  attend<kHeadDim, CacheF32>(area);
}

__device__ inline void attend_any(int area) {
  const DecodeStage& s = current_stage();
  const int head_dim = s.attention.head_dim;
  if (head_dim == 128) return attend_head_dim<128>(area);
  if (head_dim == 64) return attend_head_dim<64>(area);
  if (head_dim == 256) return attend_head_dim<256>(area);
  if (head_dim == 96) return attend_head_dim<96>(area);
  if (head_dim == 80) return attend_head_dim<80>(area);
  attend_head_dim<32>(area);
}

/// One thread writes down what a unit is; false when this sequence has no such split. The same for all threads.
static __device__ __noinline__ bool name_unit(int area, int part, int split) {
  const DecodeStage& s = current_stage();
  const DecodeContext& ctx = decode_context;
  const AttentionArg& a = s.attention;
  const int group = a.n_heads / a.n_kv_heads, n_head_groups = ceil_div(group, kUnitRows);
  const int m = part / (a.n_kv_heads * n_head_groups), head_group = part % n_head_groups;
  const SplitPlan plan = plan_splits(ctx.kv_len[m], a.window, a.max_splits);
  if (split >= plan.n_splits) return false;
  if (threadIdx.x == 0) {
    UnitShared& u = unit_at(area);
    float* numbers = reinterpret_cast<float*>(decode_memory + area + 512);
    const int kv_head = part / n_head_groups % a.n_kv_heads;
    u.range.q = numbers, u.range.out = numbers + kUnitRows * a.head_dim;
    u.k = numbers + 2 * kUnitRows * a.head_dim, u.v = u.k + a.head_dim, u.scratch = u.v + a.head_dim;
    u.range.n_rows = min(kUnitRows, group - head_group * kUnitRows);
    u.range.k_cache = a.k_cache, u.range.v_cache = a.v_cache, u.range.n_kv_heads = a.n_kv_heads;
    u.range.kv_head = kv_head, u.range.softcap = a.softcap;
    u.range.begin = plan.begin(split), u.range.end = plan.end_of(split);
    u.range.pages =
        u.range.end <= kKeptPages * kPageTokens ? ctx.pages[m] : a.page_table + static_cast<int64_t>(m) * a.max_pages;
    u.range.row_max = u.row_max, u.range.row_sum = u.row_sum;
    u.m = m, u.first_head = kv_head * group + head_group * kUnitRows;
    u.part = part, u.split = split, u.n_splits = plan.n_splits;
    u.partial = a.partial + (static_cast<int64_t>(part) * a.max_splits + split) * kUnitRows * (a.head_dim + 2);
  }
  return true;
}

static __device__ __noinline__ void attention_stage(int area) {
  const DecodeStage& s = current_stage();
  DecodeContext& ctx = decode_context;
  const AttentionArg& a = s.attention;
  const int n_parts = ctx.n_rows * a.n_kv_heads * ceil_div(a.n_heads / a.n_kv_heads, kUnitRows);
  int unit = static_cast<int>(blockIdx.x) - s.first_cta;
  if (unit < 0) unit += gridDim.x;
  for (; unit < n_parts * a.max_splits; unit += gridDim.x) {
    if (!name_unit(area, unit % n_parts, unit / n_parts)) continue;
    consumer_sync();
    const UnitShared& u = unit_at(area);
    prefetch_pages(a, u.range.pages, u.range.kv_head, u.range.begin, u.range.end);
    attend_any(area);
    if (u.n_splits > 1) meet_splits(area);
    consumer_sync();  // before the area is used again
  }
}

static_assert(kUnitRows == 8 && attend_shared_bytes<256, kWarps>() <= kAttendBytes &&
              attend_shared_bytes<32, kWarps>() <= kAttendBytes);

}  // namespace infer::cuda
