// The codes of tiles against their definition, one by one: shapes that fill no tile, tiles that begin anywhere.
#include "runtime/hf_quant_codes.h"

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "tests/catch.h"

using namespace infer;

namespace {

/// Random words behind one byte, so that none is aligned.
struct RandomWords {
  std::vector<std::byte> bytes;
  explicit RandomWords(int64_t n_bytes) {
    std::mt19937 random(static_cast<unsigned>(n_bytes));
    for (int64_t i = 0; i < n_bytes + 1; ++i) bytes.push_back(static_cast<std::byte>(random()));
  }
  const std::byte* data() const { return bytes.data() + 1; }
  /// Code `i` of word `word`.
  int code(int64_t word, int64_t i, int bits) const {
    const auto byte = static_cast<int>(data()[word * 4 + i * bits / 8]);
    return bits == 8 ? byte : byte >> (i % 2 * 4) & 15;
  }
};

/// Tiles of a few shapes at the corners of a matrix and within.
template <class Function>
void for_tiles(int64_t rows, int64_t cols, Function&& fn) {
  for (const TileShape& shape : {TileShape{128, 64}, {256, 32}, {8, 1024}, {16, 96}})
    for (const int64_t row : {int64_t{0}, rows / 16 * 8, (rows - 1) / 8 * 8})
      for (const int64_t col : {int64_t{0}, cols / 64 * 32, (cols - 1) / 32 * 32})
        fn(shape, Tile{row, std::min(shape.rows, rows - row), col, std::min(shape.cols, cols - col)});
}

/// Compares all codes of such tiles; `wanted(row, col)` of the matrix.
template <class Codes, class Wanted>
void check(int64_t rows, int64_t cols, int bits, Codes&& codes, Wanted&& wanted) {
  for_tiles(rows, cols, [&](const TileShape& shape, const Tile& tile) {
    const auto out = std::make_unique<TileCodes>(bits, shape);
    codes(tile, *out);
    int64_t wrong = 0;
    for (int64_t r = 0; r < tile.n_rows; ++r)
      for (int64_t c = 0; c < tile.n_cols; ++c) wrong += out->at(r, c) != wanted(tile.row + r, tile.col + c);
    INFO(rows << " x " << cols << ", " << bits << " bits, tile at " << tile.row << ", " << tile.col);
    CHECK(wrong == 0);
  });
}

}  // namespace

TEST_CASE("codes of AWQ, GPTQ, packed and signed integers are those of the definitions") {
  for (const int64_t rows : {8, 40, 136, 264, 1000})
    for (const int64_t cols : {8, 32, 72, 160, 1096}) {
      const RandomWords words(rows * cols);
      check(
          rows, cols, 4, [&](const Tile& tile, TileCodes& out) { awq_codes(words.data(), rows, tile, out); },
          [&](int64_t r, int64_t c) { return words.code(c * (rows / 8) + r / 8, kAwqNibble[r % 8], 4); });
      for (const int bits : {4, 8}) {
        const int64_t per_word = 32 / bits;
        check(
            rows, cols, bits, [&](const Tile& tile, TileCodes& out) { gptq_codes(words.data(), rows, tile, out); },
            [&](int64_t r, int64_t c) { return words.code(c / per_word * rows + r, c % per_word, bits); });
      }
    }
  for (const int64_t rows : {1, 13, 136})
    for (const int64_t cols : {1, 31, 45, 160, 1101}) {
      for (const int bits : {4, 8}) {
        const int64_t per_word = 32 / bits, per_row = (cols + per_word - 1) / per_word;
        const RandomWords words(rows * per_row * 4);
        check(
            rows, cols, bits, [&](const Tile& tile, TileCodes& out) { packed_codes(words.data(), per_row, tile, out); },
            [&](int64_t r, int64_t c) { return words.code(r * per_row + c / per_word, c % per_word, bits); });
      }
      const RandomWords words(rows * cols);
      check(
          rows, cols, 8, [&](const Tile& tile, TileCodes& out) { signed_codes(words.data(), cols, tile, out); },
          [&](int64_t r, int64_t c) { return static_cast<int8_t>(words.data()[r * cols + c]) + 128; });
    }
}

TEST_CASE("codes that share a byte with their neighbour come to where blocks have them") {
  const RandomWords words(16);
  uint8_t out[16];
  put_neighbours(words.data(), out);
  for (int i = 0; i < 16; ++i) {
    CHECK((out[i] & 15) == words.code(i / 8, i % 8, 4));
    CHECK(out[i] >> 4 == words.code(2 + i / 8, i % 8, 4));
  }
}
