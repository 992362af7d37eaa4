// IQ4_XS: 256 weights in 8 groups of 32, 4.25 bits each. weight = (d * (scale - 32)) * level[q], q in 0..15, the levels
// being those of IQ4_NL.
//
//   byte 0   d          f16, scale of the scales
//   byte 2   scales_h   16 bits, little end first: bits 2g and 2g + 1 are the high two bits of group g's scale
//   byte 4   scales_l   4 bytes, the low four bits: byte i holds those of group 2i in its low half and those of group
//                       2i + 1 in its high half
//   byte 8   qs         128 bytes, 16 to a group: byte i holds q[i] in its low half and q[i + 16] in its high half
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"
#include "quant/iq4_nl.h"

namespace infer {

struct IQ4_XS {
  static constexpr DType id = DType::IQ4_XS;
  static constexpr const char* name = "IQ4_XS";
  static constexpr int block = 256;
  static constexpr bool has_offset = false;
  struct Block {
    uint16_t d;
    uint8_t scales_h[2];
    uint8_t scales_l[4];
    uint8_t qs[128];
  };
  static_assert(sizeof(Block) == 136);

  static constexpr int sub_block = 32;  ///< weights that share an integer scale
  static INFER_HD float super_scale(const Block& b) { return f16_to_f32(b.d); }
  /// Scale of group 0..7, in -32..31.
  static INFER_HD int sub_scale(const Block& b, int sub) {
    const int low = (b.scales_l[sub / 2] >> (4 * (sub % 2))) & 15;
    const int high = (b.scales_h[sub / 4] >> (2 * (sub % 4))) & 3;
    return (low | high << 4) - 32;
  }

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    const uint8_t* qs = b.qs + 16 * group;
    for (int i = 0; i < kGroup; ++i) out[i] = static_cast<int8_t>(IQ4_NL::level(bits::split_nibble(qs, i)));
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    scale[0] = scale[1] = super_scale(b) * sub_scale(b, group);
    offset[0] = offset[1] = 0.0f;
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<IQ4_XS>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<IQ4_XS>(b, group, out); }
};

static_assert(QuantFormat<IQ4_XS>);

}  // namespace infer
