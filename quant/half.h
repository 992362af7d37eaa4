// Conversions between float and the two 16-bit floats, given and taken as raw bits: f16 is IEEE binary16 (1 sign, 5
// exponent, 10 fraction bits; +-65504, subnormal down to 2^-24), bf16 is the upper half of a float (1, 8, 7). Every
// conversion to fewer bits rounds to nearest, ties to even, as the hardware does; overflow becomes infinity, a NaN
// stays a NaN (quiet, upper payload bits kept on the host, canonical on the GPU). Neither flush-to-zero nor the host's
// instruction set changes a result: the only subnormal float that is ever an operand is one too small to matter.
#pragma once

#include <cstdint>

#include "quant/host_device.h"

namespace infer {

INFER_HD uint32_t float_bits(float x) { return __builtin_bit_cast(uint32_t, x); }
INFER_HD float bits_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }

INFER_HD float f16_to_f32(uint16_t half) {
#if defined(__CUDA_ARCH__)
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
#else
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  // A subnormal is fraction * 2^-24: put the fraction below a 0.5, whose last place is just that, and take the 0.5
  // away.
  const uint32_t subnormal = float_bits(bits_float(0x3f000000 | magnitude) - 0.5f);
  const uint32_t normal = (magnitude << 13) + ((127 - 15) << 23);
  const uint32_t infinite = (magnitude << 13) | 0x7f800000 | (magnitude > 0x7c00 ? 0x00400000 : 0);
  const uint32_t finite = magnitude < 0x0400 ? subnormal : normal;
  return bits_float(sign | (magnitude >= 0x7c00 ? infinite : finite));
#endif
}

INFER_HD uint16_t f32_to_f16(float x) {
#if defined(__CUDA_ARCH__)
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
#else
  const uint32_t sign = (float_bits(x) >> 16) & 0x8000;
  const uint32_t magnitude = float_bits(x) & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00 | ((magnitude >> 13) & 0x03ff);
  } else if (magnitude >= 0x477ff000) {  // 65520, halfway from the largest f16 to the next power of two
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // below 2^-14 the addition rounds at the f16's last place, 2^-24
    half = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000;
  } else {
    const uint32_t odd = (magnitude >> 13) & 1;
    half = (magnitude - ((127 - 15) << 23) + 0x0fff + odd) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
#endif
}

INFER_HD float bf16_to_f32(uint16_t bits) { return bits_float(static_cast<uint32_t>(bits) << 16); }

INFER_HD uint16_t f32_to_bf16(float x) {
  const uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x0040);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace infer
