// See hf_quant_matrix.h. Codes are read and written once, tile by tile or row by row.
#include "runtime/hf_quant_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>

#include "quant/formats.h"
#include "quant/fp8.h"

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

/// Calls fn(tile, codes) for tiles that cover rows [first, first + n).
template <class Function>
void for_each_tile(const IntMatrix& m, int64_t first, int64_t n, Function&& fn) {
  TileCodes codes(m.bits, m.tiles);
  for (int64_t row = first / 8 * 8; row < first + n; row += m.tiles.rows)
    for (int64_t col = 0; col < m.cols; col += m.tiles.cols) {
      const Tile tile{row, std::min(m.tiles.rows, first + n - row), col, std::min(m.tiles.cols, m.cols - col),
                      std::max(int64_t{0}, first - row)};
      m.codes(tile, codes);
      fn(tile, codes);
    }
}

/// Calls fn(row, col, weights) for stretches that make up rows [first, first + n).
template <class Function>
void for_each_decoded(const IntMatrix& m, int64_t first, int64_t n, Function&& fn) {
  std::vector<float> weights(static_cast<size_t>(m.tiles.cols));
  for_each_tile(m, first, n, [&](const Tile& tile, const TileCodes& codes) {
    for (int64_t r = tile.skip; r < tile.n_rows; ++r) {
      for (int64_t c = 0; c < tile.n_cols; ++c) {
        const auto at = static_cast<size_t>((tile.row + r) * m.groups + m.group_of[static_cast<size_t>(tile.col + c)]);
        const int zero = m.symmetric ? 1 << (m.bits - 1) : m.zero[at];
        weights[static_cast<size_t>(c)] = static_cast<float>(codes.at(r, c) - zero) * m.scale[at];
      }
      fn(tile.row + r, tile.col, std::span<const float>(weights.data(), static_cast<size_t>(tile.n_cols)));
    }
  });
}

template <class Function>
void for_each_decoded(const FloatMatrix& m, int64_t first, int64_t n, Function&& fn) {
  float value[256];
  for (int i = 0; i < 256; ++i) value[i] = e4m3_to_f32(static_cast<uint8_t>(i));
  std::vector<float> weights(static_cast<size_t>(m.cols));
  for (int64_t r = first; r < first + n; ++r) {
    const auto* codes = reinterpret_cast<const uint8_t*>(m.data) + r * m.cols;
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
  std::vector<uint16_t> d;  ///< [rows][groups]
  uint16_t zero[256];       ///< of a code
  bool exact = true, in_range = true;
};

HalfScales half_scales(const IntMatrix& m) {
  HalfScales out;
  for (int i = 0; i < 256; ++i) out.zero[i] = f32_to_f16(static_cast<float>(i));
  out.d.resize(m.scale.size());
  const float* const scale = m.scale.data();
  uint16_t* const d = out.d.data();
  bool exact = true;
  float largest = 0;
  for (size_t i = 0; i < out.d.size(); ++i) {
    d[i] = f32_to_f16(scale[i]);
    exact = exact && is_f16(scale[i]);
    largest = std::max(largest, std::fabs(scale[i]));
  }
  out.exact = exact;
  out.in_range = largest <= kMaxF16;
  return out;
}

/// Writes a tile's rows to the blocks of rows from `first` on.
template <class F>
void put_tile(const IntMatrix& m, const HalfScales& half, const Tile& tile, const TileCodes& codes, int64_t first,
              typename F::Block* blocks) {
  constexpr int kGroups = F::block / kGroup;
  const int32_t* const group_of = m.group_of.data() + tile.col;
  const int64_t n_cols = tile.n_cols, group_bytes = codes.group_bytes();
  for (int64_t r = tile.skip; r < tile.n_rows; ++r) {
    const int64_t row = tile.row + r, at = (row - first) * m.cols + tile.col;
    const uint16_t* const d = half.d.data() + row * m.groups;
    const uint8_t* const zero = m.symmetric ? nullptr : m.zero.data() + row * m.groups;
    const uint8_t* from = codes.group(r, 0);
    auto* block = blocks + at / F::block;
    int group = static_cast<int>(at % F::block) / kGroup;
    // Written in place: a copy would be read at other widths than it was just written, and wait for that.
    for (int64_t c = 0; c < n_cols; c += kGroup, from += group_bytes) {
      const int32_t of = group_of[c];
      put_group(from, d[of], half.zero[zero ? zero[of] : 1 << (m.bits - 1)], group, *block);
      if (++group == kGroups) group = 0, ++block;
    }
  }
}

template <class F>
KeptMatrix keep_blocks(IntMatrix matrix, HalfScales half) {
  matrix.scale = {};  // `half` says it from here on
  const auto m = std::make_shared<const IntMatrix>(std::move(matrix));
  return kept(*m, F::id, [m, half = std::move(half)](int64_t first, int64_t n, std::byte* to) {
    for_each_tile(*m, first, n, [&](const Tile& tile, const TileCodes& codes) {
      put_tile<F>(*m, half, tile, codes, first, reinterpret_cast<typename F::Block*>(to));
    });
  });
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

/// Whether a code is no number, which blocks cannot hold.
bool has_no_number(const FloatMatrix& m) {
  const auto* const codes = reinterpret_cast<const uint8_t*>(m.data);
  uint8_t found = 0;
  for (int64_t i = 0; i < m.rows * m.cols; ++i) found |= (codes[i] & 0x7f) == 0x7f;
  return found != 0;
}

void put_floats(const FloatMatrix& m, int64_t first, int64_t n, std::byte* to) {
  const std::byte* from = m.data + first * m.cols;
  for (int64_t r = first; r < first + n; ++r) {
    const float* scale = m.scale.data() + r / m.grid.cell_rows * m.grid.cols;
    for (int64_t c = 0; c < m.cols; c += W8F::block, from += W8F::block, to += sizeof(W8F::Block)) {
      float d[2];
      for (int i = 0; i < 2; ++i) d[i] = scale[(c + i * W8F::scale_columns) / m.grid.cell_cols];
      std::memcpy(to + offsetof(W8F::Block, d), d, sizeof d);
      std::memcpy(to + offsetof(W8F::Block, code), from, W8F::block);
    }
  }
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

KeptMatrix keep(IntMatrix matrix, const KeepOptions& options) {
  HalfScales half = half_scales(matrix);
  std::string because = obstacle(matrix, half, options.exact);
  if (!because.empty()) return keep_plain(std::move(matrix), std::move(because), options.exact);
  const bool wide = (!matrix.symmetric || options.for_gpu) && matrix.cols % W4G128::block == 0 &&
                    share_scales(matrix, W4G128::scale_columns);
  const auto as_blocks = matrix.bits == 8   ? keep_blocks<Q8_0>
                         : wide             ? keep_blocks<W4G128>
                         : matrix.symmetric ? keep_blocks<Q4_0>
                                            : keep_blocks<W4G>;
  const bool rounded = !half.exact;
  KeptMatrix out = as_blocks(std::move(matrix), std::move(half));
  out.rounded = rounded;
  if (rounded) out.because = kScales;
  return out;
}

KeptMatrix keep(FloatMatrix matrix, const KeepOptions& options) {
  if (!options.for_gpu) return keep_plain(std::move(matrix), kNoKernel, options.exact);
  std::string because = obstacle(matrix);
  if (because.empty() && has_no_number(matrix)) because = "some are not numbers";
  if (!because.empty()) return keep_plain(std::move(matrix), std::move(because), options.exact);
  const auto m = std::make_shared<const FloatMatrix>(std::move(matrix));
  return kept(*m, DType::W8F, [m](int64_t first, int64_t n, std::byte* to) { put_floats(*m, first, n, to); });
}

}  // namespace infer
