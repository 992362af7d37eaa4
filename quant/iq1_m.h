// IQ1_M: 256 weights in 16 sub-blocks of 16, 1.75 bits each. weight = (d * (2 * scale + 1)) * (value + delta): eight
// values -1, 0, 1 at a time come from a codebook of 2048 vectors, delta is +-1/8 for each eight. Codes here are
// 8 * (value + delta), so that they are whole numbers.
//
//   byte  0   qs       32 bytes, one to eight weights: the low 8 bits of the number of the codebook entry
//   byte 32   qh       16 bytes of two halves, one half to eight weights, the low half first: 3 high bits of the
//   number,
//                      then a bit that makes delta negative
//   byte 48   scales   four words of 16 bits, little end first: each four scales of 3 bits, the first sub-block's in
//   the
//                      lowest, and 4 bits of d (f16) on top, its lowest in the first word
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"
#include "quant/iq1_grid.h"

namespace infer {

struct IQ1_M {
  static constexpr DType id = DType::IQ1_M;
  static constexpr const char* name = "IQ1_M";
  static constexpr int block = 256;
  static constexpr bool has_offset = false;
  struct Block {
    uint8_t qs[32];
    uint8_t qh[16];
    uint8_t scales[8];
  };
  static_assert(sizeof(Block) == 56);

  static INFER_HD uint32_t scale_word(const Block& b, int i) {
    return b.scales[2 * i] | static_cast<uint32_t>(b.scales[2 * i + 1]) << 8;
  }
  static INFER_HD float super_scale(const Block& b) {
    uint32_t d = 0;
    for (int i = 0; i < 4; ++i) d |= scale_word(b, i) >> 12 << (4 * i);
    return f16_to_f32(static_cast<uint16_t>(d));
  }
  /// Scale of sub-block 0..15, in 0..7.
  static INFER_HD int sub_scale(const Block& b, int sub) { return scale_word(b, sub / 4) >> (3 * (sub % 4)) & 7; }

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    for (int i = 0; i < kGroup; ++i) {
      const int eight = 4 * group + i / 8;
      const int high = b.qh[eight / 2] >> (4 * (eight % 2)) & 15;
      const int value = static_cast<int>(iq1_grid(b.qs[eight] | (high & 7) << 8) >> (2 * (i % 8)) & 3) - 1;
      out[i] = static_cast<int8_t>(8 * value + (high & 8 ? -1 : 1));
    }
  }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    for (int half = 0; half < 2; ++half) {
      scale[half] = super_scale(b) * static_cast<float>(2 * sub_scale(b, 2 * group + half) + 1) * 0.125f;
      offset[half] = 0.0f;
    }
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<IQ1_M>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<IQ1_M>(b, group, out); }
};

static_assert(QuantFormat<IQ1_M>);

}  // namespace infer
