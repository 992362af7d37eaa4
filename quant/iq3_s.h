// IQ3_S: 256 weights in 8 groups of 32, 3.4375 bits each. weight = (d * (2 * scale + 1)) * magnitude * sign: four
// magnitudes at a time come from a codebook of 512 vectors.
//
//   byte   0   d        f16
//   byte   2   qs       64 bytes, one to four weights: the low 8 bits of the number of the codebook entry
//   byte  66   qh       8 bytes, one to a group: bit k is the high bit of its number k
//   byte  74   signs    32 bytes, one to eight weights: bit k is set where weight k is negative
//   byte 106   scales   4 bytes: byte i holds the scale of group 2i in its low half and of group 2i + 1 in its high
//   half
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"
#include "quant/iq3_grids.h"

namespace infer {

struct IQ3_S {
  static constexpr DType id = DType::IQ3_S;
  static constexpr const char* name = "IQ3_S";
  static constexpr int block = 256;
  static constexpr bool has_offset = false;
  struct Block {
    uint16_t d;
    uint8_t qs[64];
    uint8_t qh[8];
    uint8_t signs[32];
    uint8_t scales[4];
  };
  static_assert(sizeof(Block) == 110);

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    for (int i = 0; i < kGroup; ++i) {
      const int entry = b.qs[8 * group + i / 4] | (b.qh[group] >> (i / 4) & 1) << 8;
      const int magnitude = iq3_s_magnitude(iq3_s_grid(entry), i % 4);
      out[i] = static_cast<int8_t>(b.signs[4 * group + i / 8] >> (i % 8) & 1 ? -magnitude : magnitude);
    }
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    scale[0] = scale[1] = f16_to_f32(b.d) * static_cast<float>(1 + 2 * (b.scales[group / 2] >> (4 * (group % 2)) & 15));
    offset[0] = offset[1] = 0.0f;
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<IQ3_S>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<IQ3_S>(b, group, out); }
};

static_assert(QuantFormat<IQ3_S>);

}  // namespace infer
