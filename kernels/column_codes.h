// Codes that lie by columns, as files of AWQ and GPTQ have them. To make rows of blocks of them (MakeRows) a host reads
// a few bytes of each column; a device that has a kernel for it takes the bytes as they lie (Backend::pack_columns).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/make_rows.h"

namespace infer {

/// A matrix whose weights are scale * (code - zero), scale and zero as a row and a group of columns have them. All
/// pointers may be odd.
struct ColumnCodes {
  /// Words of 32 bits of `codes`, the first code in the lowest bits.
  enum class Order {
    awq,   ///< [cols][rows / 8]: of rows 8w + 0, 2, 4, 6, 1, 3, 5, 7, so are the words of `zeros`
    gptq,  ///< [cols * bits / 32][rows]: of neighbouring columns
  };
  Order order = Order::awq;
  int bits = 4;                       ///< 4; of gptq 8, too
  int64_t rows = 0, cols = 0;         ///< of the matrix: rows of awq a multiple of 8, columns one of 32
  int64_t group_cols = 0;             ///< that share a scale, a multiple of 32
  const std::byte* codes = nullptr;   ///< rows * cols * bits / 8 bytes
  const std::byte* scales = nullptr;  ///< f16 [groups][rows]
  const std::byte* zeros = nullptr;   ///< words [groups][rows * bits / 32, rounded up]; null: all are 2^(bits - 1)
  int zero_bias = 0;                  ///< what is added to a zero point of the file, modulo 2^bits
  ReadBytes read;                     ///< brings what lies in files; may be empty

  int64_t n_groups() const { return (cols + group_cols - 1) / group_cols; }
  int64_t zero_words() const { return (rows * bits + 31) / 32; }  ///< of a group
  void copy(const std::byte* from, size_t bytes, std::byte* to) const { copy_bytes(read, from, bytes, to); }
};

}  // namespace infer
