// See hf_quant_matrix.h. Each matrix is read and written once, tile by tile or row by row.
#include "runtime/hf_quant_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "quant/formats.h"
#include "quant/fp8.h"
#include "runtime/pages.h"

namespace infer {
namespace {

constexpr float kMaxF16 = 65504;

/// What is kept, and the memory that it points to.
struct Made {
  KeptMatrix matrix;
  std::byte* to;
};

Made made(const std::string& name, int64_t rows, int64_t cols, DType dtype, OwnedBytes& owned) {
  KeptMatrix out;
  out.tensor.name = name;
  out.tensor.dtype = dtype;
  out.tensor.dims = {rows, cols};
  out.tensor.bytes = static_cast<size_t>(tensor_bytes(dtype, rows, cols));
  out.tensor.owned = out.tensor.fine = true;
  std::byte* const to = owned.add(out.tensor.bytes);
  out.tensor.data = to;
  return {std::move(out), to};
}

bool is_f16(float x) { return f16_to_f32(f32_to_f16(x)) == x || std::isnan(x); }
bool is_bf16(float x) { return bf16_to_f32(f32_to_bf16(x)) == x || std::isnan(x); }

/// Calls fn(tile, codes) for every tile.
template <class Function>
void for_each_tile(const IntMatrix& m, Function&& fn) {
  TileCodes codes(m.bits, m.tiles);
  for (int64_t row = 0; row < m.rows; row += m.tiles.rows)
    for (int64_t col = 0; col < m.cols; col += m.tiles.cols) {
      const Tile tile{row, std::min(m.tiles.rows, m.rows - row), col, std::min(m.tiles.cols, m.cols - col)};
      m.codes(tile, codes);
      fn(tile, codes);
    }
}

/// Calls fn(row, col, weights) for stretches of rows that make up the matrix.
template <class Function>
void for_each_decoded(const IntMatrix& m, Function&& fn) {
  for_each_tile(m, [&](const Tile& tile, const TileCodes& codes) {
    std::vector<float> weights(static_cast<size_t>(tile.n_cols));
    for (int64_t r = 0; r < tile.n_rows; ++r) {
      for (int64_t c = 0; c < tile.n_cols; ++c) {
        const auto at = static_cast<size_t>((tile.row + r) * m.groups + m.group_of[static_cast<size_t>(tile.col + c)]);
        weights[static_cast<size_t>(c)] = static_cast<float>(codes.at(r, c) - m.zero[at]) * m.scale[at];
      }
      fn(tile.row + r, tile.col, std::span<const float>(weights));
    }
  });
}

template <class Function>
void for_each_decoded(const FloatMatrix& m, Function&& fn) {
  float value[256];
  for (int i = 0; i < 256; ++i) value[i] = e4m3_to_f32(static_cast<uint8_t>(i));
  const auto* codes = reinterpret_cast<const uint8_t*>(m.data);
  std::vector<float> weights(static_cast<size_t>(m.cols));
  for (int64_t r = 0; r < m.rows; ++r, codes += m.cols) {
    const float* scale = m.scale.data() + r / m.grid.cell_rows * m.grid.cols;
    for (int64_t cell = 0; cell < m.grid.cols; ++cell) {
      const int64_t begin = cell * m.grid.cell_cols, end = std::min(m.cols, begin + m.grid.cell_cols);
      for (int64_t c = begin; c < end; ++c) weights[static_cast<size_t>(c)] = value[codes[c]] * scale[cell];
    }
    fn(r, int64_t{0}, std::span<const float>(weights));
  }
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
  for_each_decoded(m, [&](int64_t, int64_t, std::span<const float> weights) {
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
KeptMatrix keep_plain(const Matrix& m, std::string because, bool exact, OwnedBytes& owned) {
  const PlainChoice choice = choose_plain(m, exact);
  auto [out, to] = made(m.name, m.rows, m.cols, choice.dtype, owned);
  const int64_t number = row_bytes(choice.dtype, 1);
  for_each_decoded(m, [&, at = to](int64_t row, int64_t col, std::span<const float> weights) {
    encode_row(choice.dtype, weights.data(), at + (row * m.cols + col) * number, static_cast<int64_t>(weights.size()));
  });
  out.because = std::move(because);
  out.rounded = choice.rounded;
  return std::move(out);
}

// ---- blocks ------------------------------------------------------------

/// Group `group` of a block; `codes` as TileCodes has them.
void put_group(const uint8_t* codes, uint16_t d, uint16_t, int, Q4_0::Block& out) {
  out.d = d;
  std::memcpy(out.qs, codes, sizeof out.qs);
}
void put_group(const uint8_t* codes, uint16_t d, uint16_t zero, int, W4G::Block& out) {
  out.d = d, out.zero = zero;
  std::memcpy(out.qs, codes, sizeof out.qs);
}
void put_group(const uint8_t* codes, uint16_t d, uint16_t zero, int group, W4G128::Block& out) {
  const int of = group * kGroup / W4G128::scale_columns;
  out.d[of] = d, out.zero[of] = zero;
  std::memcpy(out.qs + kGroup / 2 * group, codes, kGroup / 2);
}
void put_group(const uint8_t* codes, uint16_t d, uint16_t, int, Q8_0::Block& out) {
  out.d = d;
  uint8_t code[kGroup];
  for (int i = 0; i < kGroup; ++i) code[i] = codes[i] ^ 128u;
  std::memcpy(out.code, code, sizeof code);
}

/// Scales and zero points as blocks have them.
struct HalfScales {
  std::vector<uint16_t> d, zero;  ///< [rows][groups]
  bool exact = true, in_range = true;
};

HalfScales half_scales(const IntMatrix& m) {
  uint16_t half[256 + 1];
  for (int i = 0; i <= 256; ++i) half[i] = f32_to_f16(static_cast<float>(i));
  HalfScales out;
  out.d.resize(m.scale.size());
  out.zero.resize(m.zero.size());
  for (size_t i = 0; i < m.scale.size(); ++i) {
    out.d[i] = f32_to_f16(m.scale[i]);
    out.exact = out.exact && f16_to_f32(out.d[i]) == m.scale[i];
    out.in_range = out.in_range && std::fabs(m.scale[i]) <= kMaxF16;
    out.zero[i] = half[m.zero[i]];
  }
  return out;
}

template <class F>
KeptMatrix keep_blocks(const IntMatrix& m, const HalfScales& scales, OwnedBytes& owned) {
  auto [out, to] = made(m.name, m.rows, m.cols, F::id, owned);
  for_each_tile(m, [&, to = reinterpret_cast<typename F::Block*>(to)](const Tile& tile, const TileCodes& codes) {
    const int32_t* const group_of = m.group_of.data() + tile.col;
    for (int64_t r = 0; r < tile.n_rows; ++r) {
      const int64_t row = tile.row + r;
      const uint16_t *const d = scales.d.data() + row * m.groups, *const zero = scales.zero.data() + row * m.groups;
      const uint8_t* from = codes.group(r, 0);
      // Written in place: a copy would be read at other widths than it was just written, and wait for that.
      for (int64_t c = 0; c < tile.n_cols; c += kGroup, from += codes.group_bytes()) {
        const auto at = static_cast<uint64_t>(row * m.cols + tile.col + c);
        put_group(from, d[group_of[c]], zero[group_of[c]], static_cast<int>(at % F::block) / kGroup, to[at / F::block]);
      }
    }
  });
  return std::move(out);
}

constexpr const char* kScales = "F16 cannot hold their scales";

/// Whether each `n` neighbouring weights of a row, from its first on, share a scale.
bool share_scales(const IntMatrix& m, size_t n) {
  for (size_t c = 0; c < m.group_of.size(); ++c)
    if (m.group_of[c] != m.group_of[c / n * n]) return false;
  return true;
}

/// Why the matrix cannot be kept in blocks; empty when it can.
std::string obstacle(const IntMatrix& m, const HalfScales& scales, bool exact) {
  if (m.bits == 8 && !m.symmetric) return "they have 8 bits and zero points";
  if (m.cols % kGroup != 0) return "their rows are no multiple of 32";
  if (!share_scales(m, kGroup)) return "32 neighbouring weights do not share a scale (desc_act, or an odd group_size)";
  return scales.in_range && (!exact || scales.exact) ? "" : kScales;
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

/// Writes the blocks; false where a code is no number, which blocks cannot hold.
bool put_floats(const FloatMatrix& m, std::byte* to) {
  const std::byte* from = m.data;
  uint8_t no_number = 0;
  for (int64_t r = 0; r < m.rows; ++r) {
    const float* scale = m.scale.data() + r / m.grid.cell_rows * m.grid.cols;
    for (int64_t c = 0; c < m.cols; c += W8F::block, from += W8F::block, to += sizeof(W8F::Block)) {
      W8F::Block block;
      for (int i = 0; i < 2; ++i) block.d[i] = scale[(c + i * W8F::scale_columns) / m.grid.cell_cols];
      std::memcpy(block.code, from, sizeof block.code);
      for (const uint8_t code : block.code) no_number |= (code & 0x7f) == 0x7f;
      std::memcpy(to, &block, sizeof block);
    }
  }
  return no_number == 0;
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

KeptMatrix keep(const IntMatrix& matrix, const KeepOptions& options, OwnedBytes& owned) {
  const HalfScales scales = half_scales(matrix);
  std::string because = obstacle(matrix, scales, options.exact);
  if (!because.empty()) return keep_plain(matrix, std::move(because), options.exact, owned);
  const bool wide = (!matrix.symmetric || options.for_gpu) && matrix.cols % W4G128::block == 0 &&
                    share_scales(matrix, W4G128::scale_columns);
  KeptMatrix out = matrix.bits == 8   ? keep_blocks<Q8_0>(matrix, scales, owned)
                   : wide             ? keep_blocks<W4G128>(matrix, scales, owned)
                   : matrix.symmetric ? keep_blocks<Q4_0>(matrix, scales, owned)
                                      : keep_blocks<W4G>(matrix, scales, owned);
  out.rounded = !scales.exact;
  if (out.rounded) out.because = kScales;
  return out;
}

KeptMatrix keep(const FloatMatrix& matrix, const KeepOptions& options, OwnedBytes& owned) {
  if (!options.for_gpu) return keep_plain(matrix, kNoKernel, options.exact, owned);
  std::string because = obstacle(matrix);
  if (because.empty()) {
    auto [out, to] = made(matrix.name, matrix.rows, matrix.cols, DType::W8F, owned);
    if (put_floats(matrix, to)) return std::move(out);
    drop_buffer_pages(to, out.tensor.bytes);
    because = "some are not numbers";
  }
  return keep_plain(matrix, std::move(because), options.exact, owned);
}

}  // namespace infer
