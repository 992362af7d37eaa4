// See hf_quant_matrix.h. Codes are read and written once, tile by tile or row by row.
#include "runtime/hf_quant_matrix.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>

#include "infer/error.h"
#include "quant/formats.h"
#include "quant/fp8.h"
#include "runtime/row_reader.h"

namespace infer {
namespace {

constexpr float kMaxF16 = 65504;

template <class Matrix>
KeptMatrix kept(const Matrix& m, DType dtype, MakeRows make) {
  KeptMatrix out;
  out.tensor.name = m.name;
  out.tensor.dtype = dtype;
  out.tensor.dims = {m.rows, m.cols};
  out.tensor.bytes = static_cast<size_t>(tensor_bytes(dtype, m.rows, m.cols));
  out.tensor.make = std::move(make);
  out.tensor.fine = true;
  return out;
}

bool is_f16(float x) {
  const float size = std::fabs(x);
  if (size >= 0x1p-14f && size <= kMaxF16) return (float_bits(x) & 0x1fff) == 0;  // normal numbers, by their last bits
  return f16_to_f32(f32_to_f16(x)) == x || std::isnan(x);
}
bool is_bf16(float x) { return (float_bits(x) & 0xffff) == 0 || std::isnan(x); }

/// Scales and zeros of the rows of a tile, [rows][groups].
struct TileScales {
  std::vector<float> scale;
  std::vector<uint16_t> d;    ///< the same as F16, for blocks
  std::vector<uint8_t> zero;  ///< the middle where the matrix is symmetric

  explicit TileScales(const IntMatrix& m)
      : scale(static_cast<size_t>(m.tiles.rows * m.groups)),
        d(scale.size()),
        zero(scale.size(), static_cast<uint8_t>(1 << (m.bits - 1))) {}
  void read(const IntMatrix& m, int64_t row, int64_t n) {
    m.scales(row, n, scale.data());
    for (int64_t i = 0; i < n * m.groups; ++i) d[static_cast<size_t>(i)] = f32_to_f16(scale[static_cast<size_t>(i)]);
    if (!m.symmetric) m.zeros(row, n, zero.data());
  }
};

/// Calls fn(tile, codes, scales) for tiles that cover rows [first, first + n).
template <class Function>
void for_each_tile(const IntMatrix& m, int64_t first, int64_t n, Function&& fn) {
  TileCodes codes(m.bits, m.tiles);
  TileScales scales(m);
  for (int64_t row = first / 8 * 8; row < first + n; row += m.tiles.rows) {
    const int64_t n_rows = std::min(m.tiles.rows, first + n - row);
    scales.read(m, row, n_rows);
    for (int64_t col = 0; col < m.cols; col += m.tiles.cols) {
      const Tile tile{row, n_rows, col, std::min(m.tiles.cols, m.cols - col), std::max(int64_t{0}, first - row)};
      m.codes(tile, codes);
      fn(tile, codes, scales);
    }
  }
}

/// Calls fn(row, col, weights) for stretches that make up rows [first, first + n).
template <class Function>
void for_each_decoded(const IntMatrix& m, int64_t first, int64_t n, Function&& fn) {
  std::vector<float> weights(static_cast<size_t>(m.tiles.cols));
  for_each_tile(m, first, n, [&](const Tile& tile, const TileCodes& codes, const TileScales& scales) {
    for (int64_t r = tile.skip; r < tile.n_rows; ++r) {
      for (int64_t c = 0; c < tile.n_cols; ++c) {
        const auto at = static_cast<size_t>(r * m.groups + m.group_of[static_cast<size_t>(tile.col + c)]);
        weights[static_cast<size_t>(c)] = static_cast<float>(codes.at(r, c) - scales.zero[at]) * scales.scale[at];
      }
      fn(tile.row + r, tile.col, std::span<const float>(weights.data(), static_cast<size_t>(tile.n_cols)));
    }
  });
}

/// Calls fn(row, codes, scales of its cells) for rows [first, first + n).
template <class Function>
void for_each_row(const FloatMatrix& m, int64_t first, int64_t n, Function&& fn) {
  RowReader rows(m.data, m.cols, first, first + n, m.read);
  for (int64_t r = first; r < first + n; ++r)
    fn(r, reinterpret_cast<const uint8_t*>(rows.row(r)), m.scale.data() + r / m.grid.cell_rows * m.grid.cols);
}

template <class Function>
void for_each_decoded(const FloatMatrix& m, int64_t first, int64_t n, Function&& fn) {
  float value[256];
  for (int i = 0; i < 256; ++i) value[i] = e4m3_to_f32(static_cast<uint8_t>(i));
  std::vector<float> weights(static_cast<size_t>(m.cols));
  for_each_row(m, first, n, [&](int64_t row, const uint8_t* codes, const float* scale) {
    for (int64_t cell = 0; cell < m.grid.cols; ++cell) {
      const int64_t begin = cell * m.grid.cell_cols, end = std::min(m.cols, begin + m.grid.cell_cols);
      for (int64_t c = begin; c < end; ++c) weights[static_cast<size_t>(c)] = value[codes[c]] * scale[cell];
    }
    fn(row, int64_t{0}, std::span<const float>(weights));
  });
}

// ---- plain numbers ------------------------------------------------------------

struct PlainChoice {
  DType dtype;
  bool rounded;
};

template <class Matrix>
PlainChoice choose_plain(const Matrix& m, bool exact) {
  bool bf16 = true, f16 = true;
  float largest = 0;
  for_each_decoded(m, 0, m.rows, [&](int64_t, int64_t, std::span<const float> weights) {
    bf16 = bf16 && std::all_of(weights.begin(), weights.end(), is_bf16);
    f16 = f16 && std::all_of(weights.begin(), weights.end(), is_f16);
    for (const float w : weights) largest = std::max(largest, std::fabs(w));
  });
  if (bf16) return {DType::BF16, false};
  if (f16) return {DType::F16, false};
  if (exact) return {DType::F32, false};
  return {largest <= kMaxF16 ? DType::F16 : DType::BF16, true};
}

template <class Matrix>
KeptMatrix keep_plain(Matrix matrix, std::string because, bool exact) {
  const PlainChoice choice = choose_plain(matrix, exact);
  const auto m = std::make_shared<const Matrix>(std::move(matrix));
  KeptMatrix out = kept(*m, choice.dtype, [m, dtype = choice.dtype](int64_t first, int64_t n, std::byte* to) {
    const int64_t number = row_bytes(dtype, 1);
    for_each_decoded(*m, first, n, [&](int64_t row, int64_t col, std::span<const float> weights) {
      std::byte* const at = to + ((row - first) * m->cols + col) * number;
      encode_row(dtype, weights.data(), at, static_cast<int64_t>(weights.size()));
    });
  });
  out.because = std::move(because);
  out.rounded = choice.rounded;
  return out;
}

// ---- blocks ------------------------------------------------------------

/// The first columns of a tile's row as a block has them.
struct BlockSource {
  const uint8_t* codes;  ///< as TileCodes has them
  const int32_t* group;  ///< of a column, in `d` and `zero`
  const uint16_t* d;
  const uint8_t* zero;
  /// Of a column; as F16.
  uint16_t scale(int64_t column) const { return d[group[column]]; }
  uint16_t zero_point(int64_t column) const {
    static const auto halves = [] {
      std::array<uint16_t, 256> of;
      for (size_t i = 0; i < of.size(); ++i) of[i] = f32_to_f16(static_cast<float>(i));
      return of;
    }();
    return halves[zero[group[column]]];
  }
};

void put_block(const BlockSource& from, Q4_0::Block& out) {
  out.d = from.scale(0);
  std::memcpy(out.qs, from.codes, sizeof out.qs);
}
void put_block(const BlockSource& from, W4G::Block& out) {
  out.d = from.scale(0), out.zero = from.zero_point(0);
  std::memcpy(out.qs, from.codes, sizeof out.qs);
}
void put_block(const BlockSource& from, W4G128::Block& out) {
  for (int i = 0; i < 2; ++i) {
    out.d[i] = from.scale(i * W4G128::scale_columns);
    out.zero[i] = from.zero_point(i * W4G128::scale_columns);
  }
  std::memcpy(out.qs, from.codes, sizeof out.qs);
}
void put_block(const BlockSource& from, Q8_0::Block& out) {
  out.d = from.scale(0);
  uint8_t code[kGroup];
  for (int i = 0; i < kGroup; ++i) code[i] = from.codes[i] ^ 128u;
  std::memcpy(out.code, code, sizeof code);
}

/// Writes a tile's rows to the blocks of rows from `first` on. Tiles begin and end with blocks.
template <class F>
void put_tile(const IntMatrix& m, const TileScales& scales, const Tile& tile, const TileCodes& codes, int64_t first,
              typename F::Block* blocks) {
  const int64_t code_bytes = codes.group_bytes() * F::block / kGroup;
  for (int64_t r = tile.skip; r < tile.n_rows; ++r) {
    const int64_t at = (tile.row + r - first) * m.cols + tile.col;
    BlockSource from{codes.group(r, 0), m.group_of.data() + tile.col, scales.d.data() + r * m.groups,
                     scales.zero.data() + r * m.groups};
    auto* block = blocks + at / F::block;
    // Written in place: a copy would be read at other widths than it was just written, and wait for that.
    for (int64_t c = 0; c < tile.n_cols; c += F::block, from.codes += code_bytes, from.group += F::block)
      put_block(from, *block++);
  }
}

template <class F>
KeptMatrix keep_blocks(IntMatrix matrix) {
  const auto m = std::make_shared<const IntMatrix>(std::move(matrix));
  KeptMatrix out = kept(*m, F::id, [m](int64_t first, int64_t n, std::byte* to) {
    for_each_tile(*m, first, n, [&](const Tile& tile, const TileCodes& codes, const TileScales& scales) {
      put_tile<F>(*m, scales, tile, codes, first, reinterpret_cast<typename F::Block*>(to));
    });
  });
  if (m->f16_scales) out.tensor.columns = m->columns;
  return out;
}

constexpr const char* kScales = "F16 cannot hold their scales";

/// Whether each `n` neighbouring weights of a row, from its first on, share a scale.
bool share_scales(const IntMatrix& m, size_t n) {
  for (size_t c = 0; c < m.group_of.size(); ++c)
    if (m.group_of[c] != m.group_of[c / n * n]) return false;
  return true;
}

/// Why the matrix cannot be kept in blocks; empty when it can.
std::string obstacle(const IntMatrix& m, bool exact) {
  if (m.bits == 8 && !m.symmetric) return "they have 8 bits and zero points";
  if (m.cols % kGroup != 0) return "their rows are no multiple of 32";
  if (!share_scales(m, kGroup)) return "32 neighbouring weights do not share a scale (desc_act, or an odd group_size)";
  return m.scales_in_f16 && (!exact || m.f16_scales) ? "" : kScales;
}

// ---- 8-bit floats ------------------------------------------------------------

constexpr const char* kNoKernel = "no kernel of this device computes with 8-bit floats";
/// Kernels put an e4m3 where a bf16 has it and let the scale make up for 2^120.
constexpr float kLargestScale = 64;

/// Why the matrix cannot be kept in W8F; empty when it can.
std::string obstacle(const FloatMatrix& m) {
  if (m.cols % W8F::block != 0) return "their rows are no multiple of " + std::to_string(W8F::block);
  if (m.grid.cols > 1 && m.grid.cell_cols % W8F::scale_columns != 0)
    return "128 neighbouring weights do not share a scale";
  for (const float scale : m.scale)
    if (!(std::fabs(scale) <= kLargestScale)) return "their scales are too large";
  return "";
}

/// Whether one of these codes is no number, which blocks cannot hold.
bool has_no_number(const uint8_t* codes, int64_t n) {
  uint8_t found = 0;
  for (int64_t i = 0; i < n; ++i) found |= (codes[i] & 0x7f) == 0x7f;
  return found != 0;
}

void put_floats(const FloatMatrix& m, int64_t first, int64_t n, std::byte* to) {
  for_each_row(m, first, n, [&](int64_t row, const uint8_t* codes, const float* scale) {
    if (has_no_number(codes, m.cols))
      throw Error(ErrorKind::bad_file, escaped(m.path, 8192) + ": " + escaped(m.name),
                  "row " + std::to_string(row) + " is not all numbers", "NaN", "finite weights");
    for (int64_t c = 0; c < m.cols; c += W8F::block, to += sizeof(W8F::Block)) {
      float d[2];
      for (int i = 0; i < 2; ++i) d[i] = scale[(c + i * W8F::scale_columns) / m.grid.cell_cols];
      std::memcpy(to + offsetof(W8F::Block, d), d, sizeof d);
      std::memcpy(to + offsetof(W8F::Block, code), codes + c, W8F::block);
    }
  });
}

}  // namespace

ScaleGrid ScaleGrid::over(int64_t rows, int64_t cols, int64_t cell_rows, int64_t cell_cols) {
  ScaleGrid grid;
  grid.cell_rows = cell_rows > 0 ? cell_rows : rows;
  grid.cell_cols = cell_cols > 0 ? cell_cols : cols;
  grid.rows = (rows + grid.cell_rows - 1) / grid.cell_rows;
  grid.cols = (cols + grid.cell_cols - 1) / grid.cell_cols;
  return grid;
}

void note_scales(std::span<const float> scales, IntMatrix& matrix) {
  for (const float scale : scales) {
    matrix.f16_scales = matrix.f16_scales && is_f16(scale);
    matrix.scales_in_f16 = matrix.scales_in_f16 && std::fabs(scale) <= kMaxF16;
  }
}

KeptMatrix keep(IntMatrix matrix, const KeepOptions& options) {
  std::string because = obstacle(matrix, options.exact);
  if (!because.empty()) return keep_plain(std::move(matrix), std::move(because), options.exact);
  const bool wide = (!matrix.symmetric || options.for_gpu) && matrix.cols % W4G128::block == 0 &&
                    share_scales(matrix, W4G128::scale_columns);
  const auto as_blocks = matrix.bits == 8   ? keep_blocks<Q8_0>
                         : wide             ? keep_blocks<W4G128>
                         : matrix.symmetric ? keep_blocks<Q4_0>
                                            : keep_blocks<W4G>;
  const bool rounded = !matrix.f16_scales;
  KeptMatrix out = as_blocks(std::move(matrix));
  out.rounded = rounded;
  if (rounded) out.because = kScales;
  return out;
}

KeptMatrix keep(FloatMatrix matrix, const KeepOptions& options) {
  if (!options.for_gpu) return keep_plain(std::move(matrix), kNoKernel, options.exact);
  std::string because = obstacle(matrix);
  if (!because.empty()) return keep_plain(std::move(matrix), std::move(because), options.exact);
  const auto m = std::make_shared<const FloatMatrix>(std::move(matrix));
  return kept(*m, DType::W8F, [m](int64_t first, int64_t n, std::byte* to) { put_floats(*m, first, n, to); });
}

}  // namespace infer
