// W4G128: 256 weights, 4.25 bits each. weight = d[i / 128] * (q - zero[i / 128]), q in 0..15. What AWQ, GPTQ and
// compressed-tensors mean by four bits with a scale and a zero point to 128 columns, or to a row; made of their files
// while loading, no file has it.
//
//   byte 0   d      2 f16
//   byte 4   zero   2 f16, integers in 0..16
//   byte 8   qs     16 bytes to a group of 32: byte i holds q[i] in its low half and q[i + 16] in its high half
//
// Exact as in w4g.h.
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct W4G128 {
  static constexpr DType id = DType::W4G128;
  static constexpr const char* name = "W4G128";
  static constexpr int block = 256;
  static constexpr int scale_columns = 128;
  static constexpr bool has_offset = true;
  struct Block {
    uint16_t d[2];
    uint16_t zero[2];
    uint8_t qs[128];
  };
  static_assert(sizeof(Block) == 136);

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    for (int i = 0; i < kGroup; ++i) out[i] = static_cast<int8_t>(bits::split_nibble(b.qs + 16 * group, i));
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    const int of = group * kGroup / scale_columns;
    scale[0] = scale[1] = f16_to_f32(b.d[of]);
    offset[0] = offset[1] = -(f16_to_f32(b.d[of]) * f16_to_f32(b.zero[of]));
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<W4G128>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<W4G128>(b, group, out); }
};

static_assert(QuantFormat<W4G128>);

}  // namespace infer
