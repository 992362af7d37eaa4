// The integers of quantised matrices, taken out of the words of a file tile by tile: a tile of codes stays in the first
// cache, and of what lies by columns in the file whole cache lines are read. `words` may lie anywhere, as tensors of
// files do. No scales here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace infer {

/// Rows [row, row + n_rows) and columns [col, col + n_cols) of a matrix. `row` is a multiple of 8, and `col` one of 32.
struct Tile {
  int64_t row, n_rows, col, n_cols;
  int64_t skip = 0;  ///< so many of its rows nobody asks for
};
/// How large tiles are: kTileCodes at most, rows a multiple of 8 and columns one of 32.
struct TileShape {
  int64_t rows, cols;
};
inline constexpr int64_t kTileCodes = 131072;
/// Where words lie by columns, what is read of each is whole lines of the cache; where they lie by rows, it is long.
inline constexpr TileShape kColumnTiles = {128, 1024}, kRowTiles = {8, 4096};

/// The codes of a tile, from 0 on, rows at equal distances; beyond its edges anything. Those of 8 bits have a byte
/// each, those of 4 bits lie as in the blocks of quant/: 16 bytes to 32 columns, byte i with column i in its low half
/// and column i + 16 in its high half.
struct TileCodes {
  int bits;
  int64_t row_bytes;
  uint8_t bytes[kTileCodes];
  /// The file's rows [first_line, end_line), for those who read whole ones, and tile after tile out of them.
  std::vector<std::byte> lines;
  int64_t first_line = 0, end_line = 0;

  TileCodes(int bits_, const TileShape& shape) : bits(bits_), row_bytes(shape.cols * bits / 8) {}
  int64_t group_bytes() const { return 32 * bits / 8; }
  /// The group of 32 columns that begins at `col`.
  uint8_t* group(int64_t row, int64_t col) { return bytes + row * row_bytes + col * bits / 8; }
  const uint8_t* group(int64_t row, int64_t col) const { return bytes + row * row_bytes + col * bits / 8; }
  int at(int64_t row, int64_t col) const {
    const uint8_t* const of = group(row, col / 32 * 32);
    return bits == 8 ? of[col % 32] : of[col % 16] >> (col / 16 % 2 * 4) & 15;
  }
};

/// 32 codes of 4 bits as a block has them, 16 bytes, from 16 bytes in which neighbours share one. Either may lie
/// anywhere.
inline void put_neighbours(const void* codes, void* out) {
  using Bytes = uint8_t __attribute__((vector_size(16)));
  Bytes low, high;  // columns from 0 and from 16 on in the first half
  std::memcpy(&low, codes, sizeof low);
  high = __builtin_shufflevector(low, low, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  const Bytes even = (low & 15) | high << 4, odd = low >> 4 | (high & 0xf0);
  low = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  std::memcpy(out, &low, sizeof low);
}

/// AWQ of 4 bits: words [cols][rows / 8], each with the codes of rows 8w + 0, 2, 4, 6, 1, 3, 5, 7.
void awq_codes(const std::byte* words, int64_t rows, const Tile& tile, TileCodes& out);
/// GPTQ: words [cols * bits / 32][rows], each with codes of neighbouring columns.
void gptq_codes(const std::byte* words, int64_t rows, const Tile& tile, TileCodes& out);
/// pack-quantized: words [rows][words_per_row], each with codes of neighbouring columns.
void packed_codes(const std::byte* words, int64_t words_per_row, const Tile& tile, TileCodes& out);
/// int-quantized: bytes [rows][cols] from -128 on.
void signed_codes(const std::byte* bytes, int64_t cols, const Tile& tile, TileCodes& out);

/// Where AWQ has row i of the eight that share a word.
inline constexpr int kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

}  // namespace infer
