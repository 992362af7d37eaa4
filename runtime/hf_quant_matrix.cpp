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

HostTensor described(const std::string& name, int64_t rows, int64_t cols, DType dtype) {
  HostTensor out;
  out.name = name;
  out.dtype = dtype;
  out.dims = {rows, cols};
  out.bytes = static_cast<size_t>(tensor_bytes(dtype, rows, cols));
  out.owned = true;
  return out;
}

bool is_f16(float x) { return f16_to_f32(f32_to_f16(x)) == x || std::isnan(x); }
bool is_bf16(float x) { return bf16_to_f32(f32_to_bf16(x)) == x || std::isnan(x); }

// ---- plain numbers ------------------------------------------------------------

/// Weights as floats, in the smallest format that has them all.
KeptMatrix keep_plain(const std::string& name, int64_t rows, int64_t cols, std::string because,
                      const std::vector<float>& weights) {
  bool bf16 = true, f16 = true;
  for (const float w : weights) bf16 = bf16 && is_bf16(w), f16 = f16 && is_f16(w);
  KeptMatrix out;
  out.tensor = described(name, rows, cols, bf16 ? DType::BF16 : f16 ? DType::F16 : DType::F32);
  out.bytes = std::make_unique_for_overwrite<std::byte[]>(out.tensor.bytes);
  encode_row(out.tensor.dtype, weights.data(), out.bytes.get(), rows * cols);
  out.tensor.data = out.bytes.get();
  out.plain_because = std::move(because);
  return out;
}

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

std::vector<float> decoded(const IntMatrix& m) {
  std::vector<float> out(static_cast<size_t>(m.rows * m.cols));
  for_each_row(m, [&](int64_t row, const uint8_t* codes) {
    float* to = out.data() + row * m.cols;
    for (int64_t c = 0; c < m.cols; ++c) {
      const auto at = static_cast<size_t>(row * m.groups + m.group_of[static_cast<size_t>(c)]);
      to[c] = static_cast<float>(codes[c] - m.zero[at]) * m.scale[at];
    }
  });
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
  KeptMatrix out;
  out.tensor = described(m.name, m.rows, m.cols, F::id);
  out.bytes = std::make_unique_for_overwrite<std::byte[]>(out.tensor.bytes);
  out.tensor.data = out.bytes.get();
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

/// Why the matrix cannot be kept in blocks; empty when it can.
std::string obstacle(const IntMatrix& m) {
  if (m.bits == 8 && !m.symmetric) return "they have 8 bits and zero points";
  if (m.cols % kGroup != 0) return "their rows are no multiple of 32";
  for (size_t c = 0; c < m.group_of.size(); ++c)
    if (m.group_of[c] != m.group_of[c / kGroup * kGroup])
      return "32 neighbouring weights do not share a scale (desc_act, or an odd group_size)";
  return std::all_of(m.scale.begin(), m.scale.end(), is_f16) ? "" : "F16 cannot hold their scales";
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

KeptMatrix keep(const IntMatrix& matrix) {
  std::string because = obstacle(matrix);
  if (!because.empty()) return keep_plain(matrix.name, matrix.rows, matrix.cols, std::move(because), decoded(matrix));
  if (matrix.bits == 8) return keep_blocks<Q8_0>(matrix);
  return matrix.symmetric ? keep_blocks<Q4_0>(matrix) : keep_blocks<W4G>(matrix);
}

KeptMatrix keep(const FloatMatrix& matrix) {
  float value[256];
  for (int i = 0; i < 256; ++i) value[i] = e4m3_to_f32(static_cast<uint8_t>(i));
  std::vector<float> weights(static_cast<size_t>(matrix.rows * matrix.cols));
  const auto* from = reinterpret_cast<const uint8_t*>(matrix.data);
  for (int64_t r = 0; r < matrix.rows; ++r) {
    const float* scale = matrix.scale.data() + r / matrix.grid.cell_rows * matrix.grid.cols;
    for (int64_t c = 0; c < matrix.cols; ++c) {
      const auto at = static_cast<size_t>(r * matrix.cols + c);
      weights[at] = value[from[at]] * scale[c / matrix.grid.cell_cols];
    }
  }
  return keep_plain(matrix.name, matrix.rows, matrix.cols, "no kernel computes with 8-bit floats", weights);
}

}  // namespace infer
