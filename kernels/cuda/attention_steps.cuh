// The kernel of attention_decode.cu, for so many warps a block. The work is cut into units (token, KV head, up to 8 of
// its query heads, split of the positions); what the splits of one token and KV head found is combined by whichever of
// them comes last, always in the order of the positions, so that results do not depend on who that was.
#pragma once

#include <utility>

#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/attention_steps.h"
#include "kernels/cuda/cache_pairs.h"
#include "kernels/cuda/head_sizes.h"
#include "kernels/cuda/operand.h"

namespace infer::cuda {

/// Of shared memory; head size 0 stands for any.
template <int kHeadDim, int kWarps>
constexpr int kStepScratchBytes = attend_shared_bytes<(kHeadDim > 0 ? kHeadDim : 256), kWarps>();

__device__ __forceinline__ void put(const AttentionStep& a, int token, int column, float x) {
  const int64_t at = static_cast<int64_t>(token) * a.n_heads * a.head_dim + column;
  if (a.copy) a.copy[a.copy_tokens > 0 ? operand_place(a.copy_tokens, token, column) : at] = __float2bfloat16_rn(x);
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

/// The sequence of a token and the position after the token's own. Sequence and token have the same number unless some
/// sequence has no new token and another has two.
__device__ __forceinline__ int2 find_sequence(const AttentionStep& a, int token) {
  int s = token;
  if (a.q_start[s] > token || a.q_start[s + 1] <= token) {
    for (s = 0; s + 1 < a.n_seqs && a.q_start[s + 1] <= token;) ++s;
  }
  return make_int2(s, a.kv_len[s] - (a.q_start[s + 1] - token) + 1);
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
  wait_for_previous_kernel();
  float* q = scratch + kStepScratchBytes<kHeadDim, kWarps> / 4;
  float* out = q + kUnitRows * head_dim;
  for (int64_t unit = blockIdx.x; unit < a.n_units; unit += gridDim.x) {
    const int split = static_cast<int>(unit % a.max_splits);
    const int64_t rest = unit / a.max_splits, pair = rest / a.n_groups();
    const int first_row = static_cast<int>(rest % a.n_groups()) * kUnitRows;
    const int kv_head = static_cast<int>(pair % a.n_kv_heads), token = static_cast<int>(pair / a.n_kv_heads);
    const int2 sequence = find_sequence(a, token);
    const SplitPlan plan = plan_splits(sequence.y, a.window, a.max_splits);
    if (split >= plan.n_splits) continue;
    const int n_rows = min(kUnitRows, a.group - first_row), head = kv_head * a.group + first_row;
    const int64_t at = (static_cast<int64_t>(token) * a.n_heads + head) * head_dim;
    for (int i = threadIdx.x; i < n_rows * head_dim; i += kThreads) q[i] = a.q[at + i] * a.scale;
    __syncthreads();
    const AttentionUnit work{q,
                             n_rows,
                             a.k_cache,
                             a.v_cache,
                             a.n_kv_heads,
                             kv_head,
                             a.page_table + sequence.x * a.max_pages,
                             plan.begin(split),
                             plan.end_of(split),
                             a.softcap,
                             out,
                             row_max,
                             row_sum};
    if constexpr (kHeadDim > 0) {
      attend_range<kHeadDim, Cache, kWarps, 0>(work, scratch);
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
      float* rows = a.partial + unit * kUnitRows * (head_dim + 2);
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
