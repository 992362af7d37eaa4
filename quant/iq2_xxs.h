// IQ2_XXS: 256 weights in 8 groups of 32, 2.0625 bits each. weight = (d * (scale + 0.5) / 4) * magnitude * sign: eight
// magnitudes at a time come from a codebook of 256 vectors, their signs from 7 bits (see bits.h).
//
//   byte 0   d    f16
//   byte 2   qs   64 bytes, 8 to a group: four numbers of codebook entries, then 32 bits, little end first: four times
//                 7 bits of signs, and the group's scale, 0..15, on top
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"
#include "quant/iq2_grids.h"

namespace infer {

struct IQ2_XXS {
  static constexpr DType id = DType::IQ2_XXS;
  static constexpr const char* name = "IQ2_XXS";
  static constexpr int block = 256;
  static constexpr bool has_offset = false;
  struct Block {
    uint16_t d;
    uint8_t qs[64];
  };
  static_assert(sizeof(Block) == 66);

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    const uint8_t* qs = b.qs + 8 * group;
    const uint32_t signs = bits::word(qs + 4);
    for (int i = 0; i < kGroup; ++i) {
      const int magnitude = iq2_magnitude(iq2_xxs_grid(qs[i / 8]), i % 8);
      out[i] = static_cast<int8_t>(bits::seven_signs(signs >> (7 * (i / 8)) & 127, i % 8) * magnitude);
    }
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    scale[0] = scale[1] = f16_to_f32(b.d) * (0.5f + static_cast<float>(b.qs[8 * group + 7] >> 4)) * 0.25f;
    offset[0] = offset[1] = 0.0f;
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<IQ2_XXS>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<IQ2_XXS>(b, group, out); }
};

static_assert(QuantFormat<IQ2_XXS>);

}  // namespace infer
