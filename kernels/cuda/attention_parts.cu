// Joins what the parts of a token's positions have found, always in the order of the positions.
#include "kernels/cuda/attention_parts.cuh"

namespace infer::cuda {
namespace {

constexpr int kJoinWarps = 4;

/// The position of a token; -1 for rows of the step that belong to no sequence.
__device__ __forceinline__ int position_of(const PrefillArgs& a, int token) {
  for (int s = 0; s < a.n_seqs; ++s) {
    const int next = a.q_start[s + 1];
    if (a.q_start[s] <= token && token < next) return a.kv_len[s] - (next - token);
  }
  return -1;
}

/// 2^(highest - top); 1 where both are -inf: a part in which everything is masked.
__device__ __forceinline__ float weight_of(float highest, float top) {
  return highest == top ? 1.0f : exp2_fast(highest - top);
}

/// Grid: a warp to a head of a token. Bytes: (head_dim + 2) * 4 for each part, which bounds it.
__global__ void __launch_bounds__(kJoinWarps * 32) join_parts_kernel(const PrefillArgs a) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kJoinWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32, token = a.begin + static_cast<int>(row / a.n_heads);
  const int head = static_cast<int>(row % a.n_heads);
  const int position = token < a.end ? position_of(a, token) : -1;
  if (position < 0) return;
  const PartRange parts(position, a.window);
  const int64_t step = static_cast<int64_t>(a.end - a.begin) * a.n_heads * part_row_floats(a);  // from part to part
  const float *first = part_row(a, parts.first, token, head), *stats = first + a.head_dim;
  const int n = parts.end - parts.first;
  float top = -INFINITY, total = 0;
  for (int i = 0; i < n; ++i) top = fmaxf(top, stats[i * step]);
  for (int i = 0; i < n; ++i) total = fmaf(weight_of(stats[i * step], top), stats[i * step + 1], total);
  float factor = 1.0f / total;
  if (a.sinks) {  // one more logit
    const float sink = a.sinks[head] * kLog2e, higher = fmaxf(top, sink), weight = weight_of(top, higher);
    factor = weight / fmaf(total, weight, weight_of(sink, higher));
  }
  const int64_t to = (static_cast<int64_t>(token) * a.n_heads + head) * a.head_dim;
  for (int dim = lane; dim < a.head_dim; dim += 32) {
    float sum = 0;
    for (int i = 0; i < n; ++i) sum = fmaf(weight_of(stats[i * step], top), first[i * step + dim], sum);
    const float x = sum * factor;
    if (a.out_type == DType::F32)
      static_cast<float*>(a.out)[to + dim] = x;
    else if (a.out_type == DType::F16)
      static_cast<__half*>(a.out)[to + dim] = narrow<__half>(x);
    else
      static_cast<__nv_bfloat16*>(a.out)[to + dim] = narrow<__nv_bfloat16>(x);
  }
}

}  // namespace

void join_parts(const PrefillArgs& a, cudaStream_t stream) {
  const int64_t rows = int64_t{a.end - a.begin} * a.n_heads;
  join_parts_kernel<<<static_cast<unsigned>(ceil_div<int64_t>(rows, kJoinWarps)), kJoinWarps * 32, 0, stream>>>(a);
  check_launch("join_parts");
}

}  // namespace infer::cuda
