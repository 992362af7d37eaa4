// Attention whose positions are cut into parts by the sequence alone, for --deterministic: where the rows of a part lie
// between the kernel of attention_prefill.cu, which finds them, and that of attention_parts.cu, which joins them.
#pragma once

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/attention_tiles.cuh"

namespace infer::cuda {

/// Parts that a launch has room for, and floats of a row: sums, maximum (in powers of two) and total.
inline int n_parts(const PrefillArgs& a) { return parts_of_pages(a.max_pages, kPageTokens); }
__host__ __device__ inline int part_row_floats(const PrefillArgs& a) { return a.head_dim + 2; }

/// The row of `part`, for query head `head` of `token`: [n_parts][tokens of the launch][n_heads].
__device__ __forceinline__ float* part_row(const PrefillArgs& a, int part, int token, int head) {
  const int64_t n_tokens = a.end - a.begin;
  return a.partial + ((part * n_tokens + token - a.begin) * a.n_heads + head) * part_row_floats(a);
}

/// Adds up the parts of all rows of the launch in their order, closes them with totals and sinks, and writes them out.
void join_parts(const PrefillArgs&, cudaStream_t);

}  // namespace infer::cuda
