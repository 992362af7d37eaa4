// See hf_quant_matrix.h. A tile of rows is taken apart at a time, since the files of GPTQ and AWQ lie by columns.
#include "runtime/hf_quant_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/formats.h"
#include "quant/fp8.h"

namespace infer {
namespace {

constexpr int64_t kTileRows = 16;
constexpr float kMaxF16 = 65504;

KeptMatrix made(const std::string& name, int64_t rows, int64_t cols, DType dtype) {
  KeptMatrix out;
  out.tensor.name = name;
  out.tensor.dtype = dtype;
  out.tensor.dims = {rows, cols};
  out.tensor.bytes = static_cast<size_t>(tensor_bytes(dtype, rows, cols));
  out.tensor.owned = out.tensor.fine = true;
  out.bytes = std::make_unique_for_overwrite<std::byte[]>(out.tensor.bytes);
  out.tensor.data = out.bytes.get();
  return out;
}

bool is_f16(float x) { return f16_to_f32(f32_to_f16(x)) == x || std::isnan(x); }
bool is_bf16(float x) { return bf16_to_f32(f32_to_bf16(x)) == x || std::isnan(x); }

/// Calls fn(row, codes) for every row.
template <class Function>
void for_each_row(const IntMatrix& m, Function&& fn) {
  std::vector<uint8_t> codes(static_cast<size_t>(kTileRows * m.cols));
  for (int64_t first = 0; first < m.rows; first += kTileRows) {
    const int64_t n = std::min(kTileRows, m.rows - first);
    m.codes(first, n, codes.data());
    for (int64_t r = 0; r < n; ++r) fn(first + r, codes.data() + r * m.cols);
  }
}

/// Calls fn(weights) for every row, first to last.
template <class Function>
void for_each_decoded(const IntMatrix& m, Function&& fn) {
  std::vector<float> weights(static_cast<size_t>(m.cols));
  for_each_row(m, [&](int64_t row, const uint8_t* codes) {
    const auto first = static_cast<size_t>(row * m.groups);
    for (size_t c = 0; c < weights.size(); ++c) {
      const size_t at = first + static_cast<size_t>(m.group_of[c]);
      weights[c] = static_cast<float>(codes[c] - m.zero[at]) * m.scale[at];
    }
    fn(weights);
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
    fn(weights);
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
  for_each_decoded(m, [&](const std::vector<float>& weights) {
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
KeptMatrix keep_plain(const Matrix& m, std::string because, bool exact) {
  const PlainChoice choice = choose_plain(m, exact);
  KeptMatrix out = made(m.name, m.rows, m.cols, choice.dtype);
  std::byte* to = out.bytes.get();
  const int64_t bytes = row_bytes(choice.dtype, m.cols);
  for_each_decoded(m, [&](const std::vector<float>& weights) {
    encode_row(choice.dtype, weights.data(), to, m.cols);
    to += bytes;
  });
  out.because = std::move(because);
  out.rounded = choice.rounded;
  return out;
}

// ---- blocks of 32 ------------------------------------------------------------

void put_nibbles(const uint8_t* codes, uint8_t* qs) {
  for (int i = 0; i < kGroup / 2; ++i) qs[i] = static_cast<uint8_t>(codes[i] | codes[i + kGroup / 2] << 4);
}
void put_codes(const uint8_t* codes, int16_t, Q4_0::Block& out) { put_nibbles(codes, out.qs); }
void put_codes(const uint8_t* codes, int16_t zero, W4G::Block& out) {
  out.zero = f32_to_f16(zero);
  put_nibbles(codes, out.qs);
}
void put_codes(const uint8_t* codes, int16_t, Q8_0::Block& out) {
  for (int i = 0; i < kGroup; ++i) out.code[i] = static_cast<int8_t>(codes[i] - 128);
}

template <class F>
KeptMatrix keep_blocks(const IntMatrix& m) {
  KeptMatrix out = made(m.name, m.rows, m.cols, F::id);
  std::byte* to = out.bytes.get();
  for_each_row(m, [&](int64_t row, const uint8_t* codes) {
    for (int64_t c = 0; c < m.cols; c += kGroup, to += sizeof(typename F::Block)) {
      const auto at = static_cast<size_t>(row * m.groups + m.group_of[static_cast<size_t>(c)]);
      typename F::Block block;
      block.d = f32_to_f16(m.scale[at]);
      put_codes(codes + c, m.zero[at], block);
      std::memcpy(to, &block, sizeof block);
    }
  });
  return out;
}

constexpr const char* kScales = "F16 cannot hold their scales";
bool exact_scales(const IntMatrix& m) { return std::all_of(m.scale.begin(), m.scale.end(), is_f16); }

/// Why the matrix cannot be kept in blocks; empty when it can.
std::string obstacle(const IntMatrix& m, bool exact) {
  if (m.bits == 8 && !m.symmetric) return "they have 8 bits and zero points";
  if (m.cols % kGroup != 0) return "their rows are no multiple of 32";
  for (size_t c = 0; c < m.group_of.size(); ++c)
    if (m.group_of[c] != m.group_of[c / kGroup * kGroup])
      return "32 neighbouring weights do not share a scale (desc_act, or an odd group_size)";
  const bool in_range =
      std::all_of(m.scale.begin(), m.scale.end(), [](float scale) { return std::fabs(scale) <= kMaxF16; });
  return in_range && (!exact || exact_scales(m)) ? "" : kScales;
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
  const auto* codes = reinterpret_cast<const uint8_t*>(m.data);
  for (int64_t i = 0; i < m.rows * m.cols; ++i)
    if ((codes[i] & 0x7f) == 0x7f) return "some are not numbers";
  return "";
}

KeptMatrix keep_floats(const FloatMatrix& m) {
  KeptMatrix out = made(m.name, m.rows, m.cols, DType::W8F);
  std::byte* to = out.bytes.get();
  const std::byte* from = m.data;
  for (int64_t r = 0; r < m.rows; ++r) {
    const float* scale = m.scale.data() + r / m.grid.cell_rows * m.grid.cols;
    for (int64_t c = 0; c < m.cols; c += W8F::block, from += W8F::block, to += sizeof(W8F::Block)) {
      W8F::Block block;
      for (int i = 0; i < 2; ++i) block.d[i] = scale[(c + i * W8F::scale_columns) / m.grid.cell_cols];
      std::memcpy(block.code, from, sizeof block.code);
      std::memcpy(to, &block, sizeof block);
    }
  }
  return out;
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

KeptMatrix keep(const IntMatrix& matrix, const KeepOptions& options) {
  std::string because = obstacle(matrix, options.exact);
  if (!because.empty()) return keep_plain(matrix, std::move(because), options.exact);
  KeptMatrix out = matrix.bits == 8   ? keep_blocks<Q8_0>(matrix)
                   : matrix.symmetric ? keep_blocks<Q4_0>(matrix)
                                      : keep_blocks<W4G>(matrix);
  out.rounded = !exact_scales(matrix);
  if (out.rounded) out.because = kScales;
  return out;
}

KeptMatrix keep(const FloatMatrix& matrix, const KeepOptions& options) {
  if (!options.small_floats) return keep_plain(matrix, kNoKernel, options.exact);
  std::string because = obstacle(matrix);
  return because.empty() ? keep_floats(matrix) : keep_plain(matrix, std::move(because), options.exact);
}

}  // namespace infer
