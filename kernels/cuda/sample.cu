// Drawing tokens on the device: two launches a step, for any number of rows. The first goes over all logits once and
// leaves the maximum of every group of 32; the second, one block per row, needs the groups with the k largest maxima
// only, since the k largest logits lie in them: whatever lies elsewhere has k maxima before it. Exact, ties included;
// the rule itself is in kernels/sample.h.
#include <cuda_runtime.h>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launchers.h"
#include "kernels/sample.h"

namespace infer::cuda {
namespace {

constexpr int kGroup = kSampleGroup;  // a warp
constexpr int kSliceThreads = 256, kSliceWarps = kSliceThreads / 32;
constexpr int kGroupsPerWarp = 8, kSliceGroups = kSliceWarps * kGroupsPerWarp, kSlice = kSliceGroups * kGroup;
constexpr int kDrawThreads = 512, kDrawWarps = kDrawThreads / 32;
constexpr int kMaxGroups = 96, kMaxCandidates = 128;  // room beyond kMaxSampleTopK ends the search sooner
constexpr uint32_t kNotFinite = 0xFFFFFFFFu;          // above every key

__device__ uint32_t key_of(float logit) { return sample_key(__float_as_uint(logit)); }
__device__ float logit_of(uint32_t key) { return __uint_as_float(sample_key_bits(key)); }
/// Larger logits first, among equals the lower index; no two are the same.
__device__ uint64_t ordered(uint32_t key, uint32_t index) {
  return uint64_t{key} << 32 | static_cast<uint32_t>(~index);
}

/// Changes the slice's logits of tokens that the row's ring holds, in place. Every token is the business of the thread
/// that finds it first in the ring.
__device__ void penalise_slice(const SampleArgs& args, const SampleRow& row, float* logits, int64_t begin) {
  __shared__ int32_t recent[kSampleHistory];
  const int32_t n = n_penalised(row);
  const int32_t* ring = sample_data<int32_t>(args.history) + blockIdx.y * kSampleHistory;
  for (int32_t i = threadIdx.x; i < n; i += kSliceThreads) recent[i] = ring[(row.n_history - n + i) % kSampleHistory];
  __syncthreads();
  const int64_t end = min(begin + kSlice, args.n_valid);
  for (int32_t i = threadIdx.x; i < n; i += kSliceThreads) {
    const int32_t id = recent[i];
    if (id < begin || id >= end || !is_finite_bits(__float_as_uint(logits[id]))) continue;
    bool first = true;
    int32_t count = 0;
    for (int32_t j = 0; j < n && first; ++j) {
      if (recent[j] != id) continue;
      first = j >= i;
      ++count;
    }
    if (first) logits[id] = penalised(logits[id], count, row);
  }
  __syncthreads();
}

/// Grid [ceil(vocab / 2048), n], 256 threads, 4 KB shared. Reads every logit once (vocab * 4 bytes a row, from L2 right
/// after the head), writes vocab / 8 bytes. Bound by the launch and one round of loads, 8 in flight per thread.
__global__ void __launch_bounds__(kSliceThreads)
    sample_groups_kernel(const __grid_constant__ SampleArgs args, int64_t vocab, int32_t n_groups) {
  start_next_kernel();
  wait_for_previous_kernel();
  const SampleRow& row = sample_data<SampleRow>(args.rows)[blockIdx.y];
  if (!row.enabled) return;
  float* logits = sample_data<float>(args.logits) + blockIdx.y * vocab;
  if (penalises(row)) penalise_slice(args, row, logits, int64_t{blockIdx.x} * kSlice);
  const int lane = threadIdx.x % 32;
  const int32_t first_group = blockIdx.x * kSliceGroups + threadIdx.x / 32 * kGroupsPerWarp;
  float values[kGroupsPerWarp];
#pragma unroll
  for (int j = 0; j < kGroupsPerWarp; ++j) {
    const int64_t id = int64_t{first_group + j} * kGroup + lane;
    values[j] = id < vocab ? logits[id] : 0;
  }
#pragma unroll
  for (int j = 0; j < kGroupsPerWarp; ++j) {
    const int64_t id = int64_t{first_group + j} * kGroup + lane;
    // Padding rows are looked at, since NaN there is as wrong as elsewhere, and never drawn.
    uint32_t key = id < args.n_valid ? key_of(values[j]) : 0;
    if (!is_finite_bits(__float_as_uint(values[j]))) key = kNotFinite;
    key = __reduce_max_sync(~0u, key);
    if (lane == 0 && first_group + j < n_groups)
      sample_data<uint32_t>(args.group_max)[int64_t{blockIdx.y} * n_groups + first_group + j] = key;
  }
}

struct DrawShared {
  uint32_t elements[kMaxGroups * kGroup];
  int32_t groups[kMaxGroups];
  uint64_t candidates[kMaxCandidates];
  double plain[kMaxSampleTopK];
  float logits[kMaxSampleTopK], tempered[kMaxSampleTopK];
  int32_t ids[kMaxSampleTopK];
  uint32_t partial[2][kDrawWarps];
  int32_t n_groups, n_candidates;
};

/// Sum over the block, in all threads. Calls in a row alternate `partial`, so one barrier each is enough.
__device__ uint32_t block_sum(uint32_t value, uint32_t* partial) {
  value = __reduce_add_sync(~0u, value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  return __reduce_add_sync(~0u, threadIdx.x % 32 < kDrawWarps ? partial[threadIdx.x % 32] : 0);
}

__device__ uint32_t block_max(uint32_t value, uint32_t* partial) {
  value = __reduce_max_sync(~0u, value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  return __reduce_max_sync(~0u, threadIdx.x % 32 < kDrawWarps ? partial[threadIdx.x % 32] : 0);
}

/// A point in [low, high). Logits worth drawing lie within a few units below the largest: halving the distance of the
/// values gets there in a few rounds, halving bits always gets there.
__device__ uint64_t between(uint64_t low, uint64_t high, int round) {
  const float from = logit_of(static_cast<uint32_t>(low >> 32)), to = logit_of(static_cast<uint32_t>(high >> 32));
  const float value = round == 0 ? to - 32 : 0.5f * from + 0.5f * to;
  if (round == 0 || to - from > 1e-3f) {
    const uint64_t middle = uint64_t{key_of(value)} << 32;
    if (middle > low && middle < high) return middle;
  }
  return low + (high - low) / 2;
}

/// A bound that at least `least` and at most `most` of the n ordered keys reach. The keys are all different but for
/// those of nothing, of which none counts; `least` others are there, and none is above `largest`.
template <class KeyAt>
__device__ uint64_t find_bound(int32_t n, uint32_t least, uint32_t most, uint32_t largest, DrawShared& s,
                               KeyAt key_at) {
  uint64_t low = uint64_t{1} << 32, high = (uint64_t{largest} + 1) << 32;
  if (n <= static_cast<int32_t>(most)) return low;
  for (int round = 0;; ++round) {
    const uint64_t middle = between(low, high, round);
    uint32_t count = 0;
    for (int32_t i = threadIdx.x; i < n; i += kDrawThreads) count += key_at(i) >= middle;
    count = block_sum(count, s.partial[round & 1]);
    if (count >= least && count <= most) return middle;
    (count < least ? high : low) = middle;
  }
}

/// The first id among those with the largest logit; the answer is in all threads of the first warp.
__device__ int32_t first_largest(const float* logits, int64_t n_valid, const uint32_t* keys, int32_t n_groups,
                                 uint32_t largest, DrawShared& s) {
  if (threadIdx.x == 0) s.n_groups = n_groups;
  __syncthreads();
  for (int32_t g = threadIdx.x; g < n_groups; g += kDrawThreads)
    if (keys[g] == largest) {
      atomicMin(&s.n_groups, g);
      break;
    }
  __syncthreads();
  if (threadIdx.x >= 32) return 0;
  const int64_t id = int64_t{s.n_groups} * kGroup + threadIdx.x;
  const uint32_t hits = __ballot_sync(~0u, id < n_valid && key_of(logits[id]) == largest);
  return s.n_groups * kGroup + __ffs(static_cast<int>(hits)) - 1;
}

/// The k largest logits, largest first, into s.logits and s.ids.
__device__ void select_candidates(const float* logits, int64_t n_valid, const uint32_t* keys, int32_t n_groups,
                                  int32_t k, uint32_t largest, DrawShared& s) {
  const int32_t n_filled = static_cast<int32_t>((n_valid + kGroup - 1) / kGroup);
  auto group_key = [&](int32_t g) { return ordered(keys[g], g); };
  if (threadIdx.x == 0) s.n_groups = s.n_candidates = 0;
  const uint64_t group_bound = find_bound(n_groups, min(k, n_filled), kMaxGroups, largest, s, group_key);
  __syncthreads();
  for (int32_t g = threadIdx.x; g < n_groups; g += kDrawThreads)
    if (group_key(g) >= group_bound) s.groups[atomicAdd(&s.n_groups, 1)] = g;  // in any order: what follows sorts
  __syncthreads();
  const int32_t n = s.n_groups * kGroup;
  auto id_of = [&](int32_t i) { return s.groups[i / kGroup] * kGroup + i % kGroup; };
  for (int32_t i = threadIdx.x; i < n; i += kDrawThreads)
    s.elements[i] = id_of(i) < n_valid ? key_of(logits[id_of(i)]) : 0;
  __syncthreads();
  auto element_key = [&](int32_t i) { return ordered(s.elements[i], id_of(i)); };
  const uint64_t bound = find_bound(n, k, kMaxCandidates, largest, s, element_key);
  for (int32_t i = threadIdx.x; i < n; i += kDrawThreads)
    if (element_key(i) >= bound) s.candidates[atomicAdd(&s.n_candidates, 1)] = element_key(i);
  __syncthreads();
  if (threadIdx.x < s.n_candidates) {
    const uint64_t mine = s.candidates[threadIdx.x];
    int32_t rank = 0;
    for (int32_t j = 0; j < s.n_candidates; ++j) rank += s.candidates[j] > mine;
    if (rank < k) {
      s.logits[rank] = logit_of(static_cast<uint32_t>(mine >> 32));
      s.ids[rank] = static_cast<int32_t>(~static_cast<uint32_t>(mine));
    }
  }
  __syncthreads();
}

/// The token drawn among the row's candidates, in the first thread.
__device__ int32_t draw_candidate(const SampleRow& row, int32_t k, DrawShared& s) {
  if (threadIdx.x < k) {
    s.plain[threadIdx.x] = plain_weight(s.logits[threadIdx.x], s.logits[0]);
    s.tempered[threadIdx.x] = tempered_weight(s.logits[threadIdx.x], s.logits[0], row.temperature);
  }
  __syncthreads();
  if (threadIdx.x > 0) return 0;
  return s.ids[pick_candidate(s.logits, s.plain, s.tempered, k, row.top_p, min_p_bound(s.logits[0], row.min_p),
                              sample_uniform(row.seed, row.n_drawn))];
}

/// Grid [n], 512 threads, 15 KB shared and 4 bytes per group (16 KB at 128256 tokens). Reads the row's maxima and at
/// most 96 groups of logits. Bound by latency: one barrier per round of the two searches, about ten rounds each.
__global__ void __launch_bounds__(kDrawThreads)
    sample_draw_kernel(const __grid_constant__ SampleArgs args, int64_t vocab, int32_t n_groups) {
  extern __shared__ uint32_t keys[];
  __shared__ DrawShared s;
  wait_for_previous_kernel();
  SampleRow row = sample_data<SampleRow>(args.rows)[blockIdx.x];
  if (!row.enabled) return;
  const float* logits = sample_data<float>(args.logits) + blockIdx.x * vocab;
  uint32_t largest = 0;
  for (int32_t g = threadIdx.x; g < n_groups; g += kDrawThreads) {
    keys[g] = sample_data<uint32_t>(args.group_max)[int64_t{blockIdx.x} * n_groups + g];
    largest = max(largest, keys[g]);
  }
  largest = block_max(largest, s.partial[1]);  // the searches begin with the other one
  Drawn drawn;
  if (largest == kNotFinite) {
    drawn.finite = 0;
  } else if (row.temperature == 0) {
    drawn.id = first_largest(logits, args.n_valid, keys, n_groups, largest, s);
  } else {
    const auto k = static_cast<int32_t>(min(static_cast<int64_t>(min(row.top_k, kMaxSampleTopK)), args.n_valid));
    select_candidates(logits, args.n_valid, keys, n_groups, k, largest, s);
    drawn.id = draw_candidate(row, k, s);
  }
  if (threadIdx.x > 0) return;
  advance_row(args, blockIdx.x, row, drawn.id);
  sample_data<SampleRow>(args.rows)[blockIdx.x] = row;
  sample_data<Drawn>(args.host_out)[blockIdx.x] = drawn;
}

}  // namespace

void sample(const SampleArgs& args, cudaStream_t stream) {
  const int64_t n = args.logits.dims[0], vocab = args.logits.dims[1];
  if (n == 0) return;
  const auto n_groups = static_cast<int32_t>((vocab + kGroup - 1) / kGroup);
  const size_t key_bytes = static_cast<size_t>(n_groups) * sizeof(uint32_t);
  // 48 KB of shared memory are there for the asking; larger vocabularies than about 270000 tokens must ask for more.
  if (key_bytes + sizeof(DrawShared) > 48 << 10)
    check(cudaFuncSetAttribute(sample_draw_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(key_bytes)),
          "sample");
  const dim3 grid(static_cast<unsigned>((vocab + kSlice - 1) / kSlice), static_cast<unsigned>(n));
  launch_early("sample", sample_groups_kernel, grid, kSliceThreads, 0, stream, args, vocab, n_groups);
  launch_early("sample", sample_draw_kernel, dim3(static_cast<unsigned>(n)), kDrawThreads, key_bytes, stream, args,
               vocab, n_groups);
}

}  // namespace infer::cuda
