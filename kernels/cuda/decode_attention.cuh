// The attention stage of a decode step: units of (token, KV head, up to 8 query heads, split of the positions). A unit
// norms and rotates its queries, the one that holds the newest position also norms, rotates and stores K and V, and
// each attends over its range with the tensor cores (attention_decode.cuh). Keys and values come through the ring.
// Splits of one head meet in an exchange of their own, where each adds up a share of the results.
#pragma once

#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/cache_pairs.h"
#include "kernels/cuda/decode_stage.cuh"
#include "kernels/cuda/head_sizes.h"

namespace infer::cuda {

/// What a CTA works on, in its activation area: first this, then q [8][head_dim], k, v [head_dim], scratch.
/// In shared memory and read again where it is needed: what the compiler parks in local memory costs a trip to the L2,
/// since the ring leaves hardly any L1.
struct UnitShared {
  AttentionUnit range;
  float row_max[kUnitRows], row_sum[kUnitRows];
  int m, first_head, part, split, n_splits;
  // Found before the queries are there, see find_places().
  float *now, *other;  ///< where sums of head 0 go: to the other CTAs, with a place to empty, or to where splits meet
  int stride;          ///< of a head there
  float *out, *out_other;              ///< where results of head 0 go, and the place to empty
  const float* sinks;                  ///< of head 0, or null
  const float* meet;                   ///< where the splits meet: split 0, head 0
  int first_value, last_value, lanes;  ///< of the values that this split adds up, [heads][head_dim]; threads for each
};
static_assert(sizeof(UnitShared) <= 512);

__device__ __forceinline__ UnitShared& unit_at(int area) {
  return *reinterpret_cast<UnitShared*>(decode_memory() + area);
}
// By offsets from decode_memory, never through pointers in the struct: those would be generic ones.
__device__ __forceinline__ float* unit_numbers(int area, int at) {
  return reinterpret_cast<float*>(decode_memory() + area + 512) + at;
}
__device__ __forceinline__ float* unit_q(int area) { return unit_numbers(area, 0); }
__device__ __forceinline__ float* unit_k(int area, int head_dim) { return unit_numbers(area, kUnitRows * head_dim); }
__device__ __forceinline__ float* unit_v(int area, int head_dim) { return unit_k(area, head_dim) + head_dim; }
__device__ __forceinline__ float* unit_scratch(int area, int head_dim) { return unit_k(area, head_dim) + 2 * head_dim; }
/// Results of what is not done by tensor cores [8][head_dim]: the end of the scratch, of which that takes little.
__device__ __forceinline__ float* unit_results(int area, int head_dim) {
  return unit_scratch(area, head_dim) + kAttendBytes / 4 - kUnitRows * head_dim;
}

/// The warps that bring the newest position's key and value; those before them bring queries.
inline constexpr int kKeyWarp = kUnitRows, kValueWarp = kUnitRows + 1;

/// Where a norm of q or of k spans all heads: the warps that bring no head add up the squares of all of them, and then
/// those that do take the factor to what they have prepared without it.
static __device__ __noinline__ void norm_all_heads(int area) {
  const DecodeStage& s = current_stage();
  const AttentionArg& a = s.attention;
  DecodeContext& ctx = decode_context();
  const UnitShared& u = unit_at(area);
  const int m = u.m, head_dim = a.head_dim, n_q = a.n_heads * head_dim, n = n_q + a.n_kv_heads * head_dim;
  const int warp = this_warp(), n_idle = kKeyWarp - u.range.n_rows, n_helpers = n_idle + kWarps - kValueWarp - 1;
  const int helper = warp > kValueWarp ? n_idle + warp - kValueWarp - 1 : warp < kKeyWarp ? warp - u.range.n_rows : -1;
  const float* row = s.in + static_cast<int64_t>(m) * s.in_width;
  constexpr int kAtOnce = 4;
  float of_q = 0, of_k = 0;
  if (helper >= 0)
    for (int first = (helper * 32 + static_cast<int>(threadIdx.x % 32)) * 4; first < n;
         first += n_helpers * 128 * kAtOnce) {
      uint4 v[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = first + k * n_helpers * 128;
        v[k] = i < n ? load_relaxed4(row + i) : uint4{};
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = first + k * n_helpers * 128;
        if (i >= n) break;
        poll_on(row + i, v[k]);
        const float4 x = as_floats(v[k]);
        (i < n_q ? of_q : of_k) += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
      }
    }
  of_q = warp_sum(of_q), of_k = warp_sum(of_k);
  if (threadIdx.x % 32 == 0) ctx.reduce[m][warp] = of_q, ctx.branch_reduce[m][warp] = of_k;
  consumer_sync();
  const bool key = warp == kKeyWarp;
  if (!(key ? a.k_spans : warp < u.range.n_rows && a.q_spans)) return;
  const float factor = inverse_rms(total(key ? ctx.branch_reduce[m] : ctx.reduce[m]), key ? n - n_q : n_q, a.eps);
  float* head = key ? unit_k(area, head_dim) : unit_q(area) + warp * head_dim;
  for (int i = static_cast<int>(threadIdx.x % 32); i < head_dim; i += 32) head[i] *= factor;
}

/// One warp brings one head of q or k from the exchange: norm (optional), factor, rotation. spans: without the
/// norm's factor, which is of all heads.
template <int kHeadDim, bool kExperts>
__device__ __forceinline__ void load_head(const float* from, float* to, const float* norm, bool spans, float factor,
                                          const AttentionArg& a, int position, bool rotates, int rotation) {
  constexpr int kMostPairs = ceil_div(kHeadDim, 64), kLoads = ceil_div(kHeadDim, 128);  // of a lane
  const int lane = threadIdx.x % 32;
  const float2* table = reinterpret_cast<const float2*>(a.cos_sin) + static_cast<int64_t>(position) * a.rope_pairs;
  float2 turn[kMostPairs];  // asked for before the wait
#pragma unroll
  for (int k = 0; k < kMostPairs; ++k)
    turn[k] = rotates && lane + 32 * k < a.rope_pairs ? table[lane + 32 * k] : make_float2(1, 0);
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    const int i = lane * 4 + 128 * k;
    if (kHeadDim % 128 != 0 && i >= kHeadDim) continue;
    float4 v = poll4(from + i);
    if (norm) {
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
      const float4 w = *reinterpret_cast<const float4*>(norm + i);
      v.x *= w.x, v.y *= w.y, v.z *= w.z, v.w *= w.w;
    }
    *reinterpret_cast<float4*>(to + i) = v;
  }
  if (norm && !(kExperts && spans)) factor *= inverse_rms(warp_sum(squares), kHeadDim, a.eps);
  __syncwarp();
  // Pairs that turn, then what is left where a head turns in part only; the factor on the way.
#pragma unroll
  for (int k = 0; k < kMostPairs; ++k) {
    const int p = lane + 32 * k;
    if (!rotates || p >= a.rope_pairs) break;
    const int i = a.adjacent ? 2 * p : p, j = a.adjacent ? 2 * p + 1 : p + a.rope_pairs;
    const float x = to[i] * factor, y = to[j] * factor;
    to[i] = x * turn[k].x - y * turn[k].y;
    to[j] = x * turn[k].y + y * turn[k].x;
  }
  for (int i = (rotates ? 2 * a.rope_pairs : 0) + lane; i < kHeadDim; i += 32) to[i] *= factor;
  hadamard(to, kHeadDim, rotation, lane);
}

/// Queries, and the newest position's key and value, from the exchange: one warp a head.
template <int kHeadDim, bool kExperts>
__device__ __forceinline__ void prepare_unit(int area) {
  const DecodeStage& s = current_stage();
  const DecodeContext& ctx = decode_context();
  const AttentionArg& a = s.attention;
  const UnitShared& u = unit_at(area);
  constexpr int dim = kHeadDim;
  const int warp = this_warp(), kv_head = u.range.kv_head;
  const bool newest = u.split == u.n_splits - 1, key = warp == kKeyWarp, value = warp == kValueWarp;
  if (warp < u.range.n_rows || (newest && (key || value))) {
    const float* qkv = s.in + static_cast<int64_t>(u.m) * s.in_width;
    const int head = key ? a.n_heads + kv_head : value ? a.n_heads + a.n_kv_heads + kv_head : u.first_head + warp;
    float* to = key ? unit_k(area, dim) : value ? unit_v(area, dim) : unit_q(area) + warp * dim;
    const float* norm = key ? a.k_norm : value ? nullptr : a.q_norm;
    const bool spans = kExperts && (key ? a.k_spans : !value && a.q_spans);
    if (spans) norm += (key ? kv_head : head) * dim;
    load_head<dim, kExperts>(qkv + head * dim, to, norm, spans, key || value ? 1.0f : a.scale, a, ctx.position[u.m],
                             !value && a.rope_pairs > 0, value ? a.v_rotation : a.k_rotation);
  }
  if (kExperts && (a.q_spans || a.k_spans)) norm_all_heads(area);
  consumer_sync();
}

/// The newest position's key and value into the cache, by the warps that prepared them.
template <int kHeadDim, class Cache>
__device__ __forceinline__ void store_newest(int area) {
  const UnitShared& u = unit_at(area);
  const int warp = this_warp(), lane = static_cast<int>(threadIdx.x % 32);
  if (u.split != u.n_splits - 1 || (warp != kKeyWarp && warp != kValueWarp)) return;
  const AttentionArg& a = current_stage().attention;
  const int slot = decode_context().cache_slot[u.m];
  if (warp == kKeyWarp)
    store_kv<typename Cache::Keys>(a.k_cache, a.n_kv_heads, u.range.kv_head, kHeadDim, slot, unit_k(area, kHeadDim),
                                   lane);
  else
    store_kv<typename Cache::Values>(a.v_cache, a.n_kv_heads, u.range.kv_head, kHeadDim, slot, unit_v(area, kHeadDim),
                                     lane);
}

/// Where a copy of the exchange has what a split of a part found, f32 [8][head_dim + 2]: value head_dim of a row is its
/// maximum, the one after it the total.
__device__ __forceinline__ float* meeting_place(float* copy, const AttentionArg& a, int part, int split) {
  return copy + (static_cast<int64_t>(part) * a.max_splits + split) * kUnitRows * (a.head_dim + 2);
}

/// By one thread: where the sums of a unit go, to the other CTAs or with their maxima and totals to where the splits
/// meet, and what this split adds up there.
__device__ __forceinline__ void find_places(UnitShared& u, const DecodeStage& s, int head_dim) {
  const int64_t at = static_cast<int64_t>(u.m) * s.out_width + u.first_head * head_dim;
  u.out = s.out + at, u.out_other = s.other + at;
  u.sinks = s.attention.sinks ? s.attention.sinks + u.first_head : nullptr;
  u.now = u.out, u.other = u.out_other, u.stride = head_dim;
  const int n = u.n_splits;
  if (n == 1) return;
  const int n_values = u.range.n_rows * head_dim;
  u.meet = meeting_place(s.attention.meet, s.attention, u.part, 0);
  u.now = meeting_place(s.attention.meet, s.attention, u.part, u.split), u.other = nullptr, u.stride = head_dim + 2;
  u.first_value = n_values * u.split / n, u.last_value = n_values * (u.split + 1) / n;
  u.lanes = n > 16 ? 32 : n > 8 ? 16 : n > 4 ? 8 : n > 2 ? 4 : 2;
}
__device__ __forceinline__ void emit(const UnitShared& u, int head, int dim, float sum) {
  const float highest = u.row_max[head];
  float total = u.row_sum[head], *now = u.now + head * u.stride + dim;
  if (u.n_splits > 1) {
    put_value(now, sum);
    if (dim == 0) put_value(now + u.stride - 2, highest), put_value(now + u.stride - 1, total);
    return;
  }
  if (u.sinks) {
    const float sink = u.sinks[head] * kLog2e, top = fmaxf(sink, highest);
    const float factor = exp2_fast(highest - top);
    sum *= factor, total = total * factor + exp2_fast(sink - top);
  }
  put(now, u.other + head * u.stride + dim, __fdividef(sum, total));
}

/// Any cache that does not pass through the ring.
template <int kHeadDim, class Cache, bool kExperts>
static __device__ __noinline__ void attend_pages(int area) {
  const UnitShared& u = unit_at(area);
  const auto prepare = [&] {
    prepare_unit<kHeadDim, kExperts>(area);
    store_newest<kHeadDim, Cache>(area);
    if (u.n_splits == 1) announce(u.part);
    consumer_sync();
  };
  attend_range<kHeadDim, Cache, kWarps, 2>(u.range, unit_scratch(area, kHeadDim), prepare,
                                           [&](int head, int dim, float sum) { emit(u, head, dim, sum); });
}

/// Keys and values out of the ring, chunk by chunk, like weights. A team takes one chunk in turn; its blocks go to one
/// or two warps of it, the next chunk's to the next ones, so that who takes a block depends on nothing but its number
/// in the unit. The newest position, which the ring cannot have, is put into the slot from where prepare_unit left it.
template <int kHeadDim, class Cache, int M, bool kExperts>
static __device__ __noinline__ void attend(int area) {
  using Keys = typename Cache::Keys;
  using Values = typename Cache::Values;
  constexpr int kKeyBytes = static_cast<int>(head_page_bytes(Keys::id, kHeadDim)),
                kValueBytes = static_cast<int>(head_page_bytes(Values::id, kHeadDim));
  constexpr int kKeys = ring_chunk_keys(kKeyBytes + kValueBytes), kBlocks = kKeys / kBlockKeys;
  constexpr int kWorkers = team_warps(M) / kBlocks;  // of a team, each for the blocks of a chunk
  static_assert(kKeys == kPageTokens || (!Keys::codes && !Values::codes), "half a page of codes is not contiguous");
  DecodeContext& ctx = decode_context();
  UnitShared& u = unit_at(area);
  float* scratch = unit_scratch(area, kHeadDim);
  float* numbers = scratch + kWarps * 2 * kUnitRows;
  uint4* query = reinterpret_cast<uint4*>(numbers);
  prepare_unit<kHeadDim, kExperts>(area);
  AttentionUnit unit{};
  unit.q = unit_q(area), unit.n_rows = u.range.n_rows, unit.softcap = u.range.softcap;
  unit.begin = u.range.begin, unit.end = u.range.end, unit.row_max = u.row_max, unit.row_sum = u.row_sum;
  make_query_fragments<kHeadDim, Cache, kWarps>(unit, query);
  consumer_sync();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, worker = warp % team_warps(M) / kBlocks;
  const int row = warp % kBlocks * kBlockKeys, first = unit.begin / kKeys;
  const int n_chunks = ceil_div(unit.end, kKeys) - first, newest = u.split == u.n_splits - 1 ? unit.end - 1 : -1;
  RingPlace place = ctx.walk[warp].place;
  const int rank = (place.skip + worker * n_teams(M)) * kBlocks + warp % kBlocks;
  WarpState<kHeadDim, Cache, FromShared> state;
  for_chunks<M>(n_chunks, ctx.n_slots, ctx.slot_bytes, place, [&](uint8_t* k, int i) {
    if (i / n_teams(M) % kWorkers != worker) return;
    uint8_t* v = k + kKeyBytes / kPageTokens * kKeys;
    const int position = (first + i) * kKeys + row;
    if (position >= unit.end || position + kBlockKeys <= unit.begin) return;  // no weights of nothing
    if (newest >= position && newest < position + kBlockKeys) {
      store_cache_row(Keys::id, k, kHeadDim, row + newest - position, unit_k(area, kHeadDim), lane);
      store_cache_row(Values::id, v, kHeadDim, row + newest - position, unit_v(area, kHeadDim), lane);
      before_refill();
      __syncwarp();
    }
    attend_block<kHeadDim, Cache, FromShared>(unit, query, k, v, row, position, state);
  });
  __syncwarp();  // all have read where the team was
  if (lane == 0) ctx.walk[warp].place = place;
  const int n_active = min(n_chunks, kWarps / kBlocks) * kBlocks;
  if (u.n_splits == 1) announce(u.part);
  merge_warps<kHeadDim, Cache, FromShared, kWarps, 2>(unit, state, scratch, numbers, rank, n_active,
                                                      [&](int head, int dim, float sum) { emit(u, head, dim, sum); });
  store_newest<kHeadDim, Cache>(area);
}

/// Whether attend_any() has the pairs that the table promises: those of one type, and q8_0 with q4_0.
constexpr bool has_persistent_pairs() {
  for (const CachePairRow& row : kCachePairs)
    if (row.persistent && row.k != row.v && !(row.k == DType::Q8_0 && row.v == DType::Q4_0)) return false;
  return true;
}
static_assert(has_persistent_pairs());

template <int M, bool kExperts>
__device__ inline void attend_any(int area) {
  const AttentionArg& a = current_stage().attention;
  visit_head_size(a.head_dim, [&]<int kHeadDim>() {
    const DType type = static_cast<DType>(a.k_type);
    if (type == DType::F16) return attend<kHeadDim, CacheF16, M, kExperts>(area);
    if (type == DType::BF16) return attend<kHeadDim, CacheBF16, M, kExperts>(area);
    if constexpr (kHeadDim % 32 == 0) {
      if (type == DType::Q8_0)
        return a.v_type == a.k_type ? attend<kHeadDim, CacheQ8_0, M, kExperts>(area)
                                    : attend<kHeadDim, CachePair<CacheQ8_0, CacheQ4_0>, M, kExperts>(area);
      if (type == DType::Q4_0) return attend<kHeadDim, CacheQ4_0, M, kExperts>(area);
    }
    attend_pages<kHeadDim, CacheF32, kExperts>(area);
  });
}

/// What a unit is: query heads [first_head, ...) of row m, and the positions of a split.
struct UnitName {
  int m, kv_head, head_group;
  SplitPlan plan;
};
// Divisions take 100 cycles, so there are none where there is nothing to divide.
__device__ __forceinline__ UnitName unit_name(const AttentionArg& a, int part) {
  UnitName u;
  const int of_token = a.n_kv_heads * a.n_head_groups;
  for (u.m = 0; part >= of_token; ++u.m) part -= of_token;
  u.kv_head = part, u.head_group = 0;
  if (a.n_head_groups > 1) u.kv_head = part / a.n_head_groups, u.head_group = part % a.n_head_groups;
  u.plan = plan_splits(decode_context().kv_len[u.m], a.window, a.max_splits);
  return u;
}
/// Query heads of the unit, and the first of them.
__device__ __forceinline__ int unit_rows(const AttentionArg& a, int head_group) {
  return min(kUnitRows, a.group - head_group * kUnitRows);
}
__device__ __forceinline__ int unit_head(const AttentionArg& a, const UnitName& u) {
  return u.kv_head * a.group + u.head_group * kUnitRows;
}
/// The page numbers of the positions [0, end) of row m.
__device__ __forceinline__ const int32_t* unit_pages(const AttentionArg& a, int m, int end) {
  return end <= kKeptPages * kPageTokens ? decode_context().pages[m]
                                         : a.page_table + static_cast<int64_t>(m) * a.max_pages;
}
/// Calls f(part, split) for the units of this CTA.
template <class F>
__device__ __forceinline__ void for_units(const DecodeStage& s, const F& f) {
  const AttentionArg& a = s.attention;
  const int n_parts = decode_context().n_rows * a.n_kv_heads * a.n_head_groups;
  int unit = static_cast<int>(blockIdx.x) - s.first_cta;
  if (unit < 0) unit += grid_size();
  for (; unit < n_parts * a.max_splits; unit += grid_size()) {
    int part = unit, split = 0;
    if (unit >= n_parts) part = unit % n_parts, split = unit / n_parts;
    f(part, split);
  }
}

/// Empties a split's places in the other copy: by whoever would fill them, whether or not there is such a split now,
/// since there may have been one a layer ago.
__device__ __forceinline__ void empty_meeting_places(int part, int split) {
  const DecodeStage& s = current_stage();
  if (s.attention.max_splits == 1) return;
  float* other = meeting_place(s.attention.meet_other, s.attention, part, split);
  const int rows = min(kUnitRows, s.attention.group);
  for (int i = threadIdx.x; i < rows * (s.attention.head_dim + 2); i += kConsumers) store_relaxed(other + i, kEmpty);
}

/// Every split of a part takes its share of the results and adds up what all of them found. A group of lanes takes a
/// value, each of them what one split says of it (or several), so that all of it is one trip to the L2, and the order
/// of the sum is always the same.
static __device__ __noinline__ void meet_splits(int area) {
  const AttentionArg& a = current_stage().attention;
  const UnitShared& u = unit_at(area);
  const int head_dim = a.head_dim, n = u.n_splits, lanes = u.lanes, lane = threadIdx.x % lanes, last = u.last_value;
  for (int base = u.first_value; base < last; base += kConsumers / lanes) {
    const int i = base + threadIdx.x / lanes, row = i / head_dim, dim = i % head_dim;
    const float* of_row = u.meet + row * (head_dim + 2);
    const float sink = u.sinks && i < last ? u.sinks[row] * kLog2e : -INFINITY;
    float top = sink, total = 0, sum = 0;
    for (int p = lane; p < n && i < last; p += lanes) {
      const float* found = of_row + p * kUnitRows * (head_dim + 2);
      uint32_t v, highest, t, tries = 0;
      while (true) {
        v = load_relaxed(found + dim), highest = load_relaxed(found + head_dim), t = load_relaxed(found + head_dim + 1);
        if (v != kEmpty && highest != kEmpty && t != kEmpty) break;
        pause(tries);
      }
      const float now = fmaxf(top, __uint_as_float(highest));
      const float old = weight_below(top, now), factor = weight_below(__uint_as_float(highest), now);
      sum = sum * old + factor * __uint_as_float(v), total = total * old + factor * __uint_as_float(t), top = now;
    }
    float highest = top;
    for (int step = lanes / 2; step > 0; step /= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, step));
    sum *= weight_below(top, highest), total *= weight_below(top, highest);
    for (int step = lanes / 2; step > 0; step /= 2)
      sum += __shfl_xor_sync(~0u, sum, step), total += __shfl_xor_sync(~0u, total, step);
    if (u.sinks) total += weight_below(sink, highest);
    if (lane == 0 && i < last) put(u.out + i, u.out_other + i, __fdividef(sum, total));
  }
}

/// One thread writes down what a unit is; false when this sequence has no such split. The same for all threads.
static __device__ __noinline__ bool name_unit(int area, int part, int split) {
  const DecodeStage& s = current_stage();
  const AttentionArg& a = s.attention;
  const UnitName name = unit_name(a, part);
  if (split >= name.plan.n_splits) return false;
  if (threadIdx.x == 0) {
    UnitShared& u = unit_at(area);
    u.range.q = unit_q(area), u.range.out = unit_results(area, a.head_dim);
    u.range.n_rows = unit_rows(a, name.head_group);
    u.range.k_cache = a.k_cache, u.range.v_cache = a.v_cache, u.range.n_kv_heads = a.n_kv_heads;
    u.range.kv_head = name.kv_head, u.range.softcap = a.softcap;
    u.range.begin = name.plan.begin(split), u.range.end = name.plan.end_of(split);
    u.range.pages = unit_pages(a, name.m, u.range.end);
    u.range.row_max = u.row_max, u.range.row_sum = u.row_sum;
    u.m = name.m, u.first_head = unit_head(a, name);
    u.part = part, u.split = split, u.n_splits = name.plan.n_splits;
    find_places(u, s, a.head_dim);
  }
  return true;
}

/// All that this CTA can find by itself comes first, and only then what others have found: where CTAs have more than
/// one unit, those of a part may be on CTAs that each wait for the other. What the next stage wants to know first is
/// found while nothing else can be done; that stage has a barrier before it uses the area.
template <int M, bool kExperts>
static __device__ __noinline__ void attention_stage(int area, bool has_next) {
  consumer_sync();  // all have left the stage before, whose description the next one's copies may replace
  if (threadIdx.x % 32 == 0) {
    WarpWalk& walk = this_walk();
    walk.found = has_next, walk.attended = walk.meets = false;
    const AttentionArg& a = current_stage().attention;
    for (int m = 0; m < decode_context().n_rows; ++m)
      walk.meets = walk.meets || plan_splits(decode_context().kv_len[m], a.window, a.max_splits).n_splits > 1;
    if (has_next) begin_product<M>(after_which(walk.which));
  }
  __syncwarp();
  for_units(current_stage(), [&](int part, int split) {
    empty_meeting_places(part, split);
    consumer_sync();  // before the area is used again
    if (!name_unit(area, part, split)) return;
    consumer_sync();
    if (threadIdx.x % 32 == 0) this_walk().attended = true;
    attend_any<M, kExperts>(area);
    if (unit_at(area).n_splits > 1 && current_stage().n_units <= grid_size()) meet_splits(area);
  });
  wait_for_copies();  // of a description that is not needed before the next stage's barriers
  if (!this_walk().meets || current_stage().n_units <= grid_size()) return;
  for_units(current_stage(), [&](int part, int split) {
    consumer_sync();  // before the area is used again
    if (!name_unit(area, part, split)) return;
    consumer_sync();
    if (unit_at(area).n_splits > 1) meet_splits(area);
  });
}

/// What the fetching warp does for an attention stage: keys and values of all chunks of this CTA's units.
__device__ __forceinline__ void fetch_cache(Fetcher& fetcher, const DecodeStage& s) {
  constexpr int kAhead = 4;  // page numbers are asked for so many pages ahead
  const AttentionArg& a = s.attention;
  const int halves = a.chunk_keys < kPageTokens;  // 1: a chunk is half a page
  const int k_bytes = a.k_page_bytes >> halves, v_bytes = a.v_page_bytes >> halves;
  for_units(s, [&](int part, int split) {
    const UnitName name = unit_name(a, part);
    if (split >= name.plan.n_splits) return;
    const int begin = name.plan.begin(split), end = name.plan.end_of(split), last_page = (end - 1) / kPageTokens;
    const int32_t* pages = unit_pages(a, name.m, end);
    const int first = begin / a.chunk_keys, last = ceil_div(end, a.chunk_keys), first_page = first >> halves;
    int ahead[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) ahead[k] = pages[min(first_page + k, last_page)];
    int page = first_page, number = ahead[0];
    for (int i = first; i < last; ++i) {
      if (const int at = i >> halves; at != page) {
        page = at;
#pragma unroll
        for (int k = 0; k + 1 < kAhead; ++k) ahead[k] = ahead[k + 1];
        ahead[kAhead - 1] = pages[min(page + kAhead - 1, last_page)];
        number = ahead[0];
      }
      const int64_t head = static_cast<int64_t>(number) * a.n_kv_heads + name.kv_head;
      const int half = i & halves;
      fetcher.push_pair(a.k_cache + head * a.k_page_bytes + half * k_bytes, k_bytes,
                        a.v_cache + head * a.v_page_bytes + half * v_bytes, v_bytes);
    }
  });
}

static_assert(kUnitRows == 8 && attend_shared_bytes<256, kWarps>() <= kAttendBytes &&
              attend_shared_bytes<32, kWarps>() <= kAttendBytes);
// attend_plain() leaves room for its results.
static_assert(kWarps * (256 + 2) * 4 + kUnitRows * 256 * 4 <= kAttendBytes);

}  // namespace infer::cuda
