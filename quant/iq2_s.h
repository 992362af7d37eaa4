// IQ2_S: 256 weights in 16 sub-blocks of 16, 2.5625 bits each. weight = (d * (scale + 0.5) / 4) * magnitude * sign:
// eight magnitudes at a time come from a codebook of 1024 vectors.
//
//   byte  0   d        f16
//   byte  2   qs       32 bytes, one to eight weights: the low 8 bits of the number of the codebook entry
//   byte 34   signs    32 bytes, one to eight weights: bit k is set where weight k is negative
//   byte 66   qh       8 bytes, one to a group: the high 2 bits of its four numbers, the first in the lowest bits
//   byte 74   scales   8 bytes, one to a group: the scale of its first half in the low half, both 0..15
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"
#include "quant/iq2_grids.h"

namespace infer {

struct IQ2_S {
  static constexpr DType id = DType::IQ2_S;
  static constexpr const char* name = "IQ2_S";
  static constexpr int block = 256;
  static constexpr bool has_offset = false;
  struct Block {
    uint16_t d;
    uint8_t qs[32];
    uint8_t signs[32];
    uint8_t qh[8];
    uint8_t scales[8];
  };
  static_assert(sizeof(Block) == 82);

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    for (int i = 0; i < kGroup; ++i) {
      const int eight = 4 * group + i / 8;
      const int entry = b.qs[eight] | (b.qh[group] >> (2 * (i / 8)) & 3) << 8;
      const int magnitude = iq2_magnitude(iq2_s_grid(entry), i % 8);
      out[i] = static_cast<int8_t>(b.signs[eight] >> (i % 8) & 1 ? -magnitude : magnitude);
    }
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    for (int half = 0; half < 2; ++half) {
      scale[half] = f16_to_f32(b.d) * (0.5f + static_cast<float>(b.scales[group] >> (4 * half) & 15)) * 0.25f;
      offset[half] = 0.0f;
    }
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<IQ2_S>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<IQ2_S>(b, group, out); }
};

static_assert(QuantFormat<IQ2_S>);

}  // namespace infer
