// The integers of quantised matrices, taken out of the words of a file tile by tile: a tile of codes stays in the first
// cache, and of what lies by columns in the file whole cache lines are read. `words` may lie anywhere, as tensors of
// files do. No scales here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infer {

inline constexpr int64_t kTileRows = 128, kTileCols = 64;

/// Rows [row, row + n_rows) and columns [col, col + n_cols) of a matrix; `row` is a multiple of kTileRows, `col` one of
/// kTileCols.
struct Tile {
  int64_t row, n_rows, col, n_cols;
};
/// Codes of a tile, from 0 on; beyond its edges anything.
using TileCodes = uint8_t[kTileRows][kTileCols];

/// AWQ of 4 bits: words [cols][rows / 8], each with the codes of rows 8w + 0, 2, 4, 6, 1, 3, 5, 7.
void awq_codes(const std::byte* words, int64_t rows, const Tile& tile, TileCodes& out);
/// GPTQ: words [cols * bits / 32][rows], each with codes of neighbouring columns.
void gptq_codes(const std::byte* words, int bits, int64_t rows, const Tile& tile, TileCodes& out);
/// pack-quantized: words [rows][words_per_row], each with codes of neighbouring columns.
void packed_codes(const std::byte* words, int bits, int64_t words_per_row, const Tile& tile, TileCodes& out);
/// int-quantized: bytes [rows][cols] from -128 on.
void signed_codes(const std::byte* bytes, int64_t cols, const Tile& tile, TileCodes& out);

/// Where AWQ has row i of the eight that share a word.
inline constexpr int kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

}  // namespace infer
