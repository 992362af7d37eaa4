// What the CUDA backend takes of a GPU's memory and what it has kernels for, as pure functions: plans are made before a
// device is touched, and on machines that have none. Plain C++, part of every build.
#pragma once

#include <algorithm>
#include <string>

#include "kernels/backend.h"
#include "kernels/cuda/cache_pairs.h"
#include "kernels/cuda/head_sizes.h"
#include "kernels/cuda/packed.h"
#include "kernels/kv_format.h"
#include "quant/formats.h"

namespace infer::cuda {

/// A context and the module with all kernels; measured, rounded up.
inline constexpr size_t kContextBytes = size_t{640} << 20;

inline size_t packed_bytes(const Tensor& host, WeightRole role) {
  const int64_t rows = host.n_elements() / host.cols();
  if (role == WeightRole::vector) return static_cast<size_t>(host.n_elements()) * sizeof(float);
  if (role == WeightRole::embedding) return static_cast<size_t>(tensor_bytes(host.dtype, rows, host.cols()));
  // A stack is packed matrix by matrix: an expert begins with a tile of its own.
  const int64_t n = host.n_dims == 3 ? host.dims[0] : 1;
  return static_cast<size_t>(n * packed_matrix_bytes(host.dtype, rows / std::max<int64_t>(n, 1), host.cols()));
}

/// Names the first thing that has no kernel; empty when all is well. Types of the cache count once an engine has
/// chosen.
inline std::string refusal(const Needs& needs) {
  for (const DType dtype : needs.matrix_formats)
    if (!gpu_decodable(dtype)) return "no CUDA kernel for weights of the format " + format_name(dtype);
  for (const DType dtype : needs.embedding_formats)
    if (!decodable(dtype)) return "no CUDA kernel to look up rows of the format " + format_name(dtype);
  if (needs.head_dim > 0 && !has_head_size(needs.head_dim))
    return "no CUDA kernel for attention with heads of " + std::to_string(needs.head_dim) + " (only for " +
           listed(HeadSizes{}) + ")";
  for (const DType dtype : {needs.k_type, needs.v_type})
    if (!is_kv_format(dtype)) return "no CUDA kernel for a KV cache of " + format_name(dtype);
  return {};
}

/// The pair with tensor cores that takes least memory of those that keep at least the bits of `k` and `v`, of which
/// more than 16 count as 16.
inline CachePairRow nearest_cache_pair(DType k, DType v) {
  constexpr int64_t kN = 32;
  const auto bytes = [](DType type) { return row_bytes(type, kN); };
  const auto wanted = [&](DType type) { return std::min(bytes(type), 2 * kN); };
  CachePairRow best = kCachePairs[0];
  for (const CachePairRow& row : kCachePairs)
    if (row.tensor_cores && bytes(row.k) >= wanted(k) && bytes(row.v) >= wanted(v) &&
        bytes(row.k) + bytes(row.v) < bytes(best.k) + bytes(best.v))
      best = row;
  return best;
}

/// DeviceRow::slow_cache().
inline std::string slow_cache(const Needs& needs) {
  const CachePairRow pair = find_cache_pair(needs.k_type, needs.v_type);
  if (pair.tensor_cores) return {};
  const auto flags = [](const CachePairRow& row) {
    std::string text = "-ctk " + format_name(row.k) + " -ctv " + format_name(row.v);
    for (char& c : text) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    return text;
  };
  // Measured: f32, 135M, 2048 tokens 3 times; q8_0 and q4_0 before they had a kernel, 8B, 512 tokens 5 times and 16
  // thousand 12 times (H200, NOTES.md).
  return flags(pair) + " has no tensor-core kernel on a GPU: attention goes by plain arithmetic, which makes " +
         "generation 3 to 12 times slower, most with long contexts; " + flags(nearest_cache_pair(pair.k, pair.v)) +
         " has one";
}

/// At most what prepare() allocates: 16-bit activations and weights of one product, cuBLASLt's workspace, partial
/// results of attention and of products.
inline size_t scratch_bytes(const Needs& needs) {
  const auto rows = static_cast<size_t>(std::max<int64_t>(1, needs.max_tokens));
  return 2 * rows * static_cast<size_t>(needs.max_width) * 2 + (size_t{512} << 20);
}

}  // namespace infer::cuda
