// Brings weights from file blocks into the packed tiles of packed.h. Bits are moved, never rounded. Runs once per load,
// so it is plain C++ that the compiler vectorises; what it costs is reading the file.
#include <cstring>

#include "infer/error.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/packed.h"

namespace infer::cpu {
namespace {

// Stored values travel as words of four bytes, one word to a quad, which is also how the file's bytes are read: the
// x86 byte order is part of the packed layout.
constexpr int kQuads = kGroup / 4;
constexpr uint32_t kEachByte = 0x01010101;

/// Whether a group's low four bits are 16 bytes, byte i holding weight i and weight i + 16, as the blocks of 32 have
/// it.
template <class F>
constexpr bool kSplitNibbles = Packed<F>::low_bits == 4 && (F::block == kGroup || Packed<F>::bias == kTable ||
                                                            Packed<F>::scales == ScaleKind::half_zero_128);

/// The stored values of a group of a row, before they are cut into planes.
template <class F>
void stored_quads(const typename F::Block& block, int group, uint32_t out[kQuads]) {
  if constexpr (kSplitNibbles<F>) {
    for (int q = 0; q < kQuads / 2; ++q) {
      const uint32_t both = bits::word(block.qs + 16 * group + 4 * q);
      out[q] = both & (15 * kEachByte);
      out[q + kQuads / 2] = both >> 4 & (15 * kEachByte);
    }
    if constexpr (Packed<F>::high_bits == 1) {
      const uint32_t high = bits::word(block.qh);
      // The product puts a copy of the quad's four bits below every byte, each moved so that another bit is lowest.
      for (int q = 0; q < kQuads; ++q) out[q] |= ((high >> (4 * q) & 15) * 0x00204081 & kEachByte) << 4;
    }
  } else {
    int8_t codes[kGroup];
    uint8_t bytes[kGroup];
    F::codes(block, group, codes);
    for (int i = 0; i < kGroup; ++i) bytes[i] = static_cast<uint8_t>(codes[i] + Packed<F>::bias);
    std::memcpy(out, bytes, sizeof(bytes));
  }
}

/// One plane of `bits` bits per value, taken from bit `shift` of the stored values.
template <int bits>
uint8_t* put_plane(const uint32_t (&quads)[kQuads][kTile], int shift, uint8_t* dst) {
  constexpr int kVectors = bits, kPerByte = 8 / bits;
  constexpr uint32_t kMask = ((1u << bits) - 1) * kEachByte;
  for (int v = 0; v < kVectors; ++v) {
    uint32_t words[kTile];
    for (int row = 0; row < kTile; ++row) {
      uint32_t word = 0;
      for (int part = 0; part < kPerByte; ++part) {
        word |= (quads[v + part * kVectors][row] >> shift & kMask) << (bits * part);
      }
      words[row] = word;
    }
    std::memcpy(dst + v * kCodeVector, words, sizeof(words));
  }
  return dst + kVectors * kCodeVector;
}

template <class F>
uint8_t* put_codes(const uint32_t (&quads)[kQuads][kTile], uint8_t* dst) {
  using P = Packed<F>;
  dst = put_plane<P::low_bits>(quads, 0, dst);
  if constexpr (P::high_bits > 0) dst = put_plane<P::high_bits>(quads, P::low_bits, dst);
  return dst;
}

void put_half(uint16_t half, int row, uint8_t* dst) { std::memcpy(dst + 2 * row, &half, 2); }

/// N values of 6 bits of one row.
template <int N>
void put_six_bits(const uint8_t (&value)[N], int row, uint8_t* dst) {
  for (int i = 0; i < N / 2; ++i) {
    dst[i * kTile + row] = static_cast<uint8_t>((value[i] & 15) | (value[i + N / 2] & 15) << 4);
  }
  for (int i = 0; i < N / 4; ++i) {
    unsigned high = 0;
    for (int part = 0; part < 4; ++part) high |= (value[i + part * (N / 4)] >> 4 & 3u) << (2 * part);
    dst[(N / 2 + i) * kTile + row] = static_cast<uint8_t>(high);
  }
}

/// The scales of one row of a chunk of a format with blocks of 256.
template <class F>
void put_super_scales(const typename F::Block& block, int row, uint8_t* dst) {
  constexpr ScaleKind kKind = Packed<F>::scales;
  put_half(block.d, row, dst);
  dst += 2 * kTile;
  if constexpr (has_mins(kKind)) {
    put_half(block.dmin, row, dst);
    dst += 2 * kTile;
  }
  constexpr int kSubs = halves_of(kKind) * kChunkGroups;
  if constexpr (kKind == ScaleKind::six_bit_8 || kKind == ScaleKind::six_bit_16) {
    uint8_t value[kSubs];
    for (int i = 0; i < kSubs; ++i) value[i] = static_cast<uint8_t>(F::sub_scale(block, i) + 32);
    put_six_bits(value, row, dst);
  } else if constexpr (kKind == ScaleKind::six_bit_min) {
    uint8_t value[2 * kSubs];
    for (int i = 0; i < kSubs; ++i) value[i] = static_cast<uint8_t>(F::sub_scale(block, i));
    for (int i = 0; i < kSubs; ++i) value[kSubs + i] = static_cast<uint8_t>(F::sub_min(block, i));
    put_six_bits(value, row, dst);
  } else if constexpr (kKind == ScaleKind::nibble_min) {
    for (int i = 0; i < kSubs; ++i) {
      dst[i * kTile + row] = static_cast<uint8_t>(F::sub_scale(block, i) | F::sub_min(block, i) << 4);
    }
  } else {
    static_assert(kKind == ScaleKind::signed_byte);
    for (int i = 0; i < kSubs; ++i) dst[i * kTile + row] = static_cast<uint8_t>(F::sub_scale(block, i));
  }
}

/// The same of a format with a scale and a zero point to 128 columns.
void put_scales_128(const W4G128::Block& block, int row, uint8_t* dst) {
  for (int i = 0; i < 2; ++i, dst += 4 * kTile) {
    put_half(block.d[i], row, dst);
    put_half(block.zero[i], row, dst + 2 * kTile);
  }
}

/// The scale of one row of group `g` of a chunk of a format with blocks of 32.
template <class F>
void put_scale(const typename F::Block& block, int64_t g, int row, uint8_t* dst) {
  constexpr ScaleKind kKind = Packed<F>::scales;
  if constexpr (kKind == ScaleKind::exponent) {
    dst[g * kTile + row] = block.e;
  } else {
    dst += g * scale_bytes(kKind, 1);
    put_half(block.d, row, dst);
    if constexpr (kKind == ScaleKind::half_min) put_half(block.m, row, dst + 2 * kTile);
    if constexpr (kKind == ScaleKind::half_zero) put_half(block.zero, row, dst + 2 * kTile);
  }
}

/// A chunk of `groups` groups whose first weight in row 0 is at src; n_rows <= 16 rows exist, the others become zero.
template <class F>
void pack_chunk(const uint8_t* src, int64_t row_stride, int64_t n_rows, int64_t groups, uint8_t* dst) {
  constexpr int kBlockGroups = F::block / kGroup;
  std::memset(dst, 0, static_cast<size_t>(chunk_bytes<F>(groups)));
  uint8_t* codes = dst + scale_bytes(Packed<F>::scales, groups);
  typename F::Block block[kTile] = {};
  for (int64_t g = 0; g < groups; ++g) {
    uint32_t quads[kQuads][kTile] = {};
    for (int row = 0; row < n_rows; ++row) {
      if (g % kBlockGroups == 0) {
        std::memcpy(&block[row], src + row * row_stride + g / kBlockGroups * static_cast<int64_t>(sizeof(block[row])),
                    sizeof(block[row]));
        if constexpr (F::block == kGroup) {
          put_scale<F>(block[row], g, row, dst);
        } else if constexpr (Packed<F>::scales == ScaleKind::half_zero_128) {
          put_scales_128(block[row], row, dst);
        } else {
          put_super_scales<F>(block[row], row, dst);
        }
      }
      uint32_t of_row[kQuads];
      stored_quads<F>(block[row], static_cast<int>(g % kBlockGroups), of_row);
      for (int q = 0; q < kQuads; ++q) quads[q][row] = of_row[q];
    }
    codes = put_codes<F>(quads, codes);
  }
}

template <class F>
void pack_plain_tile(const uint8_t* src, int64_t row_stride, int64_t n_rows, int64_t cols, uint8_t* dst) {
  constexpr int64_t kSize = sizeof(typename F::Block), kPair = F::id == DType::BF16 ? 2 : 1;
  std::memset(dst, 0, static_cast<size_t>(tile_bytes<F>(cols)));
  for (int64_t row = 0; row < n_rows; ++row) {
    for (int64_t k = 0; k < cols; ++k) {
      uint8_t* to = dst + ((k / kPair * kTile + row) * kPair + k % kPair) * kSize;
      std::memcpy(to, src + row * row_stride + k * kSize, kSize);
    }
  }
}

template <class F>
void pack_tile(const uint8_t* src, int64_t n_rows, int64_t cols, uint8_t* dst) {
  const int64_t row_stride = cols / F::block * static_cast<int64_t>(sizeof(typename F::Block));
  if constexpr (F::block == 1) {
    pack_plain_tile<F>(src, row_stride, n_rows, cols, dst);
  } else {
    const uint8_t* end = dst + tile_bytes<F>(cols);
    constexpr int64_t kChunkSource = kChunkGroups * kGroup / F::block * static_cast<int64_t>(sizeof(typename F::Block));
    for (int64_t group = 0; group < cols / kGroup; group += kChunkGroups) {
      const int64_t left = cols / kGroup - group, groups = left < kChunkGroups ? left : kChunkGroups;
      pack_chunk<F>(src + group / kChunkGroups * kChunkSource, row_stride, n_rows, groups, dst);
      dst += chunk_bytes<F>(groups);
    }
    std::memset(dst, 0, static_cast<size_t>(end - dst));
  }
}

[[noreturn]] void refuse(DType dtype, int64_t rows, int64_t cols) {
  const FormatInfo* info = find_format(dtype);
  throw Error(ErrorKind::bad_file, "cpu matmul", "no kernel for a weight of this format and shape",
              std::string(info ? info->name : "unknown format") + " [" + std::to_string(rows) + ", " +
                  std::to_string(cols) + "]",
              "a decodable format, at least one row, columns a multiple of its block");
}

}  // namespace

bool matmul_supported(DType dtype) { return decodable(dtype); }

ActivationForm activation_form(DType dtype) {
  ActivationForm form = ActivationForm::f32;
  if (!visit_format(dtype, [&]<class F>() {
        if constexpr (F::block > 1) form = ActivationForm::int8;
      })) {
    refuse(dtype, 0, 0);
  }
  return form;
}

size_t packed_bytes(DType dtype, int64_t rows, int64_t cols) {
  constexpr int64_t kMost = (int64_t{1} << 31) - kTileRows;
  const bool fits = rows >= 1 && cols >= 1 && rows <= kMost && cols <= kMost && tensor_bytes(dtype, rows, cols) >= 0 &&
                    tensor_bytes(dtype, rows, cols) < int64_t{1} << 56;
  if (!fits) refuse(dtype, rows, cols);
  size_t bytes = 0;
  const bool known = visit_format(dtype, [&]<class F>() {
    bytes = static_cast<size_t>(tile_count(rows)) * static_cast<size_t>(tile_bytes<F>(cols));
  });
  if (!known) refuse(dtype, rows, cols);
  return bytes;
}

void pack(DType dtype, const void* src, int64_t rows, int64_t cols, int64_t tile_begin, int64_t tile_end, void* dst) {
  packed_bytes(dtype, rows, cols);  // refuses what does not fit the format
  visit_format(dtype, [&]<class F>() {
    const int64_t source_tile = kTileRows * (cols / F::block) * static_cast<int64_t>(sizeof(typename F::Block));
    for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
      const int64_t left = rows - tile * kTileRows;
      pack_tile<F>(static_cast<const uint8_t*>(src) + tile * source_tile, left < kTileRows ? left : kTileRows, cols,
                   static_cast<uint8_t*>(dst) + tile * tile_bytes<F>(cols));
    }
  });
}

size_t activation_bytes(ActivationForm form, int64_t m, int64_t k) {
  const auto rows = static_cast<size_t>(m), cols = static_cast<size_t>(k);
  switch (form) {
    case ActivationForm::f32:
      return rows * ((cols * 4 + 63) / 64 * 64);
    case ActivationForm::int8:
    case ActivationForm::int8_rest:
      return rows * (cols / kGroup) * sizeof(ActivationGroup);
  }
  return 0;
}

}  // namespace infer::cpu
