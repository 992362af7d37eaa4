// The choice of experts, the sorting of tokens by them, and the weighted sum of what they found: small kernels between
// the products of expert_matmul.cu.
#include "kernels/cuda/choose_experts.cuh"
#include "kernels/cuda/experts.h"

namespace infer::cuda {
namespace {

constexpr int kRouteWarps = 4, kThreads = 256, kSortThreads = 1024;

struct RouteParams {
  const float* logits;
  int32_t* ids;
  float* weights;
  int64_t n_tokens;
  int n_experts, n_active;
  bool sum_to_one;
  float scale;
};

/// Grid: a warp a token. Shared: ranks of a token's experts. Takes the largest logit n_active times; of equal ones the
/// lower id, since the key of a candidate is its rank and then the complement of its id.
__global__ void __launch_bounds__(kRouteWarps * 32) route_kernel(const RouteParams p) {
  extern __shared__ uint32_t all_ranks[];
  start_next_kernel();
  wait_for_previous_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kRouteWarps + warp;
  if (token >= p.n_tokens) return;
  uint32_t* ranks = all_ranks + warp * p.n_experts;
  const float* logits = p.logits + token * p.n_experts;
  float top = -INFINITY, total = 0;
  for (int i = lane; i < p.n_experts; i += 32) {
    const float x = logits[i];
    ranks[i] = rank_of(x);
    top = x > top || isnan(x) ? x : top;  // a NaN stays
  }
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(~0u, top, step);
    top = other > top || isnan(other) ? other : top;
  }
  __syncwarp();
  int32_t* ids = p.ids + token * p.n_active;
  float* weights = p.weights + token * p.n_active;
  for (int k = 0; k < p.n_active; ++k) {
    uint32_t rank = 0, id = 0;
    for (int i = lane; i < p.n_experts; i += 32)
      if (ranks[i] > rank) rank = ranks[i], id = static_cast<uint32_t>(i);
    const uint32_t best = __reduce_max_sync(~0u, rank);
    const uint32_t chosen = __reduce_min_sync(~0u, rank == best ? id : ~0u);
    if (lane == 0) ids[k] = static_cast<int32_t>(chosen), ranks[chosen] = 0;
    const float weight = expf(logits[chosen] - top);
    if (lane == 0) weights[k] = weight;
    total += p.sum_to_one ? weight : 0.0f;
    __syncwarp();
  }
  if (!p.sum_to_one) {
    for (int i = lane; i < p.n_experts; i += 32) total += expf(logits[i] - top);
    total = warp_sum(total);
  }
  for (int k = lane; k < p.n_active; k += 32) weights[k] = weights[k] / total * p.scale;
}

/// Grid: one block. Shared: counts of experts. Counts, sums up and places, each pair by one thread.
__global__ void __launch_bounds__(kSortThreads)
    sort_kernel(const int32_t* ids, int n_pairs, int n_experts, int group_size, int n_groups, int32_t* order,
                int32_t* first, int32_t* starts) {
  extern __shared__ int32_t shared[];
  start_next_kernel();
  wait_for_previous_kernel();
  int32_t *count = shared, *group = shared + n_experts;  // then: next free place, and first group
  for (int e = threadIdx.x; e < n_experts; e += kSortThreads) count[e] = 0;
  for (int g = threadIdx.x; g < n_groups; g += kSortThreads) first[g] = -1;
  __syncthreads();
  for (int i = threadIdx.x; i < n_pairs; i += kSortThreads) atomicAdd(&count[ids[i]], 1);
  __syncthreads();
  if (threadIdx.x < 32) {  // sums of what comes before, 32 experts at a time
    const int lane = threadIdx.x;
    int pairs = 0, groups = 0;
    for (int base = 0; base < n_experts; base += 32) {
      const int e = base + lane, n = e < n_experts ? count[e] : 0, m = (n + group_size - 1) / group_size;
      int before = n, groups_before = m;
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, before, step), others = __shfl_up_sync(~0u, groups_before, step);
        if (lane >= step) before += other, groups_before += others;
      }
      if (e < n_experts) {
        starts[e] = pairs + before - n, group[e] = groups + groups_before - m;
        for (int i = 0; i < m; ++i) first[group[e] + i] = starts[e] + i * group_size;
        count[e] = starts[e];
      }
      pairs += __shfl_sync(~0u, before, 31), groups += __shfl_sync(~0u, groups_before, 31);
    }
    if (lane == 0) starts[n_experts] = pairs;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n_pairs; i += kSortThreads) order[atomicAdd(&count[ids[i]], 1)] = i;
}

struct CombineParams {
  const float *experts, *weights, *shared, *x, *mix;
  float* out;
  int n_active;
  int64_t dim;
};

/// Grid: one block a token. Reads what the experts found once, which bounds it.
__global__ void __launch_bounds__(kThreads) combine_kernel(const CombineParams p) {
  __shared__ float warps[kThreads / 32];
  start_next_kernel();
  wait_for_previous_kernel();
  const int64_t token = blockIdx.x;
  float mix = 1;
  if (p.mix) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < p.dim; i += kThreads) sum += p.x[token * p.dim + i] * p.mix[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (const float part : warps) sum += part;
    mix = 1.0f / (1.0f + expf(-sum));
  }
  const float* weights = p.weights + token * p.n_active;
  for (int64_t i = threadIdx.x; i < p.dim; i += kThreads) {
    float sum = 0;
    for (int s = 0; s < p.n_active; ++s) sum += weights[s] * p.experts[(token * p.n_active + s) * p.dim + i];
    if (p.shared) sum += mix * p.shared[token * p.dim + i];
    p.out[token * p.dim + i] = sum;
  }
}

}  // namespace

void route(const RouteArgs& a, cudaStream_t stream) {
  RouteParams p{a.logits.as<float>(),
                a.ids.as<int32_t>(),
                a.weights.as<float>(),
                a.logits.rows(),
                static_cast<int>(a.logits.cols()),
                static_cast<int>(a.ids.cols()),
                a.sum_to_one,
                a.scale};
  if (p.n_tokens == 0) return;
  const size_t shared = static_cast<size_t>(kRouteWarps * p.n_experts) * sizeof(uint32_t);
  check(cudaFuncSetAttribute(route_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(kRouteWarps * kMaxExperts * sizeof(uint32_t))),
        "route");
  launch_early("route", route_kernel, ceil_div<int64_t>(p.n_tokens, kRouteWarps), kRouteWarps * 32, shared, stream, p);
}

ExpertGroups single_pairs(const Tensor& ids) {
  ExpertGroups groups;
  groups.n_groups = static_cast<int>(ids.n_elements());
  return groups;
}

ExpertGroups group_pairs(const Tensor& ids, int64_t n_experts, const Tensor& order, const Tensor& starts,
                         cudaStream_t stream) {
  const int64_t n_pairs = ids.n_elements();
  ExpertGroups groups;
  groups.group_size = n_pairs <= 8 * n_experts ? 8 : 16;
  groups.n_groups = static_cast<int>(std::min(n_pairs, std::min(n_experts, n_pairs) + n_pairs / groups.group_size));
  groups.order = order.as<int32_t>(), groups.first = order.as<int32_t>() + n_pairs;
  groups.starts = starts.as<int32_t>();
  if (n_pairs == 0) return groups;
  launch_early("sort pairs", sort_kernel, 1, kSortThreads, 2 * static_cast<size_t>(n_experts) * sizeof(int32_t), stream,
               ids.as<int32_t>(), n_pairs, n_experts, groups.group_size, groups.n_groups, order.as<int32_t>(),
               order.as<int32_t>() + n_pairs, starts.as<int32_t>());
  return groups;
}

void combine(const CombineArgs& a, cudaStream_t stream) {
  const CombineParams p{a.experts.as<float>(),
                        a.weights.as<float>(),
                        a.shared.as<float>(),
                        a.x.as<float>(),
                        a.shared_mix.as<float>(),
                        a.out.as<float>(),
                        static_cast<int>(a.weights.cols()),
                        a.out.cols()};
  if (a.out.rows() == 0 || p.dim == 0) return;
  launch_early("combine", combine_kernel, a.out.rows(), kThreads, 0, stream, p);
}

}  // namespace infer::cuda
