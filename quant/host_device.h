// INFER_HD marks a function that g++ and nvcc both compile, so that the tests on the host run the very bit-twiddling
// that the GPU runs. It knows no CUDA header.
//
// On the host it also forces inlining. That is not for speed: the CPU kernels include these headers in files compiled
// for AVX2 and AVX-512, and an out-of-line copy made there could be the one that the linker keeps for the whole
// program, which would then crash on an older machine. A function that is always inlined leaves no copy behind.
#pragma once

#if defined(__CUDACC__)
#define INFER_HD __host__ __device__ __forceinline__
#else
#define INFER_HD inline __attribute__((always_inline))
#endif

namespace infer {

/// a * b + c with the product rounded before the sum, on the GPU too, where the compiler would fuse the two and move
/// the last bit. (The host is compiled with -ffp-contract=off.)
INFER_HD float multiply_then_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(__fmul_rn(a, b), c);
#else
  return a * b + c;
#endif
}

}  // namespace infer
