// Q5_K: 256 weights in 8 groups of 32, 5.5 bits each. weight = (d * scale) * q - dmin * min, q in 0..31.
//
//   byte  0   d        f16, scale of the scales
//   byte  2   dmin     f16, scale of the mins
//   byte  4   scales   12 bytes, a scale and a min of 6 bits for each group (see bits.h)
//   byte 16   qh       32 bytes: bit g of byte i is the fifth (highest) bit of weight i of group g
//   byte 48   qs       128 bytes, the low four bits, 32 bytes to two groups: byte i holds weight i of the even group in
//                      its low half, weight i of the odd group in its high half
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct Q5_K {
  static constexpr DType id = DType::Q5_K;
  static constexpr const char* name = "Q5_K";
  static constexpr int block = 256;
  static constexpr bool has_offset = true;
  struct Block {
    uint16_t d;
    uint16_t dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
  };
  static_assert(sizeof(Block) == 176);

  static constexpr int sub_block = 32;  ///< weights that share an integer scale
  static INFER_HD float super_scale(const Block& b) { return f16_to_f32(b.d); }
  static INFER_HD float super_min(const Block& b) { return f16_to_f32(b.dmin); }
  /// Scale of group 0..7, in 0..63.
  static INFER_HD int sub_scale(const Block& b, int sub) { return bits::six_bit_scale(b.scales, sub); }
  /// Min of group 0..7, in 0..63.
  static INFER_HD int sub_min(const Block& b, int sub) { return bits::six_bit_min(b.scales, sub); }

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    const uint8_t* qs = b.qs + 32 * (group / 2);
    for (int i = 0; i < kGroup; ++i)
      out[i] = static_cast<int8_t>(bits::group_nibble(qs, group % 2, i) | (b.qh[i] >> group & 1) << 4);
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    scale[0] = scale[1] = super_scale(b) * sub_scale(b, group);
    offset[0] = offset[1] = -(super_min(b) * sub_min(b, group));
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<Q5_K>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<Q5_K>(b, group, out); }
};

static_assert(QuantFormat<Q5_K>);

}  // namespace infer
