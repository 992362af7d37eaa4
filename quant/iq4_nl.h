// IQ4_NL: 32 weights, 4.5 bits each. weight = d * level[q], q in 0..15: Q4_0 with levels that are not evenly spaced.
//
//   byte 0   d    f16
//   byte 2   qs   16 bytes: byte i holds q[i] in its low half and q[i + 16] in its high half
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct IQ4_NL {
  static constexpr DType id = DType::IQ4_NL;
  static constexpr const char* name = "IQ4_NL";
  static constexpr int block = 32;
  static constexpr bool has_offset = false;
  struct Block {
    uint16_t d;
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 18);

  /// The sixteen levels, spaced as normally distributed weights are.
  static INFER_HD int level(int q) {
    static constexpr int8_t kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    return kLevels[q];
  }

  static INFER_HD void codes(const Block& b, int, int8_t out[kGroup]) {
    for (int i = 0; i < kGroup; ++i) out[i] = static_cast<int8_t>(level(bits::split_nibble(b.qs, i)));
  }
  static INFER_HD void scales(const Block& b, int, float scale[2], float offset[2]) {
    scale[0] = scale[1] = f16_to_f32(b.d);
    offset[0] = offset[1] = 0.0f;
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<IQ4_NL>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<IQ4_NL>(b, group, out); }
};

static_assert(QuantFormat<IQ4_NL>);

}  // namespace infer
