// IQ3_XXS: 256 weights in 8 groups of 32, 3.0625 bits each. weight = (d * (scale + 0.5) / 2) * magnitude * sign: four
// magnitudes at a time come from a codebook of 256 vectors, the signs of eight weights from 7 bits (see bits.h).
//
//   byte  0   d       f16
//   byte  2   qs      64 bytes, one to four weights: the number of the codebook entry
//   byte 66   signs   32 bits to a group, little end first: four times 7 bits of signs, and the scale, 0..15, on top
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"
#include "quant/iq3_grids.h"

namespace infer {

struct IQ3_XXS {
  static constexpr DType id = DType::IQ3_XXS;
  static constexpr const char* name = "IQ3_XXS";
  static constexpr int block = 256;
  static constexpr bool has_offset = false;
  struct Block {
    uint16_t d;
    uint8_t qs[64];
    uint8_t signs[32];
  };
  static_assert(sizeof(Block) == 98);

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    const uint32_t signs = bits::word(b.signs + 4 * group);
    for (int i = 0; i < kGroup; ++i) {
      const int magnitude = iq3_xxs_magnitude(iq3_xxs_grid(b.qs[8 * group + i / 4]), i % 4);
      out[i] = static_cast<int8_t>(bits::seven_signs(signs >> (7 * (i / 8)) & 127, i % 8) * magnitude);
    }
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    scale[0] = scale[1] = f16_to_f32(b.d) * (0.5f + static_cast<float>(b.signs[4 * group + 3] >> 4)) * 0.5f;
    offset[0] = offset[1] = 0.0f;
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<IQ3_XXS>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<IQ3_XXS>(b, group, out); }
};

static_assert(QuantFormat<IQ3_XXS>);

}  // namespace infer
