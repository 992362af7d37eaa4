// W4G: 32 weights, 5 bits each. weight = d * (q - zero), q in 0..15. What AWQ, GPTQ and compressed-tensors mean by
// four bits with zero points; made of their files while loading, no file has it.
//
//   byte 0   d      f16
//   byte 2   zero   f16, an integer in 0..16
//   byte 4   qs     16 bytes: byte i holds q[i] in its low half and q[i + 16] in its high half
//
// d * q and d * zero are exact in a float, and so is their difference: the weights are those of the file's definition
// bit for bit.
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct W4G {
  static constexpr DType id = DType::W4G;
  static constexpr const char* name = "W4G";
  static constexpr int block = 32;
  static constexpr bool has_offset = true;
  struct Block {
    uint16_t d;
    uint16_t zero;
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 20);

  static INFER_HD void codes(const Block& b, int, int8_t out[kGroup]) {
    for (int i = 0; i < kGroup; ++i) out[i] = static_cast<int8_t>(bits::split_nibble(b.qs, i));
  }
  static INFER_HD void scales(const Block& b, int, float scale[2], float offset[2]) {
    scale[0] = scale[1] = f16_to_f32(b.d);
    offset[0] = offset[1] = -(f16_to_f32(b.d) * f16_to_f32(b.zero));
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<W4G>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<W4G>(b, group, out); }
};

static_assert(QuantFormat<W4G>);

}  // namespace infer
