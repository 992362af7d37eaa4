// A token's experts out of its router's logits: how logits are ordered, and the choice by all threads of a block at
// once, which is so quick that every block that needs it makes it for itself. RouteArgs says what is chosen and with
// which weights. Counts that a block has no thread for are left to route_kernel (experts.cu).
#pragma once

#include "kernels/cuda/common.cuh"

namespace infer::cuda {

inline constexpr int kMostChosenFrom = 256;  ///< experts
inline constexpr int kMostChosen = 32;       ///< of them for a token

/// Orders floats as numbers do, from 2 on; NaN is 1, the smallest, so that 0 is free for what is taken.
__device__ __forceinline__ uint32_t rank_of(float x) {
  if (isnan(x)) return 1;
  const uint32_t bits = float_bits(x + 0.0f);  // zeros are equal
  const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return ordered < 2 ? 2 : ordered;
}

/// What a block needs in shared memory to choose.
struct Choice {
  alignas(16) uint32_t ranks[kMostChosenFrom];
  float totals[32], top;
  int ids[kMostChosen];
  float weights[kMostChosen];
};

/// This thread's expert's logit, whose rank goes to `ranks` [kMostChosenFrom], aligned to 16; 0 for threads that have
/// none.
__device__ __forceinline__ float offer_expert(uint32_t* ranks, const float* logits, int n_experts) {
  const int i = threadIdx.x;
  const float logit = i < n_experts ? __ldcg(logits + i) : 0.0f;
  if (i < kMostChosenFrom) ranks[i] = i < n_experts ? rank_of(logit) : 0;
  return logit;
}

/// How many experts are chosen before this thread's, after a barrier behind offer_expert(): of equal ones the lower id
/// goes first.
__device__ __forceinline__ int place_of_expert(const uint32_t* ranks, int n_experts) {
  const int mine = threadIdx.x;
  if (mine >= n_experts) return kMostChosenFrom;
  const uint32_t rank = ranks[mine];
  int before = 0;
  for (int i = 0; i < n_experts; i += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(ranks + i);
    const uint32_t other[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) before += other[k] > rank || (other[k] == rank && i + k < mine);
  }
  return before;
}

/// All of it, ids and weights; ends with a barrier. kThreads is at least kMostChosenFrom.
template <int kThreads>
__device__ __forceinline__ void choose_experts(Choice& c, const float* logits, int n_experts, int n_active,
                                               bool sum_to_one, float scale) {
  static_assert(kThreads >= kMostChosenFrom && kThreads <= 1024);
  const float logit = offer_expert(c.ranks, logits, n_experts);
  const bool nan = __syncthreads_or(isnan(logit));
  const int place = place_of_expert(c.ranks, n_experts);
  if (place == 0) c.top = nan ? NAN : logit;
  __syncthreads();
  const bool chosen = place < n_active, counts = chosen || (!sum_to_one && static_cast<int>(threadIdx.x) < n_experts);
  const float weight = counts ? expf(logit - c.top) : 0.0f;
  if (chosen) c.ids[place] = static_cast<int>(threadIdx.x), c.weights[place] = weight;
  const float part = warp_sum(weight);
  if (threadIdx.x % 32 == 0) c.totals[threadIdx.x / 32] = part;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < n_active) {
    float total = 0;
    for (int w = 0; w < kThreads / 32; ++w) total += c.totals[w];
    c.weights[threadIdx.x] = c.weights[threadIdx.x] / total * scale;
  }
  __syncthreads();
}

}  // namespace infer::cuda
