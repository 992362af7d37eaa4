// Q4_0: 32 weights, 4.5 bits each. weight = d * (q - 8), q in 0..15.
//
//   byte 0   d    f16
//   byte 2   qs   16 bytes: byte i holds q[i] in its low half and q[i + 16] in its high half
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct Q4_0 {
  static constexpr DType id = DType::Q4_0;
  static constexpr const char* name = "Q4_0";
  static constexpr int block = 32;
  static constexpr bool has_offset = false;
  struct Block {
    uint16_t d;
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 18);

  static INFER_HD void codes(const Block& b, int, int8_t out[kGroup]) {
    for (int i = 0; i < kGroup; ++i) out[i] = static_cast<int8_t>(bits::split_nibble(b.qs, i) - 8);
  }
  static INFER_HD void scales(const Block& b, int, float scale[2], float offset[2]) {
    scale[0] = scale[1] = f16_to_f32(b.d);
    offset[0] = offset[1] = 0.0f;
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<Q4_0>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<Q4_0>(b, group, out); }
};

static_assert(QuantFormat<Q4_0>);

}  // namespace infer
