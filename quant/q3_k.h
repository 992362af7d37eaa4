// Q3_K: 256 weights in 16 sub-blocks of 16, 3.4375 bits each. weight = (d * (scale - 32)) * (q - 4), q in 0..7.
//
//   byte   0   hmask    32 bytes: bit g of byte i is the third (highest) bit of weight i of group g
//   byte  32   qs       64 bytes, the low two bits, 32 bytes to four groups: byte i holds weight i of each, the first
//                       group in the lowest two bits
//   byte  96   scales   12 bytes, 16 scales of 6 bits: bytes 0-7 hold the low four bits of scale i in the low half and
//                       of scale i + 8 in the high half; bytes 8-11 hold the high two bits of scales i, i + 4, i + 8
//                       and i + 12, the first in the lowest two bits
//   byte 108   d        f16, scale of the scales
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct Q3_K {
  static constexpr DType id = DType::Q3_K;
  static constexpr const char* name = "Q3_K";
  static constexpr int block = 256;
  static constexpr bool has_offset = false;
  struct Block {
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    uint16_t d;
  };
  static_assert(sizeof(Block) == 110);

  static constexpr int sub_block = 16;  ///< weights that share an integer scale
  static INFER_HD float super_scale(const Block& b) { return f16_to_f32(b.d); }
  /// Scale of sub-block 0..15, in -32..31.
  static INFER_HD int sub_scale(const Block& b, int sub) {
    const int low = (b.scales[sub % 8] >> (4 * (sub / 8))) & 15;
    const int high = (b.scales[8 + sub % 4] >> (2 * (sub / 4))) & 3;
    return (low | high << 4) - 32;
  }

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    const uint8_t* qs = b.qs + 32 * (group / 4);
    for (int i = 0; i < kGroup; ++i)
      out[i] = static_cast<int8_t>((bits::group_pair(qs, group % 4, i) | (b.hmask[i] >> group & 1) << 2) - 4);
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    for (int half = 0; half < 2; ++half) {
      scale[half] = super_scale(b) * sub_scale(b, 2 * group + half);
      offset[half] = 0.0f;
    }
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<Q3_K>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<Q3_K>(b, group, out); }
};

static_assert(QuantFormat<Q3_K>);

}  // namespace infer
