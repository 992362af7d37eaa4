// The kernel of attention_decode.cu, for so many warps a block. The work is cut into units (token, KV head, up to 8 of
// its query heads, split of the positions); what the splits of one token and KV head found is combined by whichever of
// them comes last, always in the order of the positions, so that results do not depend on who that was.
#pragma once

#include <utility>

#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_steps.h"
#include "kernels/cuda/cache_pairs.h"
#include "kernels/cuda/head_sizes.h"
#include "kernels/cuda/int8_groups.cuh"

namespace infer::cuda {

/// Of shared memory; head size 0 stands for any.
template <int kHeadDim, int kWarps>
constexpr int kStepScratchBytes = attend_shared_bytes<(kHeadDim > 0 ? kHeadDim : 256), kWarps>();

/// The 32 lanes of a warp have columns that follow one another, from a multiple of 32 on where the copy is codes.
__device__ __forceinline__ void put(const AttentionStep& a, int token, int column, float x) {
  const int64_t at = static_cast<int64_t>(token) * a.n_heads * a.head_dim + column;
  if (a.copy && a.copy_form == PassedForm::codes)
    put_lanes(static_cast<uint8_t*>(a.copy), column / kGroup, token, x);
  else if (a.copy)
    static_cast<__nv_bfloat16*>(
        a.copy)[a.copy_form == PassedForm::operand ? operand_place(a.copy_tokens, token, column) : at] =
        __float2bfloat16_rn(x);
  if (a.out_type == DType::F32)
    static_cast<float*>(a.out)[at] = x;
  else if (a.out_type == DType::F16)
    static_cast<__half*>(a.out)[at] = narrow<__half>(x);
  else
    static_cast<__nv_bfloat16*>(a.out)[at] = narrow<__nv_bfloat16>(x);
}

/// What sums found under maximum `top`, with total `total`, are multiplied with. The sink of a head is one more logit.
__device__ __forceinline__ float final_factor(const AttentionStep& a, int head, float top, float total) {
  if (!a.sinks) return total == 0 ? 0.0f : 1.0f / total;
  const float sink = a.sinks[head] * kLog2e, higher = fmaxf(top, sink), weight = weight_below(top, higher);
  return weight / (total * weight + weight_below(sink, higher));
}

/// All heads of KV head `kv_head` of token `token` from the partial results of `n_splits` splits.
template <int kThreads>
__device__ void combine(const AttentionStep& a, int token, int kv_head, int n_splits) {
  const int64_t row_floats = a.head_dim + 2, split_floats = kUnitRows * row_floats;
  for (int i = threadIdx.x; i < a.group * a.head_dim; i += kThreads) {
    const int in_group = i / a.head_dim, dim = i % a.head_dim, head = kv_head * a.group + in_group;
    const int64_t unit =
        ((static_cast<int64_t>(token) * a.n_kv_heads + kv_head) * a.n_groups() + in_group / kUnitRows) * a.max_splits;
    const float* rows = a.partial + unit * split_floats + in_group % kUnitRows * row_floats;
    float top = -INFINITY, total = 0, sum = 0;
    for (int s = 0; s < n_splits; ++s) top = fmaxf(top, __ldcg(rows + s * split_floats + a.head_dim));
    for (int s = 0; s < n_splits; ++s) {
      const float* row = rows + s * split_floats;
      const float weight = weight_below(__ldcg(row + a.head_dim), top);
      total += weight * __ldcg(row + a.head_dim + 1);
      sum += weight * __ldcg(row + dim);
    }
    put(a, token, head * a.head_dim + dim, sum * final_factor(a, head, top, total));
  }
}

/// The sequence of a token, the first of its new tokens, and its positions up to the token's own. Sequence and token
/// have the same number unless some sequence has no new token and another has two.
struct TokenPlace {
  int sequence, first, kv_len;
};
__device__ __forceinline__ TokenPlace find_sequence(const AttentionStep& a, int token) {
  const auto start = [&](int s) { return __ldcg(a.q_start + s); };  // before the wait for the kernel before
  int s = token, first = start(s), next = start(s + 1), kv_len = __ldcg(a.kv_len + s);  // side by side
  if (first > token || next <= token) {
    for (s = 0; s + 1 < a.n_seqs && start(s + 1) <= token;) ++s;
    first = start(s), next = start(s + 1), kv_len = __ldcg(a.kv_len + s);
  }
  return {s, first, kv_len - (next - token) + 1};
}

/// The sum of squares of a token's queries or keys, by all warps.
template <int kWide, int kWarps>
__device__ __forceinline__ float row_squares(const AttentionStep& a, bool of_q, int token, int head_dim, int thread) {
  __shared__ float parts[kWarps];
  const float mine = warp_sum(squares_of_row<kWide, 4>(a, of_q, token, head_dim, thread, kWarps * 32));
  __syncthreads();
  if (thread % 32 == 0) parts[thread / 32] = mine;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += parts[w];
  return sum;
}

/// The queries of a unit into `q`, scaled, and where q, k and v are still as a product left them, the keys and values
/// of new tokens in the unit's range into the cache, by way of `room`, shared f32 [2][head_dim]. All warps, a head
/// each; all threads see what was stored. Units of several groups of a KV head store the same numbers. Where a sequence
/// has several new tokens (and another has none), each token's unit stores those before it too rather than wait for
/// them. position and own_slot: of `token`.
template <int kHeadDim, class Cache, int kWarps>
__device__ __forceinline__ void prepare_unit(const AttentionStep& a, int token, int kv_head, int first_head, int n_rows,
                                             NewTokens fresh, int64_t position, int64_t own_slot, float* q,
                                             float* room) {
  constexpr int kWide = kHeadDim > 0 ? 4 : 1, kKey = 0, kValue = 1, kQueries = 2;  // the order of the heads
  unsigned number;  // asked for here, lest registers keep all the way what follows from it
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
  const int thread = static_cast<int>(number % (kWarps * 32)), lane = thread % 32, warp = thread / 32;
  const int head_dim = kHeadDim > 0 ? kHeadDim : a.head_dim;
  const DType k_type = kHeadDim > 0 ? Cache::Keys::id : a.k_type, v_type = kHeadDim > 0 ? Cache::Values::id : a.v_type;
  if (!a.k_from) fresh = {token, token};
  for (int t = fresh.begin < fresh.end ? fresh.begin : token; t <= token; ++t) {
    const bool stores = t >= fresh.begin && t < fresh.end;
    const int n = t == token ? kQueries + n_rows : kQueries, mine = (stores ? kKey : kQueries) + warp;
    const auto what = [&](int i) { return i == kKey ? HeadOf::k : i == kValue ? HeadOf::v : HeadOf::q; };
    const auto head_of = [&](int i) { return i < kQueries ? kv_head : first_head + i - kQueries; };
    // A step's kernels do not write these, so they may be read before the one before is done.
    const int64_t slot = !stores ? -1 : t == token ? own_slot : __ldcg(a.slots + t);
    Turns<(kHeadDim > 0 ? ceil_div(kHeadDim, 64) : kMostTurns)> turns;
    turns.load_at(a, t == token ? position : turns.position_of(a, t), lane);
    if (mine < n) ask_for_head(a, what(mine), head_of(mine), head_dim, lane);
    wait_for_previous_kernel();
    const float q_squares = a.q_spans && t == token ? row_squares<kWide, kWarps>(a, true, t, head_dim, thread) : 0.0f,
                k_squares = a.k_spans && stores ? row_squares<kWide, kWarps>(a, false, t, head_dim, thread) : 0.0f;
    for (int i = mine; i < n; i += kWarps) {
      float* x = i < kQueries ? room + i * head_dim : q + (i - kQueries) * head_dim;
      prepare_head<kWide>(a, what(i), t, head_of(i), head_dim, turns, i < kQueries ? k_squares : q_squares, x, lane);
      if (i < kQueries) {
        store_head<kWide>(i == kKey ? k_type : v_type, i == kKey ? a.k_cache : a.v_cache, a, kv_head, head_dim, slot, x,
                          lane);
      } else {
        for (int dim = lane; dim < head_dim; dim += 32) x[dim] *= a.scale;
      }
    }
    __syncthreads();
  }
}

/// Grid: at most one block of 16 warps per SM, or four of 4, strides over units. Shared: attend_shared_bytes, q, out.
/// Reads the cache once per unit, which bounds it; partial results are (head_dim + 2) * 32 bytes per unit. kHeadDim 0:
/// any head size and cache types, by plain arithmetic.
template <int kHeadDim, class Cache, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, kWarps == 16 ? 1 : 4)
    attention_decode_kernel(const __grid_constant__ AttentionStep a) {
  constexpr int kThreads = kWarps * 32;
  extern __shared__ __align__(16) float scratch[];
  __shared__ float row_max[kUnitRows], row_sum[kUnitRows];
  __shared__ bool last;
  const int head_dim = kHeadDim > 0 ? kHeadDim : a.head_dim;
  start_next_kernel();
  float* q = scratch + kStepScratchBytes<kHeadDim, kWarps> / 4;
  float* out = q + kUnitRows * head_dim;
  for (int unit = static_cast<int>(blockIdx.x); unit < a.n_units; unit += static_cast<int>(gridDim.x)) {
    const auto of_splits = a.by_splits.divide(static_cast<uint32_t>(unit));
    const auto of_groups = a.by_groups.divide(of_splits.quotient);
    const auto of_heads = a.by_kv_heads.divide(of_groups.quotient);
    const int split = static_cast<int>(of_splits.rest), first_row = static_cast<int>(of_groups.rest) * kUnitRows;
    const int64_t pair = of_groups.quotient;
    const int kv_head = static_cast<int>(of_heads.rest), token = static_cast<int>(of_heads.quotient);
    // What depends on nothing but the token is asked for at once: each is a trip to the L2.
    const int64_t slot = a.k_from ? __ldcg(a.slots + token) : -1, position = Turns<1>::position_of(a, token);
    const TokenPlace place = find_sequence(a, token);
    const SplitPlan plan = plan_splits(place.kv_len, a.window, a.max_splits);
    if (split >= plan.n_splits) continue;
    const int n_rows = min(kUnitRows, a.group - first_row), head = kv_head * a.group + first_row;
    const int begin = plan.begin(split), end = plan.end_of(split);
    const int32_t* pages = a.page_table + place.sequence * a.max_pages;
    const int block = begin / kBlockKeys + static_cast<int>(threadIdx.x / 32);  // this warp's first
    const int page = block * kBlockKeys < end ? __ldcg(pages + block / 2) : 0;
    prepare_unit<kHeadDim, Cache, kWarps>(a, token, kv_head, head, n_rows,
                                          new_tokens_in(place.first, token, place.kv_len, begin, end), position, slot,
                                          q, out);
    const AttentionUnit work{q,     n_rows, a.k_cache, a.v_cache, a.n_kv_heads, kv_head, pages,
                             begin, end,    a.softcap, out,       row_max,      row_sum};
    if constexpr (kHeadDim > 0) {
      attend_range<kHeadDim, Cache, kWarps, 0>(work, scratch, page);
    } else {
      attend_plain<kWarps, 0>(work, head_dim, a.k_type, a.v_type, scratch);
    }
    // Values that lie rotated are brought back; that is linear, so it may come before splits are combined.
    if (const auto block = static_cast<int>(kv_rotation(a.v_type, head_dim)); block > 1) {
      for (int row = threadIdx.x / 32; row < n_rows; row += kWarps)
        hadamard(out + row * head_dim, head_dim, block, threadIdx.x % 32);
      __syncthreads();
    }
    if (plan.n_splits == 1) {
      for (int i = threadIdx.x; i < n_rows * head_dim; i += kThreads) {
        const int row = i / head_dim;
        put(a, token, head * head_dim + i, out[i] * final_factor(a, head + row, row_max[row], row_sum[row]));
      }
    } else {
      float* rows = a.partial + static_cast<int64_t>(unit) * kUnitRows * (head_dim + 2);
      for (int i = threadIdx.x; i < n_rows * (head_dim + 2); i += kThreads) {
        const int row = i / (head_dim + 2), dim = i % (head_dim + 2);
        rows[i] = dim < head_dim ? out[row * head_dim + dim] : dim == head_dim ? row_max[row] : row_sum[row];
      }
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        last = atomicAdd(a.arrived + pair, 1) == a.n_groups() * plan.n_splits - 1;
        if (last) a.arrived[pair] = 0;  // for the next launch; nobody else comes
        __threadfence();
      }
      __syncthreads();
      if (last) combine<kThreads>(a, token, kv_head, plan.n_splits);
    }
    __syncthreads();
  }
}

template <int kHeadDim, class Cache, int kWarps>
void launch_attention(const AttentionStep& a, int n_sms, cudaStream_t stream) {
  const int bytes = kStepScratchBytes<kHeadDim, kWarps> + 2 * kUnitRows * a.head_dim * 4;
  const auto kernel = attention_decode_kernel<kHeadDim, Cache, kWarps>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "attention_decode");
  const int64_t most = n_sms * (kWarps == 16 ? 1 : 4), grid = a.n_units < most ? a.n_units : most;
  launch_early("attention_decode", kernel, grid, kWarps * 32, static_cast<size_t>(bytes), stream, a);
}

/// False where tensor cores have no kernel for the head size and types.
template <class Cache, int kWarps>
bool launch_sized(const AttentionStep& a, int n_sms, cudaStream_t stream) {
  if (a.k_type != Cache::Keys::id || a.v_type != Cache::Values::id) return false;
  bool launched = false;
  visit_head_size(a.head_dim, [&]<int kHeadDim>() {
    if constexpr (kCacheFits<kHeadDim, Cache>)
      launch_attention<kHeadDim, Cache, kWarps>(a, n_sms, stream), launched = true;
  });
  return launched;
}

template <int kWarps>
bool launch_attention_step(const AttentionStep& a, int n_sms, cudaStream_t stream) {
  const auto launched = [&]<size_t i>() {
    constexpr CachePairRow kPair = kCachePairs[i];
    if constexpr (kPair.tensor_cores)
      return launch_sized<typename CacheNamed<kPair.k, kPair.v>::Type, kWarps>(a, n_sms, stream);
    return false;
  };
  return [&]<size_t... i>(std::index_sequence<i...>) { return (launched.template operator()<i>() || ...); }
  (std::make_index_sequence<kNCachePairs>{});
}

}  // namespace infer::cuda
