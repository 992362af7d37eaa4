// Attention of up to 8 query heads that share a KV head over a range of positions, by the warps of one CTA: the inner
// part of decoding, used by the kernel of attention_decode.cu and by the persistent one. It knows pages and positions;
// what is normed, rotated or combined across CTAs is the caller's business.
//
// The idea: keys and values go straight into the registers that mma.m16n8k16 multiplies, from global memory without a
// stop in shared memory, or from the ring of the persistent kernel. S = Q K^T takes the heads as rows and 8 keys as
// columns, and its result lies in registers just as the product O^T = V^T P^T wants P^T. What does not fit by itself is
// made to: which dimension goes into which k index of the first product, or row of the second, is free as long as both
// sides agree (arXiv:2205.14135 for the rest).
#pragma once

#include "kernels/cuda/attention_fragments.cuh"
#include "kernels/cuda/attention_plan.h"

namespace infer::cuda {

inline constexpr int kBlockKeys = 16;      ///< positions a warp takes at a time; half a page
inline constexpr int kMergeNumbers = 512;  ///< of each warp, merged at a time

/// One range of positions of one sequence and KV head. Scores are kept in powers of two: the weight of a position is
/// exp2(score * log2(e) - row_max), row_sum is their sum and out the sum of weight * v, to be divided by it.
struct AttentionUnit {
  const float* q;                    ///< shared f32 [n_rows][head_dim], normed, rotated and times the attention scale
  int n_rows;                        ///< 1..8
  const uint8_t *k_cache, *v_cache;  ///< of this layer
  int64_t n_kv_heads;
  int kv_head;
  const int32_t* pages;      ///< this sequence's row of the page table; read at [begin / 32, (end - 1) / 32] only
  int begin, end;            ///< an empty range gives row_max -inf and zeros
  float softcap;             ///< 0: off
  float* out;                ///< shared f32 [n_rows][head_dim]
  float *row_max, *row_sum;  ///< shared f32 [8]
};

/// Weight of something found under maximum `highest` below `top`; the two may be -inf both.
__device__ __forceinline__ float weight_below(float highest, float top) {
  return highest == top ? 1.0f : exp2_fast(highest - top);
}

/// Bytes of `shared`: maxima and sums of all warps, and over one another Q's fragments and the merge.
template <int kHeadDim, int kWarps>
__host__ __device__ constexpr int attend_shared_bytes() {
  constexpr int kQuery = ceil_div(kHeadDim, 64) * 4 * 512, kMerge = kMergeNumbers * 4 * kWarps;
  return kWarps * 2 * kUnitRows * 4 + (kQuery > kMerge ? kQuery : kMerge);
}

/// What a warp has seen so far. A lane keeps the maximum and its share of the total of head lane / 4; sums are O^T.
template <int kHeadDim, class Cache, class Memory>
struct WarpState {
  using Shape = AttentionShape<kHeadDim, Cache, Memory>;
  using Type = typename Cache::Type;
  float sums[Shape::kTiles][4] = {};
  float highest = -INFINITY, total = 0;

  /// Scores of a block become weights, relative to the new maximum; p0 and p1 are P^T for accumulate().
  __device__ __forceinline__ void weigh(const float c[2][4], float softcap, const bool valid[4], int lane, uint32_t& p0,
                                        uint32_t& p1) {
    float s[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = c[i / 2][i % 2] + c[i / 2][i % 2 + 2];
    if (softcap > 0) {
#pragma unroll
      for (float& x : s) x = softcap * tanh_fast(__fdividef(x, softcap));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = valid[i] ? kLog2e * s[i] : -INFINITY;
    float top = fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(highest, fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2)));
    const float shrink = top == highest ? 1.0f : exp2_fast(highest - top);
    highest = top;
    p0 = Type::pack(exp2_fast(s[0] - top), exp2_fast(s[1] - top));
    p1 = Type::pack(exp2_fast(s[2] - top), exp2_fast(s[3] - top));
    // The total is of the rounded weights, those that multiply the values.
    total = total * shrink + ((Type::low(p0) + Type::high(p0)) + (Type::low(p1) + Type::high(p1)));
    if (__any_sync(0xffffffffu, shrink != 1.0f)) scale_sums(shrink, lane);
  }

  /// Multiplies the sums of head r with the factor that lanes 4r .. 4r+3 pass.
  __device__ __forceinline__ void scale_sums(float factor, int lane) {
    const float even = __shfl_sync(0xffffffffu, factor, lane % 4 * 8);
    const float odd = __shfl_sync(0xffffffffu, factor, lane % 4 * 8 + 4);
#pragma unroll
    for (auto& tile : sums) tile[0] *= even, tile[1] *= odd, tile[2] *= even, tile[3] *= odd;
  }
};

/// Q as fragments [kSteps][lane]: rows 0-7 of A hold the heads, rows 8-15 what rounding took from them, so that the
/// product sees twice the bits at no cost.
template <int kHeadDim, class Cache, int kWarps>
__device__ __forceinline__ void make_query_fragments(const AttentionUnit& unit, uint4* query) {
  using Shape = AttentionShape<kHeadDim, Cache>;
  using Type = typename Cache::Type;
#pragma unroll 1
  for (int i = threadIdx.x; i < Shape::kSteps * 32; i += kWarps * 32) {
    const int step = i / 32, r = i % 32 / 4, j = i % 4;
    const int dim = Shape::k_dim(step, j, 0);  // and three more
    float4 q{};
    if (r < unit.n_rows && dim < kHeadDim) q = *reinterpret_cast<const float4*>(unit.q + r * kHeadDim + dim);
    const uint32_t a0 = Type::pack(q.x, q.y), a2 = Type::pack(q.z, q.w);
    query[i] = make_uint4(a0, Type::pack(q.x - Type::low(a0), q.y - Type::high(a0)), a2,
                          Type::pack(q.z - Type::low(a2), q.w - Type::high(a2)));
  }
}

/// One block of kBlockKeys positions from `first` on, whose keys and values are the rows from `row` on of the two
/// pages. Only positions in [unit.begin, unit.end) count.
template <int kHeadDim, class Cache, class Memory>
__device__ __forceinline__ void attend_block(const AttentionUnit& unit, const uint4* query, const uint8_t* k_page,
                                             const uint8_t* v_page, int row, int first,
                                             WarpState<kHeadDim, Cache, Memory>& state) {
  using Shape = AttentionShape<kHeadDim, Cache, Memory>;
  const int lane = threadIdx.x % 32;
  bool valid[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int position = first + 2 * (lane % 4) + i % 2 + 8 * (i / 2);
    valid[i] = position >= unit.begin && position < unit.end;
  }
  ValuePart<kHeadDim, Cache, Memory> values;
  float c[2][4] = {};
#pragma unroll
  for (int part = 0; part < Shape::kKParts; ++part) {
    KeyPart<kHeadDim, Cache, Memory> keys;
    keys.load(k_page, row, part, lane);
    if (Shape::kTogether) values.load(v_page, row, 0, valid, lane);
    keys.add_scores(query, part, lane, c);
  }
  if (!Shape::kTogether) values.load(v_page, row, 0, valid, lane);
  uint32_t p0, p1;
  state.weigh(c, unit.softcap, valid, lane, p0, p1);
#pragma unroll
  for (int part = 0; part < Shape::kVParts; ++part) {
    if (part > 0) values.load(v_page, row, part, valid, lane);
    values.accumulate(state.sums, part, p0, p1);
  }
}

/// One warp's blocks: first_block + warp, and every kWarps-th after it. A warp waits for its keys, then for its values.
/// first_page: the page of the first one, or -1: not yet known.
template <int kHeadDim, class Cache, int kWarps>
__device__ __forceinline__ void attend_blocks(const AttentionUnit& unit, const uint4* query, int first_block,
                                              int last_block, int first_page,
                                              WarpState<kHeadDim, Cache, FromGlobal>& state) {
  constexpr int64_t kKeyBytes = head_page_bytes(Cache::Keys::id, kHeadDim),
                    kValueBytes = head_page_bytes(Cache::Values::id, kHeadDim);
  int block = first_block + static_cast<int>(threadIdx.x / 32);
  int page = first_page >= 0 ? first_page : block < last_block ? unit.pages[block / 2] : 0;
  for (; block < last_block; block += kWarps) {
    const int64_t place = page * unit.n_kv_heads + unit.kv_head;
    if (block + kWarps < last_block) page = unit.pages[(block + kWarps) / 2];
    attend_block<kHeadDim, Cache, FromGlobal>(unit, query, unit.k_cache + place * kKeyBytes,
                                              unit.v_cache + place * kValueBytes, block % 2 * kBlockKeys,
                                              block * kBlockKeys, state);
  }
}

/// Brings the warps' states together in the order of their ranks and hands each sum to emit(head, dim, sum), which
/// finds unit.row_max and unit.row_sum complete. Ranks below n_active have seen something. `stats` f32 [kWarps][2][8];
/// `numbers` has room for kMergeNumbers of each warp. This runs once a layer and is cold in the instruction cache: few
/// instructions, and two barriers where all sums fit at once.
template <int kHeadDim, class Cache, class Memory, int kWarps, int kBarrier, class Emit>
__device__ __forceinline__ void merge_warps(const AttentionUnit& unit, WarpState<kHeadDim, Cache, Memory>& state,
                                            float* stats, float* numbers, int rank, int n_active, const Emit& emit) {
  using Shape = AttentionShape<kHeadDim, Cache, Memory>;
  // A piece is what a warp knows of four heads in a group of dimensions, [4][kDims]. Of each head's quads of
  // dimensions those of one half are turned by its number, for the banks' sake.
  constexpr int kLoad = Shape::kVLoad, kDims = 16 * kLoad, kPiece = 4 * kDims, kFit = kMergeNumbers / kPiece;
  constexpr int kAtOnce = kWarps < 8 ? kWarps : 8;
  static_assert(kFit >= 1 && kDims % 32 == 0);
  const int lane = threadIdx.x % 32, r = lane / 4, j = lane % 4, two = unit.n_rows > 4;  // blocks of four heads
  const int n_pieces = Shape::kVGroups << two, most = n_active <= kWarps / 2 ? 2 * kFit : kFit;
  state.total += __shfl_xor_sync(0xffffffffu, state.total, 1);
  state.total += __shfl_xor_sync(0xffffffffu, state.total, 2);
  if (j == 0) stats[rank * 16 + r] = state.highest, stats[rank * 16 + 8 + r] = state.total;
  named_barrier<kBarrier, kWarps * 32>();  // all are through with Q's fragments too
  // Lane j looks at the ranks j, j + 4, ..., all loads side by side. Equal maxima may be -inf both.
  float high[kWarps / 4], totals[kWarps / 4], top = -INFINITY, total = 0;
#pragma unroll
  for (int k = 0; k < kWarps / 4; ++k) {
    const int w = j + 4 * k;
    high[k] = stats[w * 16 + r], totals[k] = stats[w * 16 + 8 + r];
    top = fmaxf(top, high[k]);
  }
  top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
  top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
#pragma unroll
  for (int k = 0; k < kWarps / 4; ++k) total += totals[k] * weight_below(high[k], top);
  total += __shfl_xor_sync(0xffffffffu, total, 1);
  total += __shfl_xor_sync(0xffffffffu, total, 2);
  if (rank == 0 && j == 0) unit.row_max[r] = top, unit.row_sum[r] = total;
  state.scale_sums(weight_below(state.highest, top), lane);
  for (int base = 0; base < n_pieces; base += most) {
    const int n = min(most, n_pieces - base), of_warp = n * kPiece;
    if (base > 0) named_barrier<kBarrier, kWarps * 32>();
    if (rank < n_active && j < 2 + 2 * two) {
#pragma unroll
      for (int g = 0; g < Shape::kVGroups; ++g) {
        const int piece = (g << two) + j / 2 - base;
        if (piece < 0 || piece >= n) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int dim = Shape::v_dim(0, half, r);
          float* to = numbers + rank * of_warp + piece * kPiece + j % 2 * 2 * kDims;
#pragma unroll
          for (int e = 0; e < 2; ++e)
#pragma unroll
            for (int t = 0; t < kLoad; t += kLoad < 4 ? 2 : 4) {
              float* at = to + e * kDims + ((dim + t) ^ (8 * j));
              const auto sum = [&](int i) { return state.sums[g * kLoad + t + i][2 * half + e]; };
              if constexpr (kLoad < 4)
                *reinterpret_cast<float2*>(at) = make_float2(sum(0), sum(1));
              else
                *reinterpret_cast<float4*>(at) = make_float4(sum(0), sum(1), sum(2), sum(3));
            }
        }
      }
    }
    named_barrier<kBarrier, kWarps * 32>();
    for (int i = threadIdx.x; i < of_warp; i += kWarps * 32) {
      const int piece = base + i / kPiece, head = (piece & two) * 4 + i % kPiece / kDims;
      const int dim = (piece >> two) * kDims + i % kDims;
      if (head >= unit.n_rows || (kHeadDim % kDims != 0 && dim >= kHeadDim)) continue;
      const float* number = numbers + (i ^ (head / 2 * 8));
      float sum = 0;
#pragma unroll 1
      for (int w = 0; w < n_active; w += kAtOnce, number += kAtOnce * of_warp) {
        float part[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) part[k] = w + k < n_active ? number[k * of_warp] : 0.0f;
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) sum += part[k];
      }
      emit(head, dim, sum);
    }
  }
}

/// The same for any pair of cache types and head size by plain arithmetic in f32, one head after another: for f32
/// caches and for keys and values of different types. `shared` f32 [kWarps][2 + head_dim] and more.
template <int kWarps, int kBarrier>
__device__ __noinline__ void attend_plain(const AttentionUnit& unit, int head_dim, DType k_type, DType v_type,
                                          float* shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t k_bytes = head_page_bytes(k_type, head_dim), v_bytes = head_page_bytes(v_type, head_dim);
  for (int head = 0; head < unit.n_rows; ++head) {
    float highest = -INFINITY, total = 0, sums[8] = {};
    for (int at = unit.begin + warp; at < unit.end; at += kWarps) {
      const int page = unit.pages[at / static_cast<int>(kPageTokens)], row = at % static_cast<int>(kPageTokens);
      const uint8_t* k = head_page(unit.k_cache, k_bytes, unit.n_kv_heads, page, unit.kv_head);
      const uint8_t* v = head_page(unit.v_cache, v_bytes, unit.n_kv_heads, page, unit.kv_head);
      float score = 0;
      for (int i = lane; i < head_dim; i += 32) {
        score += unit.q[head * head_dim + i] * cached_value(k_type, k, head_dim, row, i);
      }
      score = warp_sum(score);
      score = kLog2e * (unit.softcap > 0 ? unit.softcap * tanh_fast(score / unit.softcap) : score);
      const float top = fmaxf(highest, score);
      const float shrink = top == highest ? 1.0f : exp2_fast(highest - top), weight = exp2_fast(score - top);
      highest = top;
      total = total * shrink + weight;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int i = lane + 32 * n;
        if (i < head_dim) sums[n] = sums[n] * shrink + weight * cached_value(v_type, v, head_dim, row, i);
      }
    }
    float* mine = shared + warp * (head_dim + 2);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      if (lane + 32 * n < head_dim) mine[lane + 32 * n] = sums[n];
    }
    if (lane == 0) mine[head_dim] = highest, mine[head_dim + 1] = total;
    named_barrier<kBarrier, kWarps * 32>();
    float top = -INFINITY;
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, shared[w * (head_dim + 2) + head_dim]);
    for (int i = threadIdx.x; i < head_dim + 1; i += kWarps * 32) {
      float sum = 0;
      for (int w = 0; w < kWarps; ++w) {
        const float* other = shared + w * (head_dim + 2);
        const float factor = other[head_dim] == top ? 1.0f : exp2_fast(other[head_dim] - top);
        sum += factor * other[i == head_dim ? head_dim + 1 : i];
      }
      if (i < head_dim)
        unit.out[head * head_dim + i] = sum;
      else
        unit.row_sum[head] = sum, unit.row_max[head] = top;
    }
    named_barrier<kBarrier, kWarps * 32>();
  }
}

/// Called by the threads 0 .. 32 * kWarps - 1 of a CTA. prepare() brings the queries to unit.q and ends with a barrier.
/// emit(head, dim, sum) takes the results, with unit.row_max and unit.row_sum complete. `shared` has
/// attend_shared_bytes<kHeadDim, kWarps>() bytes, aligned to 16. Synchronises by the named barrier kBarrier only; the
/// caller does so before `shared` is used again. first_page: see attend_blocks().
template <int kHeadDim, class Cache, int kWarps, int kBarrier, class Prepare, class Emit>
__device__ __forceinline__ void attend_range(const AttentionUnit& unit, float* shared, const Prepare& prepare,
                                             const Emit& emit, int first_page = -1) {
  static_assert(kHeadDim % 16 == 0 && kHeadDim <= 256);
  if constexpr (!Cache::tensor_cores) {
    prepare();
    attend_plain<kWarps, kBarrier>(unit, kHeadDim, Cache::Keys::id, Cache::Values::id, shared);
    for (int i = threadIdx.x; i < unit.n_rows * kHeadDim; i += kWarps * 32)
      emit(i / kHeadDim, i % kHeadDim, unit.out[i]);
  } else {
    float* numbers = shared + kWarps * 2 * kUnitRows;
    uint4* query = reinterpret_cast<uint4*>(numbers);
    const int first_block = unit.begin / kBlockKeys, last_block = ceil_div(unit.end, kBlockKeys);
    const int n_blocks = unit.end > unit.begin ? last_block - first_block : 0;
    prepare();
    make_query_fragments<kHeadDim, Cache, kWarps>(unit, query);
    named_barrier<kBarrier, kWarps * 32>();
    WarpState<kHeadDim, Cache, FromGlobal> state;
    attend_blocks<kHeadDim, Cache, kWarps>(unit, query, first_block, first_block + n_blocks, first_page, state);
    merge_warps<kHeadDim, Cache, FromGlobal, kWarps, kBarrier>(
        unit, state, shared, numbers, static_cast<int>(threadIdx.x / 32), n_blocks < kWarps ? n_blocks : kWarps, emit);
  }
}

/// The same where all threads see `unit.q` already and want the sums in `unit.out`; when it returns they all see them.
template <int kHeadDim, class Cache, int kWarps, int kBarrier = 2>
__device__ __forceinline__ void attend_range(const AttentionUnit& unit, float* shared, int first_page) {
  attend_range<kHeadDim, Cache, kWarps, kBarrier>(
      unit, shared, [] {}, [&](int head, int dim, float sum) { unit.out[head * kHeadDim + dim] = sum; }, first_page);
  named_barrier<kBarrier, kWarps * 32>();
}

}  // namespace infer::cuda
