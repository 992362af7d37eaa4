// The packed forms of a weight matrix on the device: where the bits of (row, group of 32 columns) lie. One line per
// format in the table below and nothing else to add for a new one. Plain C++: the tests on the host decode what the
// kernels read, by the same functions.
//
// Quantised formats are cut into tiles of 16 rows, a tile into chunks of up to Packed<F>::chunk_groups groups of 32
// columns (the last chunk of a row may be shorter). A chunk is contiguous, so one bulk copy of 10 to 18 KB brings it
// to shared memory, and chunks follow one another in the order in which a row is read. It consists of pieces of 8
// groups where there are blocks of 8, or of 4 groups (a last one may be shorter), so that few columns of a tile are one
// copy, too. A piece of G groups holds
//
//   low codes    [G / 4][16 rows][4 groups] of 16 bytes (4 bits a code), 8 bytes (2 bits), or twice that of 16 bytes
//                (8 bits: weights 0-15 of every group, then weights 16-31)
//   high codes   [G / 4][16][4] of 4 bytes (1 bit) or 8 bytes (2 bits), or nothing
//   scales       see Scales; first what each group has, [G / 4][16][4], then what a block of 8 groups has, [16]
//
// (less than four groups: [16][G]) so that 32 lanes which take eight rows times four groups, as the left operand of
// an mma has them, read consecutive bytes. Four entries of 16 bytes of a row are turned by half its number, so that
// those of one group in eight rows, which an ldmatrix takes, are in different banks, too. A "quad" is four consecutive
// codes as the bytes of one word, which is what dp4a eats; quad q holds weights 4q .. 4q+3. Of 4-bit codes word w holds
// quad w in its low and quad w+4 in its high halves; where codes are looked up in a table, quad w in its low 16 bits
// and quad w+4 in its high 16, a code to a nibble, which is what prmt eats. Of 2-bit codes word q%2 holds quad q at bit
// 2*(q/2), of 1-bit codes the word holds quad q at bit q. No bits are added but for two bytes of padding in Q3_K's
// blocks.
//
// Plain formats stay row-major (kRowMajor), each row padded with zeros to 16 bytes: cuBLASLt reads them as they are.
#pragma once

#include <cstdint>

#include "quant/formats.h"

namespace infer::cuda {

inline constexpr int kTileRows = 16;
inline constexpr uint32_t kFileBlocks = 0, kTiles = 1, kRowMajor = 2;  ///< Tensor::layout

enum class Scales {
  half,           ///< group: f16 d
  half_min,       ///< group: f16 d, f16 m
  half_zero,      ///< group: f16 d, f16 zero; the offset is -(d * zero)
  exponent,       ///< group: u8
  six_bit_8,      ///< block: f16 d, u16 high bits, u32 low bits (IQ4_XS's own eight bytes)
  six_bit_16,     ///< block: f16 d, u16 0, 12 bytes as Q3_K has them
  six_bit_min,    ///< block: f16 d, f16 dmin, 8 bytes scale | (min & 3) << 6, 4 bytes min >> 2 of two groups each
  nibble_min,     ///< group: 2 bytes scale | min << 4 of its halves; block: f16 d, f16 dmin
  signed_byte,    ///< group: 2 signed bytes, scales of its halves; block: f16 d
  float_128,      ///< block: 2 f32 d, of four groups each
  half_zero_128,  ///< block: 2 times f16 d, f16 zero, of four groups each; the offset is -(d * zero)
};

template <int low, int high, int bias_, Scales scales_, int chunk_groups_>
struct PackedAs {
  static constexpr int low_bits = low, high_bits = high;
  static constexpr int bias = bias_;  ///< code = stored - bias; kTable: code = F's table of the stored value; kFloat:
                                      ///< what is stored is an e4m3
  static constexpr Scales scales = scales_;
  static constexpr int chunk_groups = chunk_groups_;
};
inline constexpr int kTable = -1, kFloat = -2;

template <class F>
struct Packed;
template <>
struct Packed<Q4_0> : PackedAs<4, 0, 8, Scales::half, 64> {};
template <>
struct Packed<Q4_1> : PackedAs<4, 0, 0, Scales::half_min, 32> {};
template <>
struct Packed<W4G> : PackedAs<4, 0, 0, Scales::half_zero, 32> {};
template <>
struct Packed<W4G128> : PackedAs<4, 0, 0, Scales::half_zero_128, 64> {};
template <>
struct Packed<Q5_0> : PackedAs<4, 1, 16, Scales::half, 32> {};
template <>
struct Packed<Q5_1> : PackedAs<4, 1, 0, Scales::half_min, 32> {};
template <>
struct Packed<Q8_0> : PackedAs<8, 0, 0, Scales::half, 32> {};
template <>
struct Packed<Q2_K> : PackedAs<2, 0, 0, Scales::nibble_min, 64> {};
template <>
struct Packed<Q3_K> : PackedAs<2, 1, 4, Scales::six_bit_16, 64> {};
template <>
struct Packed<Q4_K> : PackedAs<4, 0, 0, Scales::six_bit_min, 64> {};
template <>
struct Packed<Q5_K> : PackedAs<4, 1, 0, Scales::six_bit_min, 32> {};
template <>
struct Packed<Q6_K> : PackedAs<4, 2, 32, Scales::signed_byte, 32> {};
template <>
struct Packed<IQ4_NL> : PackedAs<4, 0, kTable, Scales::half, 64> {
  static INFER_HD int table(int stored) { return IQ4_NL::level(stored); }
};
template <>
struct Packed<IQ4_XS> : PackedAs<4, 0, kTable, Scales::six_bit_8, 64> {
  static INFER_HD int table(int stored) { return IQ4_NL::level(stored); }
};
template <>
struct Packed<MXFP4> : PackedAs<4, 0, kTable, Scales::exponent, 64> {
  static INFER_HD int table(int stored) { return MXFP4::twice_value(stored); }
};

template <>
struct Packed<W8F> : PackedAs<8, 0, kFloat, Scales::float_128, 32> {};
template <>
struct Packed<W8I> : Packed<Q8_0> {};

/// Whether the kernels of few rows take 16-bit activations, in f16, for a packed format; they take int8 ones for
/// others.
INFER_HD constexpr bool meets_f16(DType packed) { return packed == DType::W8F || packed == DType::W8I; }

/// Bytes of scales that each group has, and that each block of 8 groups has.
INFER_HD constexpr int group_scale_bytes(Scales kind) {
  return kind == Scales::half || kind == Scales::nibble_min || kind == Scales::signed_byte ? 2
         : kind == Scales::half_min || kind == Scales::half_zero                           ? 4
         : kind == Scales::exponent                                                        ? 1
                                                                                           : 0;
}
INFER_HD constexpr int block_scale_bytes(Scales kind) {
  return kind == Scales::six_bit_16 || kind == Scales::six_bit_min                                 ? 16
         : kind == Scales::six_bit_8 || kind == Scales::float_128 || kind == Scales::half_zero_128 ? 8
         : kind == Scales::nibble_min                                                              ? 4
         : kind == Scales::signed_byte                                                             ? 2
                                                                                                   : 0;
}

/// How many different scales a group of 32 has.
template <class F>
inline constexpr int kHalves = Packed<F>::scales == Scales::six_bit_16 || Packed<F>::scales == Scales::nibble_min ||
                                       Packed<F>::scales == Scales::signed_byte
                                   ? 2
                                   : 1;

/// Offsets within a chunk of `groups` groups.
template <class F>
struct Chunk {
  using P = Packed<F>;
  static constexpr int kLow = P::low_bits == 2 ? 8 : 16;  ///< bytes of one plane's entry
  static constexpr int kHigh = P::high_bits * 4;
  static constexpr int kGroupScale = group_scale_bytes(P::scales), kBlockScale = block_scale_bytes(P::scales);
  static constexpr int kCodeBytes = (P::low_bits + P::high_bits) * 4;  ///< of a group
  static constexpr int kPiece = kBlockScale > 0 ? 8 : 4;               ///< groups
  static constexpr int kPieceBytes = kTileRows * (kPiece * (kCodeBytes + kGroupScale) + kPiece / 8 * kBlockScale);

  int groups;
  INFER_HD int low(int row, int g) const {
    const Entry e(*this, g);
    // Of whole fours, entries of 16 bytes are turned by half the row's number.
    const int at = kLow == 16 && e.width == 4 ? e.first * kTileRows + row * 4 + (e.g + row / 2) % 4 : e.at(row);
    return e.piece + at * kLow;
  }
  /// Of group four + j; `four` is the first one of a whole four. For lanes that are such a j all the time.
  INFER_HD int low_of_four(int row, int four, int j) const {
    const int at = four % kPiece * kTileRows + row * 4 + (kLow == 16 ? (j + row / 2) % 4 : j);
    return four / kPiece * kPieceBytes + at * kLow;
  }
  INFER_HD int low_second(int row, int g) const {  ///< of 8 bits
    return low(row, g) + kTileRows * Entry(*this, g).n * kLow;
  }
  INFER_HD int high(int row, int g) const {
    const Entry e(*this, g);
    return e.piece + kTileRows * e.n * P::low_bits * 4 + e.at(row) * kHigh;
  }
  INFER_HD int group_scale(int row, int g) const {
    const Entry e(*this, g);
    return e.piece + kTileRows * e.n * kCodeBytes + e.at(row) * kGroupScale;
  }
  INFER_HD int block_scale(int row, int g) const {
    const Entry e(*this, g);
    return e.piece + kTileRows * e.n * (kCodeBytes + kGroupScale) + row * kBlockScale;
  }
  INFER_HD int bytes() const { return kTileRows * (groups * (kCodeBytes + kGroupScale) + groups / 8 * kBlockScale); }

 private:
  /// Where a group's piece begins, how many groups that has, which of them it is, and its four, which may be less.
  struct Entry {
    int piece, n, g, first, width;
    INFER_HD Entry(const Chunk& c, int group) {
      const int begin = group / kPiece * kPiece;
      piece = group / kPiece * kPieceBytes;
      n = c.groups % kPiece == 0 || c.groups - begin > kPiece ? kPiece : c.groups - begin;
      g = group - begin, first = g / 4 * 4;
      width = kPiece == 8 || n == 4 ? 4 : n;  // blocks have eight groups, all of them
    }
    INFER_HD int at(int row) const { return first * kTileRows + row * width + g - first; }
  };
};

/// Where a (tile row, group of the row) lies in a matrix.
struct PackedPlace {
  int64_t chunk;   ///< byte offset of its chunk
  int groups;      ///< of that chunk
  int row, group;  ///< within it
};

template <class F>
INFER_HD int64_t tile_bytes(int64_t cols) {
  const int64_t groups = cols / kGroup, rest = groups % Packed<F>::chunk_groups;
  return groups / Packed<F>::chunk_groups * Chunk<F>{Packed<F>::chunk_groups}.bytes() +
         Chunk<F>{static_cast<int>(rest)}.bytes();
}

template <class F>
INFER_HD PackedPlace place(int64_t cols, int64_t row, int64_t group) {
  constexpr int kChunk = Packed<F>::chunk_groups;
  const int64_t n_groups = cols / kGroup, chunk = group / kChunk;
  const int64_t left = n_groups - chunk * kChunk;
  return {row / kTileRows * tile_bytes<F>(cols) + chunk * Chunk<F>{kChunk}.bytes(),
          static_cast<int>(left < kChunk ? left : kChunk), static_cast<int>(row % kTileRows),
          static_cast<int>(group % kChunk)};
}

/// Row stride of a plain matrix.
INFER_HD int64_t row_major_stride(int64_t element_bytes, int64_t cols) { return (cols * element_bytes + 15) / 16 * 16; }

// ---- one group, in and out --------------------------------------------------------------------------------------

namespace packed_detail {

INFER_HD void put16(uint8_t* p, uint32_t v) { p[0] = static_cast<uint8_t>(v), p[1] = static_cast<uint8_t>(v >> 8); }
INFER_HD uint16_t get16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
INFER_HD void put32(uint8_t* p, uint32_t v) { put16(p, v), put16(p + 2, v >> 16); }
INFER_HD uint32_t get32(const uint8_t* p) { return get16(p) | static_cast<uint32_t>(get16(p + 2)) << 16; }

/// What is stored for weight i of a group, without bias or table.
template <class F>
INFER_HD void stored_codes(const typename F::Block& block, int group, uint8_t out[kGroup]) {
  if constexpr (Packed<F>::bias == kTable) {
    constexpr int kPerBlock = 16;  // bytes of a group
    for (int i = 0; i < kGroup; ++i)
      out[i] = static_cast<uint8_t>(bits::split_nibble(block.qs + (F::block == kGroup ? 0 : kPerBlock * group), i));
  } else if constexpr (Packed<F>::bias == kFloat) {
    for (int i = 0; i < kGroup; ++i) out[i] = block.code[kGroup * group + i];
  } else {
    int8_t code[kGroup];
    F::codes(block, group, code);
    for (int i = 0; i < kGroup; ++i) out[i] = static_cast<uint8_t>(code[i] + Packed<F>::bias);
  }
}

template <class F>
INFER_HD void put_scales(const typename F::Block& b, int group, uint8_t* chunk, Chunk<F> c, int row, int g) {
  constexpr Scales kind = Packed<F>::scales;
  uint8_t* of_group = chunk + c.group_scale(row, g);
  uint8_t* of_block = chunk + c.block_scale(row, g);
  if constexpr (kind == Scales::half) {
    put16(of_group, b.d);
  } else if constexpr (kind == Scales::half_min) {
    put16(of_group, b.d), put16(of_group + 2, b.m);
  } else if constexpr (kind == Scales::half_zero) {
    put16(of_group, b.d), put16(of_group + 2, b.zero);
  } else if constexpr (kind == Scales::exponent) {
    of_group[0] = b.e;
  } else if constexpr (kind == Scales::nibble_min) {
    for (int h = 0; h < 2; ++h) of_group[h] = b.scales[2 * group + h];
    if (group == 0) put16(of_block, b.d), put16(of_block + 2, b.dmin);
  } else if constexpr (kind == Scales::signed_byte) {
    for (int h = 0; h < 2; ++h) of_group[h] = static_cast<uint8_t>(b.scales[2 * group + h]);
    if (group == 0) put16(of_block, b.d);
  } else if constexpr (kind == Scales::float_128) {
    if (group % 4 == 0) put32(of_block + group, float_bits(b.d[group / 4]));
  } else if constexpr (kind == Scales::half_zero_128) {
    if (group % 4 == 0) put16(of_block + group, b.d[group / 4]), put16(of_block + group + 2, b.zero[group / 4]);
  } else if constexpr (kind == Scales::six_bit_min) {
    if (group != 0) return;
    put16(of_block, b.d), put16(of_block + 2, b.dmin);
    for (int i = 0; i < 8; ++i)
      of_block[4 + i] = static_cast<uint8_t>(F::sub_scale(b, i) | (F::sub_min(b, i) & 3) << 6);
    for (int i = 0; i < 4; ++i)
      of_block[12 + i] = static_cast<uint8_t>(F::sub_min(b, 2 * i) >> 2 | F::sub_min(b, 2 * i + 1) >> 2 << 4);
  } else if (group == 0) {
    put16(of_block, b.d);
    if constexpr (kind == Scales::six_bit_8) {
      for (int i = 0; i < 2; ++i) of_block[2 + i] = b.scales_h[i];
      for (int i = 0; i < 4; ++i) of_block[4 + i] = b.scales_l[i];
    } else {
      for (int i = 0; i < 12; ++i) of_block[4 + i] = b.scales[i];
    }
  }
}

/// The scales of a group as the format itself computes them, from a block that has nothing but scales.
template <class F>
INFER_HD void get_scales(const uint8_t* chunk, Chunk<F> c, int row, int g, float scale[2], float offset[2]) {
  constexpr Scales kind = Packed<F>::scales;
  constexpr int kBlockGroups = F::block / kGroup;
  const uint8_t* of_group = chunk + c.group_scale(row, g);
  const uint8_t* of_block = chunk + c.block_scale(row, g);
  const int group = g % kBlockGroups;
  if constexpr (kind == Scales::six_bit_min) {  // in another order than the file's: the arithmetic is the format's
    const int low = of_block[4 + group], high = of_block[12 + group / 2] >> (4 * (group % 2)) & 15;
    scale[0] = scale[1] = f16_to_f32(get16(of_block)) * static_cast<float>(low & 63);
    offset[0] = offset[1] = -(f16_to_f32(get16(of_block + 2)) * static_cast<float>(low >> 6 | high << 2));
    return;
  }
  if constexpr (kind == Scales::float_128) {  // no codes that could be scaled by the format
    scale[0] = scale[1] = bits_float(get32(of_block + group / 4 * 4));
    offset[0] = offset[1] = 0;
    return;
  } else {
    typename F::Block b{};
    if constexpr (kind == Scales::half) {
      b.d = get16(of_group);
    } else if constexpr (kind == Scales::half_min) {
      b.d = get16(of_group), b.m = get16(of_group + 2);
    } else if constexpr (kind == Scales::half_zero) {
      b.d = get16(of_group), b.zero = get16(of_group + 2);
    } else if constexpr (kind == Scales::half_zero_128) {
      for (int i = 0; i < 2; ++i) b.d[i] = get16(of_block + 4 * i), b.zero[i] = get16(of_block + 4 * i + 2);
    } else if constexpr (kind == Scales::exponent) {
      b.e = of_group[0];
    } else if constexpr (kind == Scales::nibble_min) {
      for (int h = 0; h < 2; ++h) b.scales[2 * group + h] = of_group[h];
      b.d = get16(of_block), b.dmin = get16(of_block + 2);
    } else if constexpr (kind == Scales::signed_byte) {
      for (int h = 0; h < 2; ++h) b.scales[2 * group + h] = static_cast<int8_t>(of_group[h]);
      b.d = get16(of_block);
    } else {
      b.d = get16(of_block);
      if constexpr (kind == Scales::six_bit_8) {
        for (int i = 0; i < 2; ++i) b.scales_h[i] = of_block[2 + i];
        for (int i = 0; i < 4; ++i) b.scales_l[i] = of_block[4 + i];
      } else {
        for (int i = 0; i < 12; ++i) b.scales[i] = of_block[4 + i];
      }
    }
    F::scales(b, group, scale, offset);
  }
}

}  // namespace packed_detail

/// Writes the codes of group g of row `row` of a chunk; stored: without bias or table.
template <class F>
INFER_HD void pack_stored(const uint8_t stored[kGroup], uint8_t* chunk, Chunk<F> c, int row, int g) {
  using P = Packed<F>;
  for (int i = 0; i < 16; ++i) {
    if constexpr (P::low_bits == 8) {
      chunk[c.low(row, g) + i] = stored[i];
      chunk[c.low_second(row, g) + i] = stored[i + 16];
    } else if constexpr (P::low_bits == 4) {
      // Byte i % 4 of word i / 4.
      const int w = i / 4, b = i % 4;
      const int low = P::bias == kTable ? (b < 2 ? 4 * w + 2 * b : 12 + 4 * w + 2 * b) : i;
      const int high = P::bias == kTable ? low + 1 : i + 16;
      chunk[c.low(row, g) + i] = static_cast<uint8_t>((stored[low] & 15) | (stored[high] & 15) << 4);
    }
  }
  const auto quad_bits = [&](int word, int byte, int bits, int shift) {  // of a plane of 1 or 2 bits
    const int step = bits;  // words of the plane: quad q lies in word q % step at bit bits * (q / step)
    uint32_t out = 0;
    for (int q = word; q < 8; q += step)
      out |= (static_cast<uint32_t>(stored[4 * q + byte]) >> shift & ((1u << bits) - 1)) << (bits * (q / step));
    return static_cast<uint8_t>(out);
  };
  if constexpr (P::low_bits == 2)
    for (int i = 0; i < 8; ++i) chunk[c.low(row, g) + i] = quad_bits(i / 4, i % 4, 2, 0);
  if constexpr (P::high_bits > 0)
    for (int i = 0; i < 4 * P::high_bits; ++i)
      chunk[c.high(row, g) + i] = quad_bits(i / 4, i % 4, P::high_bits, P::low_bits);
}

/// Writes group `group` of a block as group g of row `row` of a chunk.
template <class F>
INFER_HD void pack_group(const typename F::Block& block, int group, uint8_t* chunk, Chunk<F> c, int row, int g) {
  uint8_t stored[kGroup];
  packed_detail::stored_codes<F>(block, group, stored);
  pack_stored<F>(stored, chunk, c, row, g);
  packed_detail::put_scales<F>(block, group, chunk, c, row, g);
}

/// The stored value of weight i.
template <class F>
INFER_HD int stored_code(const uint8_t* chunk, Chunk<F> c, int row, int g, int i) {
  using P = Packed<F>;
  const auto plane = [&](const uint8_t* bytes, int bits) {
    const int q = i / 4;
    return bytes[q % bits * 4 + i % 4] >> (bits * (q / bits)) & ((1 << bits) - 1);
  };
  int out = 0;
  if constexpr (P::low_bits == 8)
    out = static_cast<int8_t>(chunk[(i < 16 ? c.low(row, g) : c.low_second(row, g)) + i % 16]);
  else if constexpr (P::low_bits == 4 && P::bias == kTable)
    out = chunk[c.low(row, g) + i % 16 / 4 * 4 + i / 16 * 2 + i % 4 / 2] >> (i % 2 * 4) & 15;
  else if constexpr (P::low_bits == 4)
    out = bits::split_nibble(chunk + c.low(row, g), i);
  else
    out = plane(chunk + c.low(row, g), 2);
  if constexpr (P::high_bits > 0) out |= plane(chunk + c.high(row, g), P::high_bits) << P::low_bits;
  return out;
}

/// The 32 weights of a group, equal bit for bit to what F::decode makes of the file's block.
template <class F>
INFER_HD void decode_packed(const uint8_t* chunk, Chunk<F> c, int row, int g, float out[kGroup]) {
  float scale[2], offset[2];
  packed_detail::get_scales<F>(chunk, c, row, g, scale, offset);
  for (int i = 0; i < kGroup; ++i) {
    const int stored = stored_code<F>(chunk, c, row, g, i);
    if constexpr (Packed<F>::bias == kFloat) {
      out[i] = scale[0] * e4m3_to_f32(static_cast<uint8_t>(stored));
      continue;
    }
    int code = stored - (Packed<F>::bias < 0 ? 0 : Packed<F>::bias);
    if constexpr (Packed<F>::bias == kTable) code = Packed<F>::table(stored);
    out[i] = F::has_offset ? multiply_then_add(scale[i / 16], static_cast<float>(code), offset[i / 16])
                           : scale[i / 16] * static_cast<float>(code);
  }
}

/// Bytes of a packed matrix, and which layout it has. -1 for a format that is not in the table.
inline int64_t packed_matrix_bytes(DType dtype, int64_t rows, int64_t cols) {
  int64_t bytes = -1;
  visit_gpu_format(dtype, [&]<class F>() {
    if constexpr (F::block == 1)
      bytes = rows * row_major_stride(sizeof(typename F::Block), cols);
    else
      bytes = (rows + kTileRows - 1) / kTileRows * tile_bytes<F>(cols);
  });
  return bytes;
}
inline uint32_t packed_layout(DType dtype) {
  uint32_t layout = kFileBlocks;
  visit_gpu_format(dtype, [&]<class F>() { layout = F::block == 1 ? kRowMajor : kTiles; });
  return layout;
}

}  // namespace infer::cuda
