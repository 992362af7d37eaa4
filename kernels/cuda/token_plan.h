// How one token's activations lie in shared memory for the products of token_rows.cuh, how large a tile of 16 rows of a
// matrix is, and how much of either these kernels take. Plain C++, the same on host and device.
#pragma once

#include <cstdint>

#include "kernels/cuda/packed.h"

namespace infer::cuda {

inline constexpr int64_t kTokenActBytes = 96 * 1024;  ///< at most, of a block: two of them share an SM

/// Columns of a row with the zeros behind it: a multiple of what a warp takes at a time.
INFER_HD constexpr int token_columns(DType dtype, int cols) {
  const int step = dtype == DType::F16 || dtype == DType::BF16 ? 256 : 128;
  return (cols + step - 1) / step * step;
}
/// int8: a code a column and for each 32 of them 16 bytes of scales and sums; f32 for plain weights.
INFER_HD constexpr int64_t token_act_bytes(DType dtype, int cols) {
  const bool plain = dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16;
  return int64_t{token_columns(dtype, cols)} * (plain ? 8 : 3) / 2;
}

/// From a tile of 16 rows to the next.
template <class F>
int64_t token_tile_bytes(int64_t cols) {
  if constexpr (F::block > 1)
    return tile_bytes<F>(cols);
  else
    return kTileRows * row_major_stride(sizeof(typename F::Block), cols);
}

}  // namespace infer::cuda
