// Q2_K: 256 weights in 16 sub-blocks of 16, 2.625 bits each. weight = (d * scale) * q - dmin * min, q in 0..3.
//
//   byte  0   scales   16 bytes, one to a sub-block: scale in the low half, min in the high half, both 0..15
//   byte 16   qs       64 bytes, 32 to four groups: byte i holds weight i of each, the first group in the lowest
//                      two bits
//   byte 80   d        f16, scale of the scales
//   byte 82   dmin     f16, scale of the mins
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct Q2_K {
  static constexpr DType id = DType::Q2_K;
  static constexpr const char* name = "Q2_K";
  static constexpr int block = 256;
  static constexpr bool has_offset = true;
  struct Block {
    uint8_t scales[16];
    uint8_t qs[64];
    uint16_t d;
    uint16_t dmin;
  };
  static_assert(sizeof(Block) == 84);

  static constexpr int sub_block = 16;  ///< weights that share an integer scale
  static INFER_HD float super_scale(const Block& b) { return f16_to_f32(b.d); }
  static INFER_HD float super_min(const Block& b) { return f16_to_f32(b.dmin); }
  /// Scale of sub-block 0..15, in 0..15.
  static INFER_HD int sub_scale(const Block& b, int sub) { return b.scales[sub] & 15; }
  /// Min of sub-block 0..15, in 0..15.
  static INFER_HD int sub_min(const Block& b, int sub) { return b.scales[sub] >> 4; }

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    const uint8_t* qs = b.qs + 32 * (group / 4);
    for (int i = 0; i < kGroup; ++i) out[i] = static_cast<int8_t>(bits::group_pair(qs, group % 4, i));
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    for (int half = 0; half < 2; ++half) {
      scale[half] = super_scale(b) * sub_scale(b, 2 * group + half);
      offset[half] = -(super_min(b) * sub_min(b, 2 * group + half));
    }
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<Q2_K>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<Q2_K>(b, group, out); }
};

static_assert(QuantFormat<Q2_K>);

}  // namespace infer
