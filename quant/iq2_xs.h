// IQ2_XS: 256 weights in 16 sub-blocks of 16, 2.3125 bits each. weight = (d * (scale + 0.5) / 4) * magnitude * sign:
// eight magnitudes at a time come from a codebook of 512 vectors, their signs from 7 bits (see bits.h).
//
//   byte  0   d        f16
//   byte  2   qs       32 words of 16 bits, little end first, one to eight weights: the number of the codebook entry in
//                      the low 9 bits, signs above
//   byte 66   scales   8 bytes, one to a group: the scale of its first half in the low half, both 0..15
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"
#include "quant/iq2_grids.h"

namespace infer {

struct IQ2_XS {
  static constexpr DType id = DType::IQ2_XS;
  static constexpr const char* name = "IQ2_XS";
  static constexpr int block = 256;
  static constexpr bool has_offset = false;
  struct Block {
    uint16_t d;
    uint8_t qs[64];
    uint8_t scales[8];
  };
  static_assert(sizeof(Block) == 74);

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    const uint8_t* qs = b.qs + 8 * group;
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t word = qs[i / 8 * 2] | static_cast<uint32_t>(qs[i / 8 * 2 + 1]) << 8;
      const int magnitude = iq2_magnitude(iq2_xs_grid(static_cast<int>(word & 511)), i % 8);
      out[i] = static_cast<int8_t>(bits::seven_signs(word >> 9, i % 8) * magnitude);
    }
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    for (int half = 0; half < 2; ++half) {
      scale[half] = f16_to_f32(b.d) * (0.5f + static_cast<float>(b.scales[group] >> (4 * half) & 15)) * 0.25f;
      offset[half] = 0.0f;
    }
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<IQ2_XS>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<IQ2_XS>(b, group, out); }
};

static_assert(QuantFormat<IQ2_XS>);

}  // namespace infer
