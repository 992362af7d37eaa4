// A quantised matrix of a Hugging Face folder, and the format that kernels know in which it is kept: W4G128 where 128
// consecutive weights of a row share a scale, Q4_0, Q8_0 or W4G where 32 do, W8F where 128 floats of a row do, which is
// exact, else plain numbers. Knows no method and no file; hf_quant_tensors.cpp reads those.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "models/checkpoint.h"
#include "runtime/hf_quant_codes.h"

namespace infer {

/// Rows and columns that share a scale: a grid over a matrix, its last cells cut off by the edge.
struct ScaleGrid {
  int64_t rows = 0, cols = 0;  ///< cells
  int64_t cell_rows = 1, cell_cols = 1;
  /// 0 for the size of a cell: all there are.
  static ScaleGrid over(int64_t rows, int64_t cols, int64_t cell_rows, int64_t cell_cols);
};

/// weight = scale * (code - zero), scale and zero as the row and the column's group have them. All finite.
struct IntMatrix {
  std::string name;
  int64_t rows = 0, cols = 0, groups = 0;
  int bits = 4;            ///< 4 or 8; codes count from 0
  bool symmetric = false;  ///< all zeros are 2^(bits - 1)
  /// Whether F16 holds the scales exactly, or at least reaches as far.
  bool f16_scales = true, scales_in_f16 = true;
  std::vector<int32_t> group_of;  ///< of each column
  TileShape tiles = kColumnTiles;
  std::function<void(const Tile&, TileCodes&)> codes;
  /// Scales and zeros of rows [row, row + n), [n][groups]; no zeros where symmetric.
  std::function<void(int64_t row, int64_t n, float* out)> scales;
  std::function<void(int64_t row, int64_t n, uint8_t* out)> zeros;
  std::shared_ptr<const ColumnCodes> columns;  ///< where the file has them like that
};

/// weight = scale * e4m3.
struct FloatMatrix {
  std::string path, name;  ///< path: of the folder, for messages
  int64_t rows = 0, cols = 0;
  ScaleGrid grid;
  std::vector<float> scale;  ///< [grid.rows][grid.cols]
  const std::byte* data = nullptr;
  ReadBytes read;  ///< of `data`
};

/// Sets what the matrix says of its scales, by these of them.
void note_scales(std::span<const float> scales, IntMatrix& matrix);

struct KeptMatrix {
  HostTensor tensor;    ///< yet to be made
  std::string because;  ///< why it is kept as plain numbers, or rounded; empty for exact blocks
  bool rounded = false;
};

struct KeepOptions {
  /// Plain numbers take the smallest of BF16, F16 and F32 that holds every weight exactly. Where this is false, scales
  /// are rounded to F16 and weights to F16, or to BF16 where F16 does not reach far enough.
  bool exact = false;
  /// The matrix may go to a GPU: W8F may be used, and W4G128 instead of Q4_0, which has a quarter of a bit more. GGUF
  /// files and CPUs keep Q4_0.
  bool for_gpu = false;
};
/// Chooses the format; the numbers are written when HostTensor::make asks for them, which throws Error(bad_file) where
/// W8F would have to hold what is not a number.
KeptMatrix keep(IntMatrix matrix, const KeepOptions& options);
KeptMatrix keep(FloatMatrix matrix, const KeepOptions& options);

}  // namespace infer
