// Brings activations into the forms that weight formats want. The same bits on every instruction set. Included through
// matmul_kernels.h, hence the anonymous namespace.
#pragma once

#include <cstring>

#include "kernels/cpu/packed.h"

namespace infer::cpu {
namespace {

/// The scale of a group whose largest magnitude has these bits, and its inverse. Magnitudes compare like their bits,
/// with infinity and NaN on top: such a group gets a NaN, so that bad activations surface. Below 1e-35 the inverse
/// would overflow: such a group is zero beside anything that matters.
struct GroupRange {
  INFER_HD explicit GroupRange(uint32_t largest) : finite(largest < 0x7f800000) {
    const float most = bits_float(largest);
    const bool usable = finite && most > 1e-35f;
    scale = usable ? most / 127.0f : bits_float(finite ? 0 : 0x7fc00000);
    inverse = usable ? 127.0f / most : 0.0f;
  }

  bool finite;
  float scale, inverse;
};

/// Fills in all but the codes.
INFER_HD void set_sums(float scale, int32_t half0, int32_t half1, ActivationGroup& out) {
  out.scale = scale;
  out.bias = -128 * (half0 + half1);
  out.half_bias[0] = -128 * half0;
  out.half_bias[1] = -128 * half1;
  out.sum = scale * static_cast<float>(half0 + half1);
  out.half_sum[0] = scale * static_cast<float>(half0);
  out.half_sum[1] = scale * static_cast<float>(half1);
  out.unused = 0;
}

/// x = scale * code with scale = max |x| / 127, codes rounded to nearest even.
INFER_HD void quantize_group(const float* x, ActivationGroup& out) {
  uint32_t largest = 0;
  for (int i = 0; i < kGroup; ++i) {
    const uint32_t magnitude = float_bits(x[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  const GroupRange range(largest);
  int32_t code[kGroup];
  for (int i = 0; i < kGroup; ++i) {
    const float scaled = range.finite ? x[i] * range.inverse : 0.0f;
    code[i] = static_cast<int32_t>((scaled + 12582912.0f) - 12582912.0f);  // 1.5 * 2^23: the addition rounds
  }
  int32_t half[2] = {0, 0};
  for (int i = 0; i < 16; ++i) half[0] += code[i];
  for (int i = 16; i < 32; ++i) half[1] += code[i];
  int8_t bytes[kGroup];
  for (int i = 0; i < kGroup; ++i) bytes[i] = static_cast<int8_t>(code[i]);
  std::memcpy(out.quad, bytes, sizeof(bytes));
  set_sums(range.scale, half[0], half[1], out);
}

template <class S>
void prepare_int8(const float* x, int64_t k, void* dst) {
  auto* out = static_cast<ActivationGroup*>(dst);
  for (int64_t g = 0; g < k / kGroup; ++g) {
    if constexpr (requires { S::quantize_group(x, *out); }) {
      S::quantize_group(x + g * kGroup, out[g]);
    } else {
      quantize_group(x + g * kGroup, out[g]);
    }
  }
}

/// The codes of what prepare_int8 loses.
template <class S>
void prepare_int8_rest(const float* x, int64_t k, void* dst) {
  auto* out = static_cast<ActivationGroup*>(dst);
  for (int64_t g = 0; g < k / kGroup; ++g) {
    prepare_int8<S>(x + g * kGroup, kGroup, out + g);
    int8_t code[kGroup];
    std::memcpy(code, out[g].quad, kGroup);
    float rest[kGroup];
    for (int i = 0; i < kGroup; ++i) rest[i] = x[g * kGroup + i] - out[g].scale * static_cast<float>(code[i]);
    prepare_int8<S>(rest, kGroup, out + g);
  }
}

}  // namespace
}  // namespace infer::cpu
