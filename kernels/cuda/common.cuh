// Small device helpers that several kernels share: warp reductions, named barriers, early starts, 16-byte loads, 16-bit
// floats in pairs, the tensor-core product of 16-bit floats, and the check after a launch. Nothing here knows an op.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <utility>

#include "kernels/cuda/device.h"
#include "quant/dtype.h"
#include "quant/half.h"

namespace infer::cuda {

inline constexpr float kLog2e = 1.4426950408889634f;

/// After a launch; a launcher never waits, so this sees refusals only.
inline void check_launch(const char* what) { check(cudaGetLastError(), what); }

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

/// What a norm multiplies n numbers with, to 2 ulp: exact roots and quotients are a hundred instructions that a launch
/// waits for.
__device__ __forceinline__ float inverse_rms(float sum_of_squares, int64_t n, float eps) {
  return rsqrtf(__fdividef(sum_of_squares, static_cast<float>(n)) + eps);
}

/// A barrier among kThreads threads of the CTA that all name the same id (0 is __syncthreads).
template <int kId, int kThreads>
__device__ __forceinline__ void named_barrier() {
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}

/// The next kernel may start as soon as all CTAs of this one have said so (or ended), if it was launched to; it then
/// waits, before it touches what others write, until this one is done.
__device__ __forceinline__ void start_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Launches a kernel that calls wait_for_previous_kernel() before it reads or writes anything that others touch: it may
/// start, and be there, while the one before it runs.
template <class... Params, class... Args>
void launch_early(const char* what, void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes,
                  cudaStream_t stream, Args... args) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early, config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), what);
}
template <class... Params, class... Args>
void launch_early(const char* what, void (*kernel)(Params...), int64_t blocks, int threads, size_t shared_bytes,
                  cudaStream_t stream, Args... args) {
  launch_early(what, kernel, dim3(static_cast<unsigned>(blocks)), threads, shared_bytes, stream, args...);
}

/// 2^x with an error of 2 ulp; exp2_fast(-inf) is 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// tanh with an absolute error of a few 1e-7, right at infinities and for NaN.
__device__ __forceinline__ float tanh_fast(float x) { return 1.0f - 2.0f / (exp2_fast(2 * kLog2e * x) + 1.0f); }

/// kWords words of global memory that are read once: not kept in L1. Zeros, and no access, where `inside` is false. Not
/// the non-coherent path, as a kernel may read what its own grid wrote before a barrier.
template <int kWords>
__device__ __forceinline__ void load_stream(const void* from, bool inside, uint32_t* w) {
  static_assert(kWords == 1 || kWords == 2 || kWords == 4);
  if constexpr (kWords == 4) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\nmov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
        "@p ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
        : "=&r"(w[0]), "=&r"(w[1]), "=&r"(w[2]), "=&r"(w[3])
        : "l"(from), "r"(static_cast<int>(inside)));
  } else if constexpr (kWords == 2) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %3, 0;\nmov.b32 %0, 0;\nmov.b32 %1, 0;\n"
        "@p ld.global.L1::no_allocate.v2.b32 {%0, %1}, [%2];\n}"
        : "=&r"(w[0]), "=&r"(w[1])
        : "l"(from), "r"(static_cast<int>(inside)));
  } else {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\nmov.b32 %0, 0;\n@p ld.global.L1::no_allocate.b32 %0, [%1];\n}"
        : "=&r"(w[0])
        : "l"(from), "r"(static_cast<int>(inside)));
  }
}

/// 16 bits of global memory, or zero.
__device__ __forceinline__ uint32_t load_stream_16(const void* from, bool inside) {
  uint16_t x;
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\nmov.b16 %0, 0;\n@p ld.global.b16 %0, [%1];\n}"
               : "=&h"(x)
               : "l"(from), "r"(static_cast<int>(inside)));
  return x;
}

/// 1, 2 or 4 words of shared memory; zeros where `inside` is false.
template <int kWords>
__device__ __forceinline__ void load_shared(const void* from, bool inside, uint32_t* w) {
  static_assert(kWords == 1 || kWords == 2 || kWords == 4);
  if constexpr (kWords == 4) {
    const uint4 v = inside ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  } else if constexpr (kWords == 2) {
    const uint2 v = inside ? *static_cast<const uint2*>(from) : make_uint2(0, 0);
    w[0] = v.x, w[1] = v.y;
  } else {
    w[0] = inside ? *static_cast<const uint32_t*>(from) : 0;
  }
}

/// 16 bytes from global to shared memory, asynchronously; zeros, and no access, where `inside` is false.
__device__ __forceinline__ void copy_async(void* shared, const void* from, bool inside) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Until all but the newest kPending groups of this thread's copies have arrived.
template <int kPending>
__device__ __forceinline__ void wait_async() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Four 8x8 matrices of 16-bit numbers; lane i gives the address of row i % 8 of matrix i / 8. Lane (r, j) gets the
/// numbers 2j and 2j+1 of row r, or with kTransposed of column r.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(const void* shared_row, uint32_t m[4]) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(from)
                 : "memory");
  }
}

// The two 16-bit floats that tensor cores multiply. pack() rounds to nearest; the first argument is the low half.
// mma(): c [16, 8] += a [16, 16] * b [16, 8]; with r = lane / 4, j = lane % 4 a lane holds
//   a[0] row r, k 2j 2j+1     a[1] row r+8, same k     a[2] row r, k 2j+8 2j+9     a[3] row r+8, k 2j+8 2j+9
//   b[0] k 2j 2j+1, column r  b[1] k 2j+8 2j+9         c[0] c[1] row r, columns 2j 2j+1     c[2] c[3] row r+8
struct HalfType {
  static constexpr DType id = DType::F16;
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
  static __device__ __forceinline__ float low(uint32_t pair) { return f16_to_f32(static_cast<uint16_t>(pair)); }
  static __device__ __forceinline__ float high(uint32_t pair) { return f16_to_f32(static_cast<uint16_t>(pair >> 16)); }
  static __device__ __forceinline__ void mma(float c[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                             uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
};

struct Bf16Type {
  static constexpr DType id = DType::BF16;
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
  static __device__ __forceinline__ float low(uint32_t pair) { return bits_float(pair << 16); }
  static __device__ __forceinline__ float high(uint32_t pair) { return bits_float(pair & 0xffff0000u); }
  static __device__ __forceinline__ void mma(float c[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                             uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
};

__device__ __forceinline__ uint32_t half2_sub(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
__device__ __forceinline__ uint32_t half2_mul(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}

// Signed bytes become f16 without a conversion instruction: with the sign bit flipped, byte b + 128 under an exponent
// of 2^10 is the number 1152 + b. The difference is exact, so only the product with the scale rounds.
inline constexpr uint32_t kFlipSigns = 0x80808080u, kHalf1024 = 0x64646464u, kHalf1152 = 0x64806480u;

/// Bytes kFirst and kFirst + 1 (0 or 2) of flipped codes, times the scales in the two halves of `scale`.
template <int kFirst>
__device__ __forceinline__ uint32_t codes_to_half2(uint32_t flipped, uint32_t scale) {
  static_assert(kFirst == 0 || kFirst == 2);
  return half2_mul(half2_sub(__byte_perm(flipped, kHalf1024, kFirst == 0 ? 0x4140 : 0x4342), kHalf1152), scale);
}

/// f16 for a matrix product: what is too large becomes the largest number instead of infinity; NaN stays NaN.
__device__ __forceinline__ uint16_t f32_to_f16_clamped(float x) {
  return f32_to_f16(fabsf(x) > 65504.0f ? copysignf(65504.0f, x) : x);
}

// An activation stored as F32, F16 (clamped) or BF16.
template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __ushort_as_half(f32_to_f16_clamped(x));
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

/// Calls function.operator()<T>() with the C++ type of an activation; false for other formats.
template <class Function>
bool visit_activation_type(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::F32:
      return function.template operator()<float>(), true;
    case DType::F16:
      return function.template operator()<__half>(), true;
    case DType::BF16:
      return function.template operator()<__nv_bfloat16>(), true;
    default:
      return false;
  }
}

}  // namespace infer::cuda
