// Quantised matrices as the definitions of AWQ, GPTQ and compressed-tensors pack them, number by number. Nothing here
// is shared with the reader.
#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "quant/half.h"
#include "runtime/hf_owned.h"
#include "runtime/hf_quant_tensors.h"

namespace infer::test {

using Ints = std::vector<std::vector<int>>;

/// Tensors of one module, "m", in memory.
struct QuantFolder {
  Checkpoint checkpoint;
  std::shared_ptr<std::vector<std::string>> bytes = std::make_shared<std::vector<std::string>>();

  QuantFolder() {
    checkpoint.path = "folder";
    bytes->reserve(64);
    checkpoint.storage = bytes;
  }
  void add(const std::string& name, DType dtype, std::vector<int64_t> dims, std::string data) {
    bytes->push_back(std::move(data));
    HostTensor tensor;
    tensor.name = name;
    tensor.dtype = dtype;
    tensor.dims = std::move(dims);
    tensor.data = reinterpret_cast<const std::byte*>(bytes->back().data());
    tensor.bytes = bytes->back().size();
    checkpoint.tensors.push_back(tensor);
  }
  HostTensor& at(const std::string& name) {
    for (HostTensor& tensor : checkpoint.tensors)
      if (tensor.name == name) return tensor;
    throw std::logic_error(name);
  }
  void drop(const std::string& name) {
    std::erase_if(checkpoint.tensors, [&](const HostTensor& t) { return t.name == name; });
  }
  const HostTensor& unpack(const HfQuant& quant, bool exact = true) {
    return unpack(quant, KeepOptions{.exact = exact});
  }
  const HostTensor& unpack(const HfQuant& quant, const KeepOptions& keep) {
    unpack_quantised(checkpoint, quant, {.n_threads = 2, .keep = keep});
    make_numbers(checkpoint, 2, {});
    return at("m.weight");
  }
};

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// A matrix before it is packed: weight = scale * (code - zero), by row and group of columns.
struct Matrix {
  int64_t rows, cols, groups;
  int bits;
  Ints code, zero;
  std::vector<std::vector<float>> scale;
  std::vector<int> group_of;

  Matrix(int64_t rows_, int64_t cols_, int64_t group, int bits_, bool symmetric, bool shuffled = false)
      : rows(rows_), cols(cols_), groups((cols + group - 1) / group), bits(bits_) {
    std::mt19937 random(static_cast<unsigned>(rows * 7 + cols + group + bits));
    const int most = (1 << bits) - 1;
    for (int64_t r = 0; r < rows; ++r) {
      code.emplace_back(), zero.emplace_back(), scale.emplace_back();
      for (int64_t c = 0; c < cols; ++c) code.back().push_back(static_cast<int>(random()) & most);
      for (int64_t g = 0; g < groups; ++g) {
        zero.back().push_back(symmetric ? 1 << (bits - 1) : static_cast<int>(random()) & most);
        scale.back().push_back(static_cast<float>(random() % 2048 + 1) * 0x1p-17f);
      }
    }
    for (int64_t c = 0; c < cols; ++c) group_of.push_back(static_cast<int>(c / group));
    if (shuffled) std::shuffle(group_of.begin(), group_of.end(), random);
  }

  std::vector<float> weights() const {
    std::vector<float> out;
    for (size_t r = 0; r < code.size(); ++r)
      for (size_t c = 0; c < code[r].size(); ++c) {
        const auto g = static_cast<size_t>(group_of[c]);
        out.push_back(static_cast<float>(code[r][c] - zero[r][g]) * scale[r][g]);
      }
    return out;
  }
  /// get(row, group) for every group of every row, groups outermost.
  template <class T, class Function>
  std::string by_group(Function&& get) const {
    std::vector<T> out;
    for (size_t g = 0; g < static_cast<size_t>(groups); ++g)
      for (size_t r = 0; r < code.size(); ++r) out.push_back(static_cast<T>(get(r, g)));
    return bytes_of(out);
  }
  template <class T, class Function>
  std::string by_row(Function&& get) const {
    std::vector<T> out;
    for (size_t r = 0; r < code.size(); ++r)
      for (size_t g = 0; g < static_cast<size_t>(groups); ++g) out.push_back(static_cast<T>(get(r, g)));
    return bytes_of(out);
  }
  std::string halves() const {
    return by_group<uint16_t>([&](size_t r, size_t g) { return f32_to_f16(scale[r][g]); });
  }
};

/// Words of 32 bits in a matrix; put() sets one number in one of them.
struct Words {
  int64_t n_rows, n_cols;
  std::vector<uint32_t> words;
  Words(int64_t rows, int64_t cols) : n_rows(rows), n_cols(cols), words(static_cast<size_t>(rows * cols)) {}
  void put(int64_t row, int64_t col, int64_t shift, int value) {
    words[static_cast<size_t>(row * n_cols + col)] |= static_cast<uint32_t>(value) << shift;
  }
  void add_to(QuantFolder& folder, const std::string& name) const {
    folder.add(name, DType::I32, {n_rows, n_cols}, bytes_of(words));
  }
};

inline QuantFolder awq_folder(const Matrix& m) {
  constexpr int kColumn[8] = {0, 2, 4, 6, 1, 3, 5, 7};  // of nibble i
  Words codes(m.cols, m.rows / 8), zeros(m.groups, m.rows / 8);
  for (int64_t w = 0; w < m.rows / 8; ++w)
    for (int i = 0; i < 8; ++i) {
      const auto row = static_cast<size_t>(8 * w + kColumn[i]);
      for (int64_t c = 0; c < m.cols; ++c) codes.put(c, w, 4 * i, m.code[row][static_cast<size_t>(c)]);
      for (int64_t g = 0; g < m.groups; ++g) zeros.put(g, w, 4 * i, m.zero[row][static_cast<size_t>(g)]);
    }
  QuantFolder folder;
  codes.add_to(folder, "m.qweight");
  zeros.add_to(folder, "m.qzeros");
  folder.add("m.scales", DType::F16, {m.groups, m.rows}, m.halves());
  return folder;
}

inline QuantFolder gptq_folder(const Matrix& m, bool v2) {
  const int per_word = 32 / m.bits, mask = (1 << m.bits) - 1;
  Words codes(m.cols / per_word, m.rows), zeros(m.groups, m.rows / per_word);
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t c = 0; c < m.cols; ++c)
      codes.put(c / per_word, r, c % per_word * m.bits, m.code[static_cast<size_t>(r)][static_cast<size_t>(c)]);
    for (int64_t g = 0; g < m.groups; ++g)
      zeros.put(g, r / per_word, r % per_word * m.bits,
                (m.zero[static_cast<size_t>(r)][static_cast<size_t>(g)] - (v2 ? 0 : 1)) & mask);
  }
  QuantFolder folder;
  codes.add_to(folder, "m.qweight");
  zeros.add_to(folder, "m.qzeros");
  folder.add("m.scales", DType::F16, {m.groups, m.rows}, m.halves());
  folder.add("m.g_idx", DType::I32, {m.cols}, bytes_of(m.group_of));
  return folder;
}

inline QuantFolder packed_folder(const Matrix& m, bool with_zeros) {
  const int per_word = 32 / m.bits;
  Words codes(m.rows, (m.cols + per_word - 1) / per_word), zeros((m.rows + per_word - 1) / per_word, m.groups);
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t c = 0; c < m.cols; ++c)
      codes.put(r, c / per_word, c % per_word * m.bits, m.code[static_cast<size_t>(r)][static_cast<size_t>(c)]);
    for (int64_t g = 0; g < m.groups; ++g)
      zeros.put(r / per_word, g, r % per_word * m.bits, m.zero[static_cast<size_t>(r)][static_cast<size_t>(g)]);
  }
  QuantFolder folder;
  codes.add_to(folder, "m.weight_packed");
  folder.add("m.weight_shape", DType::I64, {2}, bytes_of(std::vector<int64_t>{m.rows, m.cols}));
  folder.add("m.weight_scale", DType::F32, {m.rows, m.groups},
             m.by_row<float>([&](size_t r, size_t g) { return m.scale[r][g]; }));
  if (with_zeros) zeros.add_to(folder, "m.weight_zero_point");
  return folder;
}

}  // namespace infer::test
