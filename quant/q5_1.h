// Q5_1: 32 weights, 6 bits each. weight = d * q + m, q in 0..31.
//
//   byte 0   d    f16
//   byte 2   m    f16, the smallest weight
//   byte 4   qh   32 bits, little end first: bit i is the fifth (highest) bit of q[i]
//   byte 8   qs   16 bytes, the low four bits: byte i holds those of q[i] in its low half and those of q[i + 16] in
//                 its high half
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct Q5_1 {
  static constexpr DType id = DType::Q5_1;
  static constexpr const char* name = "Q5_1";
  static constexpr int block = 32;
  static constexpr bool has_offset = true;
  struct Block {
    uint16_t d;
    uint16_t m;
    uint8_t qh[4];
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 24);

  static INFER_HD void codes(const Block& b, int, int8_t out[kGroup]) {
    const uint32_t high = bits::word(b.qh);
    for (int i = 0; i < kGroup; ++i)
      out[i] = static_cast<int8_t>(bits::split_nibble(b.qs, i) | static_cast<int>(high >> i & 1) << 4);
  }
  static INFER_HD void scales(const Block& b, int, float scale[2], float offset[2]) {
    scale[0] = scale[1] = f16_to_f32(b.d);
    offset[0] = offset[1] = f16_to_f32(b.m);
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<Q5_1>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<Q5_1>(b, group, out); }
};

static_assert(QuantFormat<Q5_1>);

}  // namespace infer
