// Q4_0: 32 weights, 4.5 bits each. weight = d * (q - 8), q in 0..15.
//
//   byte 0   d    f16
//   byte 2   qs   16 bytes: byte i holds q[i] in its low half and q[i + 16] in its high half
//
// It is also a quantised KV cache, so it can be written at once: d is the weight of largest magnitude / -8, the others
// get the nearest code (llama.cpp's rule; encode.h searches for a better d). A block that holds an infinity or a NaN
// decodes to NaN throughout, as in Q8_0.
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

  static INFER_HD void encode(const float x[kGroup], Block& b) {
    uint32_t largest = 0;  // magnitude with the sign below it, so that one maximum finds both
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t bits = float_bits(x[i]), turned = bits << 1 | bits >> 31;
      largest = turned > largest ? turned : largest;
    }
    const bool finite = largest >> 1 < 0x7f800000;
    const float d = bits_float(largest >> 1 | largest << 31) / -8.0f;
    // Codes come from the unrounded d. Where 1/d would overflow, d is zero in f16 anyway.
    const float inverse = finite && largest >> 1 > 0x02000000 ? 1.0f / d : 0.0f;
    b.d = finite ? f32_to_f16(d) : 0x7e00;
    uint8_t code[kGroup];
    for (int i = 0; i < kGroup; ++i) {
      const float shifted = multiply_then_add(finite ? x[i] : 0.0f, inverse, 8.5f);
      const int q = static_cast<int>(shifted);
      code[i] = static_cast<uint8_t>(q > 15 ? 15 : q);
    }
    for (int i = 0; i < 16; ++i) b.qs[i] = static_cast<uint8_t>(code[i] | code[i + 16] << 4);
  }
};

static_assert(QuantFormat<Q4_0> && EncodableFormat<Q4_0>);

}  // namespace infer
