// See hf_quant_codes.h. Plain loops over whole words and lines, which compilers turn into vectors.
#include "runtime/hf_quant_codes.h"

#include <algorithm>

namespace infer {
namespace {

constexpr int64_t kGroupCols = 32, kHalfCols = kGroupCols / 2;

/// Copies `bytes`, at their usual number in a few instructions.
template <size_t usual>
void copy(const std::byte* from, size_t bytes, void* to) {
  bytes == usual ? std::memcpy(to, from, usual) : std::memcpy(to, from, bytes);
}

/// What is read of a group of columns at a time: lines of 128 rows.
constexpr int64_t kLineRows = 128;

/// The first and the second half of `from` in turn.
template <size_t n>
void take_in_turn(const uint8_t (&from)[n], uint8_t (&to)[n]) {
  for (size_t i = 0; i < n / 2; ++i) to[2 * i] = from[i], to[2 * i + 1] = from[n / 2 + i];
}

/// Columns `low` and `high`, whose bytes hold two codes each: those in low halves become bytes of a block in the first
/// half of `out`, those in high halves in the second.
template <size_t n>
void pair_columns(const uint8_t* low, const uint8_t* high, uint8_t (&out)[n]) {
  for (size_t i = 0; i < n / 2; ++i) out[i] = static_cast<uint8_t>((low[i] & 15) | high[i] << 4);
  for (size_t i = 0; i < n / 2; ++i) out[n / 2 + i] = static_cast<uint8_t>(low[i] >> 4 | (high[i] & 0xf0));
}

}  // namespace

void awq_codes(const std::byte* words, int64_t rows, const Tile& tile, TileCodes& out) {
  constexpr size_t kLine = kLineRows / 2, kBytes = kGroupCols * kLine;
  const int64_t per_column = rows / 2;  // bytes
  for (int64_t row = 0; row < tile.n_rows; row += kLineRows) {
    const int64_t n_rows = std::min(kLineRows, tile.n_rows - row);
    const auto line = static_cast<size_t>((n_rows + 7) / 8 * 4);
    for (int64_t col = 0; col < tile.n_cols; col += kGroupCols) {
      const int64_t n_cols = std::min(kGroupCols, tile.n_cols - col);
      const std::byte* from = words + (tile.col + col) * per_column + (tile.row + row) / 2;
      uint8_t columns[kGroupCols][kLine];
      if (n_cols < kGroupCols || line < kLine) std::memset(columns, 0, sizeof columns);
      for (int64_t c = 0; c < n_cols; ++c, from += per_column) {
        copy<kLine>(from, line, columns[c]);
        __builtin_prefetch(from + kGroupCols * per_column);
      }
      // [low or high half][column][byte] by columns, and then [byte][low or high half][column]: to take halves in turn
      // moves the uppermost bit of a byte's number to the bottom.
      uint8_t bytes[kBytes], turned[kBytes];
      pair_columns(columns[0], columns[kHalfCols], bytes);
      take_in_turn(bytes, turned);
      take_in_turn(turned, bytes);
      take_in_turn(bytes, turned);
      take_in_turn(turned, bytes);
      take_in_turn(bytes, turned);
      uint8_t* to = out.group(row, col);
      for (int64_t r = 0; r < n_rows; ++r, to += out.row_bytes)
        std::memcpy(to, turned + (r / 8 * 8 + kAwqNibble[r % 8]) * kHalfCols, kHalfCols);
    }
  }
}

void gptq_codes(const std::byte* words, int64_t rows, const Tile& tile, TileCodes& out) {
  constexpr size_t kLine = kLineRows * sizeof(uint32_t);
  const int64_t per_word = 32 / out.bits;
  for (int64_t row = 0; row < tile.n_rows; row += kLineRows) {
    const int64_t n_rows = std::min(kLineRows, tile.n_rows - row);
    for (int64_t col = 0; col < tile.n_cols; col += kGroupCols) {
      const int64_t n = (std::min(kGroupCols, tile.n_cols - col) + per_word - 1) / per_word;
      uint8_t lines[8][kLine];
      if (n * per_word < kGroupCols || n_rows < kLineRows) std::memset(lines, 0, sizeof lines);
      const std::byte* from = words + ((tile.col + col) / per_word * rows + tile.row + row) * 4;
      for (int64_t i = 0; i < n; ++i, from += rows * 4) copy<kLine>(from, static_cast<size_t>(n_rows * 4), lines[i]);
      uint8_t* to = out.group(row, col);
      if (out.bits == 8) {
        for (int64_t r = 0; r < n_rows; ++r, to += out.row_bytes)
          for (int64_t i = 0; i < 8; ++i) std::memcpy(to + 4 * i, lines[i] + 4 * r, 4);
        continue;
      }
      // Columns 0 to 7 with 16 to 23, and 8 to 15 with 24 to 31: of each row 8 bytes.
      uint8_t pairs[2 * kLine], bytes[2][2 * kLine];
      for (int i = 0; i < 2; ++i) {
        pair_columns(lines[i], lines[i + 2], pairs);
        take_in_turn(pairs, bytes[i]);
      }
      for (int64_t r = 0; r < n_rows; ++r, to += out.row_bytes)
        for (int i = 0; i < 2; ++i) std::memcpy(to + 8 * i, bytes[i] + 8 * r, 8);
    }
  }
}

void packed_codes(const std::byte* words, int64_t words_per_row, const Tile& tile, TileCodes& out) {
  const int64_t per_row = words_per_row * 4, first = tile.col * out.bits / 8;
  const auto n = static_cast<size_t>(std::min(per_row - first, out.row_bytes)), whole = n / kHalfCols * kHalfCols;
  for (int64_t r = 0; r < tile.n_rows; ++r) {
    const std::byte* const row = words + (tile.row + r) * per_row + first;
    uint8_t* const to = out.group(r, 0);
    if (out.bits == 8) {
      std::memcpy(to, row, n);
      continue;
    }
    for (size_t at = 0; at < whole; at += kHalfCols) put_neighbours(row + at, to + at);
    if (whole == n) continue;
    uint8_t last[kHalfCols] = {};
    std::memcpy(last, row + whole, n - whole);
    put_neighbours(last, to + whole);
  }
}

void signed_codes(const std::byte* bytes, int64_t cols, const Tile& tile, TileCodes& out) {
  const int64_t n_cols = tile.n_cols;
  for (int64_t r = 0; r < tile.n_rows; ++r) {
    const std::byte* row = bytes + (tile.row + r) * cols + tile.col;
    uint8_t* const to = out.group(r, 0);
    for (int64_t c = 0; c < n_cols; ++c) to[c] = static_cast<uint8_t>(row[c]) ^ 128u;
  }
}

}  // namespace infer
