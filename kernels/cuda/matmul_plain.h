// A product with plain weights whose sums do not depend on how many rows x has, for --deterministic. Columns are cut
// into ranges of kPlainRange; a range is summed on its own, in the order of its columns, and the ranges are added up in
// their order. Few rows take the ranges side by side, many one after the other. Slower than cuBLASLt for many rows and
// than the streaming kernels for few, which choose their order by the number of rows.
#pragma once

#include <cuda_runtime.h>

#include "kernels/ops.h"

namespace infer::cuda {

inline constexpr int kPlainRange = 256;  ///< columns

/// out (+)= x * w^T + bias in f32 for any number of rows. Activations are rounded to the weights' type (f16: clamped at
/// 65504) and sums are f32; f32 weights are multiplied in f32. `narrow`: scratch of 16 bits for activations; with less
/// than m * k of it rows go eight at a time.
void matmul_plain(const MatmulArgs&, bool accumulate, const Tensor& narrow, cudaStream_t);

}  // namespace infer::cuda
