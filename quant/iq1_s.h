// IQ1_S: 256 weights in 8 groups of 32, 1.5625 bits each. weight = (d * (2 * scale + 1)) * (value + delta): eight
// values -1, 0, 1 at a time come from a codebook of 2048 vectors, delta is +-1/8 for a whole group. Codes here are 8 *
// (value + delta), so that they are whole numbers.
//
//   byte  0   d    f16
//   byte  2   qs   32 bytes, one to eight weights: the low 8 bits of the number of the codebook entry
//   byte 34   qh   16 bits to a group, little end first: four times the high 3 bits of such a number, then 3 bits of
//                  scale, then a bit that makes delta negative
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"
#include "quant/iq1_grid.h"

namespace infer {

struct IQ1_S {
  static constexpr DType id = DType::IQ1_S;
  static constexpr const char* name = "IQ1_S";
  static constexpr int block = 256;
  static constexpr bool has_offset = false;
  struct Block {
    uint16_t d;
    uint8_t qs[32];
    uint8_t qh[16];
  };
  static_assert(sizeof(Block) == 50);

  static INFER_HD uint32_t high(const Block& b, int group) {
    return b.qh[2 * group] | static_cast<uint32_t>(b.qh[2 * group + 1]) << 8;
  }

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    const uint32_t qh = high(b, group);
    const int delta = qh >> 15 ? -1 : 1;
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t entry = b.qs[4 * group + i / 8] | (qh >> (3 * (i / 8)) & 7) << 8;
      const int value = static_cast<int>(iq1_grid(static_cast<int>(entry)) >> (2 * (i % 8)) & 3) - 1;
      out[i] = static_cast<int8_t>(8 * value + delta);
    }
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    scale[0] = scale[1] = f16_to_f32(b.d) * static_cast<float>(2 * (high(b, group) >> 12 & 7) + 1) * 0.125f;
    offset[0] = offset[1] = 0.0f;
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<IQ1_S>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<IQ1_S>(b, group, out); }
};

static_assert(QuantFormat<IQ1_S>);

}  // namespace infer
