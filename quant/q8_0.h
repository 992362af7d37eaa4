// Q8_0: 32 weights, 8.5 bits each. weight = d * code, code in -128..127 (an encoder writes -127..127).
//
//   byte 0   d      f16, largest magnitude of the block / 127
//   byte 2   code   32 signed bytes in order
//
// It is also the quantised KV cache, so it can be written. A block that holds an infinity or a NaN decodes to NaN
// throughout: bad activations must surface, not vanish in a cast. Above 127 * 65504 d itself overflows, with that
// effect.
#pragma once

#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct Q8_0 {
  static constexpr DType id = DType::Q8_0;
  static constexpr const char* name = "Q8_0";
  static constexpr int block = 32;
  static constexpr bool has_offset = false;
  struct Block {
    uint16_t d;
    int8_t code[32];
  };
  static_assert(sizeof(Block) == 34);

  static INFER_HD void codes(const Block& b, int, int8_t out[kGroup]) {
    for (int i = 0; i < kGroup; ++i) out[i] = b.code[i];
  }
  static INFER_HD void scales(const Block& b, int, float scale[2], float offset[2]) {
    scale[0] = scale[1] = f16_to_f32(b.d);
    offset[0] = offset[1] = 0.0f;
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<Q8_0>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<Q8_0>(b, group, out); }

  static INFER_HD void encode(const float x[kGroup], Block& b) {
    uint32_t largest = 0;  // magnitudes compare like their bits, with infinity and NaN on top
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t magnitude = float_bits(x[i]) & 0x7fffffff;
      largest = magnitude > largest ? magnitude : largest;
    }
    const bool finite = largest < 0x7f800000;
    const float d = bits_float(largest) / 127.0f;
    // Codes come from the unrounded d. Where 1/d would overflow, d is zero in f16 anyway.
    const float inverse = finite && d > 1e-37f ? 1.0f / d : 0.0f;
    b.d = finite ? f32_to_f16(d) : 0x7e00;
    for (int i = 0; i < kGroup; ++i) {
      // A sum with 1.5 * 2^23 has no fraction bits, so the addition rounds to the nearest integer, ties to even.
      const float rounded = multiply_then_add(finite ? x[i] : 0.0f, inverse, 12582912.0f);
      b.code[i] = static_cast<int8_t>(rounded - 12582912.0f);
    }
  }
};

static_assert(QuantFormat<Q8_0> && EncodableFormat<Q8_0>);

}  // namespace infer
