// See hf_quant_codes.h. Plain loops over whole words: reading the file takes longer than they do.
#include "runtime/hf_quant_codes.h"

#include <cstring>

namespace infer {
namespace {

uint32_t load(const std::byte* words, int64_t i) {
  uint32_t word;
  std::memcpy(&word, words + i * static_cast<int64_t>(sizeof word), sizeof word);
  return word;
}

/// The codes of a word, lowest first, as bytes.
template <int bits>
void spread(uint32_t word, uint8_t* out) {
  if constexpr (bits == 4) {
    uint64_t codes = word;
    codes = (codes | codes << 16) & 0x0000ffff0000ffff;
    codes = (codes | codes << 8) & 0x00ff00ff00ff00ff;
    codes = (codes | codes << 4) & 0x0f0f0f0f0f0f0f0f;
    std::memcpy(out, &codes, sizeof codes);
  } else {
    std::memcpy(out, &word, sizeof word);
  }
}

/// Calls fn with a constant number of bits.
template <class Function>
void with_bits(int bits, Function&& fn) {
  bits == 4 ? fn.template operator()<4>() : fn.template operator()<8>();
}

}  // namespace

void awq_codes(const std::byte* words, int64_t rows, const Tile& tile, TileCodes& out) {
  const int64_t per_line = rows / 8;
  for (int64_t w = 0; w < tile.n_rows / 8; ++w) {
    uint32_t column[kTileCols] = {};
    for (int64_t c = 0; c < tile.n_cols; ++c) column[c] = load(words, (tile.col + c) * per_line + tile.row / 8 + w);
    for (int64_t i = 0; i < 8; ++i)
      for (int64_t c = 0; c < kTileCols; ++c)
        out[8 * w + i][c] = static_cast<uint8_t>(column[c] >> (4 * kAwqNibble[i]) & 15);
  }
}

void gptq_codes(const std::byte* words, int bits, int64_t rows, const Tile& tile, TileCodes& out) {
  with_bits(bits, [&]<int n>() {
    constexpr int64_t kPerWord = 32 / n;
    for (int64_t c = 0; c < tile.n_cols; c += kPerWord)
      for (int64_t r = 0; r < tile.n_rows; ++r)
        spread<n>(load(words, (tile.col + c) / kPerWord * rows + tile.row + r), &out[r][c]);
  });
}

void packed_codes(const std::byte* words, int bits, int64_t words_per_row, const Tile& tile, TileCodes& out) {
  with_bits(bits, [&]<int n>() {
    constexpr int64_t kPerWord = 32 / n;
    for (int64_t r = 0; r < tile.n_rows; ++r)
      for (int64_t c = 0; c < tile.n_cols; c += kPerWord)
        spread<n>(load(words, (tile.row + r) * words_per_row + (tile.col + c) / kPerWord), &out[r][c]);
  });
}

void signed_codes(const std::byte* bytes, int64_t cols, const Tile& tile, TileCodes& out) {
  for (int64_t r = 0; r < tile.n_rows; ++r) {
    const std::byte* row = bytes + (tile.row + r) * cols + tile.col;
    for (int64_t c = 0; c < tile.n_cols; ++c) out[r][c] = static_cast<uint8_t>(row[c]) ^ 128u;
  }
}

}  // namespace infer
