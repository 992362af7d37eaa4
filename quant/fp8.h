// The 8-bit float of safetensors, e4m3 without infinities ("fn"): 1 sign, 4 exponent (biased by 7), 3 fraction bits.
// Magnitudes up to 448, subnormal down to 2^-9; all ones is a NaN. Every one of them is a bf16 and an f16 as well.
#pragma once

#include <cstdint>

#include "quant/half.h"

namespace infer {

INFER_HD float e4m3_to_f32(uint8_t byte) {
  const uint32_t sign = static_cast<uint32_t>(byte & 0x80) << 24, magnitude = byte & 0x7f;
  if (magnitude == 0x7f) return bits_float(sign | 0x7fc00000);
  // Exponent and fraction where a float has them, then the difference of the biases; exact for subnormals too.
  const float value = bits_float(magnitude << 20) * 0x1p120f;
  return bits_float(sign | float_bits(value));
}

}  // namespace infer
