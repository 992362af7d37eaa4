// Q6_K: 256 weights in 16 sub-blocks of 16, 6.5625 bits each. weight = (d * scale) * (q - 32), q in 0..63.
//
//   byte   0   ql       128 bytes, the low four bits, 64 bytes to four groups: bytes 0-31 hold the first group in their
//                       low halves and the third in their high halves, bytes 32-63 the second and the fourth
//   byte 128   qh       64 bytes, the high two bits, 32 bytes to four groups: byte i holds weight i of each, the first
//                       group in the lowest two bits
//   byte 192   scales   16 signed bytes, one to a sub-block
//   byte 208   d        f16, scale of the scales
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct Q6_K {
  static constexpr DType id = DType::Q6_K;
  static constexpr const char* name = "Q6_K";
  static constexpr int block = 256;
  static constexpr bool has_offset = false;
  struct Block {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
  };
  static_assert(sizeof(Block) == 210);

  static constexpr int sub_block = 16;  ///< weights that share an integer scale
  static INFER_HD float super_scale(const Block& b) { return f16_to_f32(b.d); }
  /// Scale of sub-block 0..15, in -128..127.
  static INFER_HD int sub_scale(const Block& b, int sub) { return b.scales[sub]; }

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    const uint8_t* ql = b.ql + 64 * (group / 4) + 32 * (group % 2);
    const uint8_t* qh = b.qh + 32 * (group / 4);
    const int in_high_half = group % 4 / 2;
    for (int i = 0; i < kGroup; ++i) {
      const int q = bits::group_nibble(ql, in_high_half, i) | bits::group_pair(qh, group % 4, i) << 4;
      out[i] = static_cast<int8_t>(q - 32);
    }
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    for (int half = 0; half < 2; ++half) {
      scale[half] = super_scale(b) * sub_scale(b, 2 * group + half);
      offset[half] = 0.0f;
    }
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<Q6_K>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<Q6_K>(b, group, out); }
};

static_assert(QuantFormat<Q6_K>);

}  // namespace infer
