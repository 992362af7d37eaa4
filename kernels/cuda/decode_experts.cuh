// A token's experts within the decode kernel. What a router says is a product so small that a kernel's stage for it
// would be all boundary: each CTA makes the logit of one expert while it norms x and sends it to all, and one warp of
// each makes the choice, the same everywhere. Only then can weights of experts be fetched.
#pragma once

#include "kernels/cuda/choose_experts.cuh"
#include "kernels/cuda/decode_activations.cuh"

namespace infer::cuda {

/// The router's weights of the expert whose logit this CTA makes (of the last one where it makes none), of any plain
/// type. Each thread has those of its columns, on their way to shared memory while x is waited for: registers that wait
/// along with it ended up in local memory.
struct RouterRow {
  DType dtype;
  int size;
  __device__ __forceinline__ explicit RouterRow(const ExpertsArg& e)
      : dtype(static_cast<DType>(e.router_dtype)), size(dtype == DType::F32 ? 4 : 2) {}
  __device__ __forceinline__ void fetch(const ExpertsArg& e, int dim) const {
    const uint8_t* row = e.router + min(static_cast<int>(blockIdx.x), e.n_experts - 1) * e.router_row_bytes;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) * 8; i < dim; i += kConsumers * 8)
#pragma unroll 1
      for (int k = 0; k < 8 * size; k += 16) copy_async16(chosen_experts().router() + i * size + k, row + i * size + k);
  }
  /// Of columns i to i + 7, once they are there.
  __device__ __forceinline__ float dot(int i, float4 a, float4 b) const {
    const uint4* from = reinterpret_cast<const uint4*>(chosen_experts().router() + i * size);
    float w[8];
    if (dtype == DType::F32) {
      const float4 low = as_floats(from[0]), high = as_floats(from[1]);
      w[0] = low.x, w[1] = low.y, w[2] = low.z, w[3] = low.w;
      w[4] = high.x, w[5] = high.y, w[6] = high.z, w[7] = high.w;
    } else if (dtype == DType::BF16) {
      widen<BF16>(from[0], w);
    } else {
      widen<F16>(from[0], w);
    }
    return (w[0] * a.x + w[1] * a.y + w[2] * a.z + w[3] * a.w) + (w[4] * b.x + w[5] * b.y + w[6] * b.z + w[7] * b.w);
  }
};

/// By one warp: this CTA's logit, to all.
__device__ __forceinline__ void send_logit(const ExpertsArg& e, float logit) {
  const int expert = static_cast<int>(blockIdx.x);
  if (expert >= e.n_experts || threadIdx.x % 32 != 0) return;
  put(e.logits + expert, e.logits_other + expert, e.bias ? logit + e.bias[expert] : logit);
}

/// By one warp: the choice out of the logits in the exchange, as soon as all are there, which is then made known. Each
/// lane has neighbouring experts, so that of equal logits the first lane has the lowest number.
static __device__ __noinline__ void make_choice(uint32_t stage) {
  const ExpertsArg& e = stage_at(stage).experts;
  const int n_active = stage_at(stage).n_active;
  constexpr int kMine = kMostRouted / 32;
  const int lane = threadIdx.x % 32, n_mine = ceil_div(e.n_experts, 32), first = lane * n_mine;
  uint32_t word[kMine], tries = 0;
  while (true) {
    bool empty = false;
#pragma unroll
    for (int k = 0; k < kMine; ++k)
      word[k] = k < n_mine && first + k < e.n_experts ? load_relaxed(e.logits + first + k) : 0xff800000u;
#pragma unroll
    for (int k = 0; k < kMine; ++k) empty = empty || word[k] == kEmpty;
    if (!empty) break;
    pause(tries);
  }
  ChosenExperts& choice = chosen_experts();
  uint32_t rank[kMine];
  bool nan = false;
#pragma unroll
  for (int k = 0; k < kMine; ++k) {
    const bool mine = k < n_mine && first + k < e.n_experts;
    rank[k] = mine ? rank_of(__uint_as_float(word[k])) : 0;
    nan = nan || (mine && isnan(__uint_as_float(word[k])));
  }
  float top = 0, chosen = 0;  // the largest logit; lane s: that of the s-th expert
  for (int s = 0; s < n_active; ++s) {
    uint32_t best = rank[0], logit = word[0];
    int id = first;
#pragma unroll
    for (int k = 1; k < kMine; ++k)
      if (rank[k] > best) best = rank[k], logit = word[k], id = first + k;
    const uint32_t largest = __reduce_max_sync(~0u, best);
    const int winner = __ffs(static_cast<int>(__ballot_sync(~0u, best == largest))) - 1;
    const float value = __uint_as_float(__shfl_sync(~0u, logit, winner));
    if (s == 0) top = value;
    if (lane == s) chosen = value;
    if (lane != winner) continue;
    choice.ids[s] = id;
#pragma unroll
    for (int k = 0; k < kMine; ++k)
      if (first + k == id) rank[k] = 0;
  }
  float weight = lane < n_active ? expf(chosen - top) : 0.0f, all = weight;
  if (e.sum_to_one == 0) {
    all = 0;
#pragma unroll
    for (int k = 0; k < kMine; ++k) all += expf(__uint_as_float(word[k]) - top);
  }
  weight *= e.scale / warp_sum(all);
  if (__any_sync(~0u, nan)) weight = NAN;
  if (lane < n_active) choice.weights[lane] = weight;
  __syncwarp();
  if (lane == 0) barrier_arrive(&choice.made);
}

}  // namespace infer::cuda
