// Activations of a gate by the GPU's fast exponential, for results that are rounded to bf16 anyway. pointwise.cu has
// those that keep every digit.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/ops.h"

namespace infer::cuda {

template <Activation kActivation>
__device__ __forceinline__ float activated_fast(float x) {
  if constexpr (kActivation == Activation::silu) return x / (1.0f + exp2_fast(-kLog2e * x));
  constexpr float kRoot = 0.7978845608028654f;  // sqrt(2 / pi)
  return 0.5f * x * (1.0f + tanh_fast(kRoot * (x + 0.044715f * x * x * x)));
}

}  // namespace infer::cuda
