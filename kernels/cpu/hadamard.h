// The rotation of kv_format.h on one head, for every instruction set. Included like simd.h by the files compiled for
// one of them.
#pragma once

#include "kernels/cpu/simd.h"
#include "kernels/kv_format.h"

namespace infer::cpu {
namespace {

/// One stage: pairs `half` apart become sum and difference.
template <int half>
INFER_HD void butterflies(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += 2 * half) {
    for (int j = 0; j < half; ++j) {
      const float a = x[i + j], b = x[i + j + half];
      x[i + j] = a + b;
      x[i + j + half] = a - b;
    }
  }
}

/// In place, each `block` of n numbers; n is a multiple of it. Nothing where it is 1.
void hadamard(float* x, int64_t n, int64_t block) {
  if (block == 1) return;
  butterflies<1>(x, n);
  if (block >= 4) butterflies<2>(x, n);
  if (block >= 8) butterflies<4>(x, n);
  if (block >= 16) butterflies<8>(x, n);
  for (int64_t half = 16; half < block; half *= 2) {
    for (int64_t i = 0; i < n; i += 2 * half) {
      for (int64_t j = i; j < i + half; j += kLanes) {
        const Vec a = Simd::load(x + j), b = Simd::load(x + j + half);
        Simd::store(x + j, Simd::add(a, b));
        Simd::store(x + j + half, Simd::sub(a, b));
      }
    }
  }
  const float scale = hadamard_scale(block);
  for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}

}  // namespace
}  // namespace infer::cpu
