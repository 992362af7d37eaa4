// Operands of products in 8 bits (--act fp8): a matrix of e4m3 (quant/fp8.h) with a factor to each row, so that its
// largest number becomes the largest e4m3. Rows of activations are tokens, rows of weights output channels: the factors
// leave the sum, and cuBLASLt multiplies with them at its end. Plain C++: the tests on the host compute what the
// kernels compute, by the same functions.
#pragma once

#include <cstdint>

#include "kernels/cuda/packed.h"
#include "kernels/tensor.h"

namespace infer::cuda {

inline constexpr float kMostE4m3 = 448;
/// Rows and columns of a weight that cuBLASLt multiplies as e4m3 are multiples of this many: 16 bytes.
inline constexpr int64_t kE4m3Step = 16;

/// Where the f32 factors [rows] of an operand [rows, cols] of e4m3 lie: behind its numbers. With rows of kE4m3Step
/// numbers or more both take no more room than the same matrix in 16 bits.
inline float* row_scales(const Tensor& operand) {
  return reinterpret_cast<float*>(operand.as<char>() + operand.n_elements());
}

/// The bits of |x|, which order magnitudes as integers: infinity above all numbers, NaN above infinity.
INFER_HD uint32_t magnitude_bits(float x) { return float_bits(x) & 0x7fffffffu; }

/// The factor of a row by the magnitude_bits() of its largest number: what e4m3 are multiplied with. 1 for zeros. NaN
/// where a number is not finite, so that the row's results are NaN instead of something that looks like numbers.
INFER_HD float e4m3_scale(uint32_t largest) {
  constexpr float kLeast = 0x1p-120f;  // its inverse is finite
  if (largest >= 0x7f800000u) return bits_float(0x7fc00000u);
  if (largest == 0) return 1;
  const float scale = bits_float(largest) / kMostE4m3;
  return scale < kLeast ? kLeast : scale;
}

/// To nearest, ties to even; what is larger than 448 becomes 448, NaN stays NaN. As the GPU's own instruction has it.
INFER_HD uint8_t f32_to_e4m3(float x) {
  const uint32_t sign = float_bits(x) >> 24 & 0x80, magnitude = magnitude_bits(x);
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7f);
  if (magnitude >= float_bits(kMostE4m3)) return static_cast<uint8_t>(sign | 0x7e);
  // Subnormal ones are steps of 2^-9, which is the last place of 2^14 in a float: the sum rounds.
  if (magnitude < float_bits(0x1p-6f))
    return static_cast<uint8_t>(sign | (float_bits(bits_float(magnitude) + 0x1p14f) & 0xff));
  const uint32_t rounded = (magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20;
  return static_cast<uint8_t>(sign | (rounded - (120 << 3)));  // biases of 127 and 7
}

#if defined(__CUDACC__)
/// f32_to_e4m3() of four numbers in the bytes of a word, `a` lowest.
__device__ __forceinline__ uint32_t e4m3_quad(float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 890
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
  return low | static_cast<uint32_t>(high) << 16;
#else
  return static_cast<uint32_t>(f32_to_e4m3(a)) | static_cast<uint32_t>(f32_to_e4m3(b)) << 8 |
         static_cast<uint32_t>(f32_to_e4m3(c)) << 16 | static_cast<uint32_t>(f32_to_e4m3(d)) << 24;
#endif
}
#endif

/// magnitude_bits() of the largest weight that a group can have with this scale and offset, whatever its codes are. A
/// format's encoder chooses scales so that the largest weights take the outermost codes, so this is near the largest
/// that there is; and e4m3 are floats: a factor that is somewhat too large costs no digits.
template <class F>
INFER_HD uint32_t largest_of_group(float scale, float offset) {
  using P = Packed<F>;
  float low = 0, high = 0;  // outermost codes
  if constexpr (P::bias == kFloat) {
    high = kMostE4m3;
  } else if constexpr (P::bias == kTable) {
    for (int i = 0; i < 16; ++i) {
      const auto code = static_cast<float>(P::table(i));
      low = code < low ? code : low, high = code > high ? code : high;
    }
  } else if constexpr (P::low_bits == 8) {
    low = -128, high = 127;
  } else {
    low = static_cast<float>(-P::bias);
    high = static_cast<float>((1 << (P::low_bits + P::high_bits)) - 1 - P::bias);
  }
  const uint32_t a = magnitude_bits(scale * low + offset), b = magnitude_bits(scale * high + offset);
  return a > b ? a : b;
}

}  // namespace infer::cuda
