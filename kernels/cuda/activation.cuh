// Activations of a gate: those that keep every digit, and those by the GPU's fast exponential, for results that are
// rounded to bf16 anyway.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/ops.h"

namespace infer::cuda {

/// 1 / (1 + exp(-x)) without an exponential that overflows, so that far tails keep their digits.
__device__ __forceinline__ float logistic(float x) {
  const float e = expf(-fabsf(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

__device__ __forceinline__ float activated(float x, Activation activation) {
  if (activation == Activation::silu) return x * logistic(x);
  if (activation == Activation::silu_clamped) {
    const float limited = x > kClampedLimit ? kClampedLimit : x;
    return limited * logistic(kClampedSlope * limited);
  }
  // (1 + tanh(y)) / 2 is the logistic function of 2 y.
  constexpr float kTwoRoots = 1.5957691216057308f;  // 2 sqrt(2 / pi)
  return x * logistic(kTwoRoots * (x + 0.044715f * x * x * x));
}

/// What the activated gate is multiplied with.
__device__ __forceinline__ float factor_of(float up, Activation activation) {
  if (activation != Activation::silu_clamped) return up;
  return 1 + (up > kClampedLimit ? kClampedLimit : up < -kClampedLimit ? -kClampedLimit : up);
}

template <Activation kActivation>
__device__ __forceinline__ float activated_fast(float x) {
  if constexpr (kActivation == Activation::silu) return x / (1.0f + exp2_fast(-kLog2e * x));
  constexpr float kRoot = 0.7978845608028654f;  // sqrt(2 / pi)
  return 0.5f * x * (1.0f + tanh_fast(kRoot * (x + 0.044715f * x * x * x)));
}

}  // namespace infer::cuda
