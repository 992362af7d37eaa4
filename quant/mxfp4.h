// MXFP4 (OCP Microscaling 1.0, E2M1 elements): 32 weights, 4.25 bits each. weight = 2^(e - 127) * value[q], q in 0..15,
// the values being +-{0, 0.5, 1, 1.5, 2, 3, 4, 6}. They are kept doubled, as integers, and the scale halved.
//
//   byte 0   e    the scale's exponent, biased by 127 (E8M0: no sign, no fraction; 255 is not treated as a NaN)
//   byte 1   qs   16 bytes: byte i holds q[i] in its low half and q[i + 16] in its high half
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct MXFP4 {
  static constexpr DType id = DType::MXFP4;
  static constexpr const char* name = "MXFP4";
  static constexpr int block = 32;
  static constexpr bool has_offset = false;
  struct Block {
    uint8_t e;
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 17);

  static INFER_HD int twice_value(int q) {
    static constexpr int8_t kValues[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    return kValues[q];
  }
  /// 2^(e - 128); the two smallest are subnormal floats.
  static INFER_HD float half_scale(int e) {
    return bits_float(e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
  }

  static INFER_HD void codes(const Block& b, int, int8_t out[kGroup]) {
    for (int i = 0; i < kGroup; ++i) out[i] = static_cast<int8_t>(twice_value(bits::split_nibble(b.qs, i)));
  }
  static INFER_HD void scales(const Block& b, int, float scale[2], float offset[2]) {
    scale[0] = scale[1] = half_scale(b.e);
    offset[0] = offset[1] = 0.0f;
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<MXFP4>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<MXFP4>(b, group, out); }
};

static_assert(QuantFormat<MXFP4>);

}  // namespace infer
