// How values pass between CTAs without barriers: a value is its own flag. An exchange buffer holds -0.0 everywhere; a
// writer stores its value once (a -0.0 becomes 0.0), a reader loads until no -0.0 is left. There are two copies of each
// buffer, used by layers of even and odd number; whoever writes a value into one copy empties the same place of the
// other. That is safe because whoever writes stage s of layer l has seen all of stage s - 1, to which every CTA of the
// grid contributes at least once per layer (gate and up), hence everybody has long read what is emptied. Codes of four
// int8 have a flag of their own: a byte of -128, which quantisation never makes.
//
// Where many CTAs would poll in vain while few still work, they wait for words of the same kind that say that results
// are near (announce() in decode_activations.cuh). Such a word may be left from steps that had no use for it; who
// believes it only polls earlier.
//
// Words are read and written with relaxed loads and stores of gpu scope: a word is either empty or complete, and no
// other memory is read on the strength of it. All CTAs must be resident (cooperative launch).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace infer::cuda {

inline constexpr uint32_t kEmpty = 0x80000000u, kEmptyCodes = 0x80808080u;
/// Polls before the kernel gives up and traps: some seconds. A lost value must not hang the device.
inline constexpr uint32_t kPollLimit = 1u << 23, kPollPause = 20;

__device__ __forceinline__ uint4 load_relaxed4(const void* p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
/// Eight words side by side.
__device__ __forceinline__ void load_relaxed8(const void* p, uint4& v, uint4& w) {
  asm volatile(
      "ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%8];\n"
      "ld.relaxed.gpu.global.v4.u32 {%4,%5,%6,%7}, [%8+16];"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w), "=&r"(w.x), "=&r"(w.y), "=&r"(w.z), "=&r"(w.w)
      : "l"(p)
      : "memory");
}
__device__ __forceinline__ uint2 load_relaxed2(const void* p) {
  uint2 v;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ uint32_t load_relaxed(const void* p) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_relaxed(void* p, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

/// Before a word is asked for again: those who write need the L2 too.
__device__ __forceinline__ void pause(uint32_t& n) {
  if (++n > kPollLimit) __trap();
  __nanosleep(kPollPause);
}

// What polls goes on until no word is empty, from what first loads have found. Several words are asked for side by side
// again and again, since one after the other each would be a trip to the L2 of its own.

/// As integers: an empty word is the smallest that there is, of values and of codes.
__device__ __forceinline__ int smallest(uint4 v) {
  return min(min(static_cast<int>(v.x), static_cast<int>(v.y)), min(static_cast<int>(v.z), static_cast<int>(v.w)));
}
__device__ __forceinline__ bool any_empty(uint4 v, uint32_t empty = kEmpty) {
  return v.x == empty || v.y == empty || v.z == empty || v.w == empty;
}
/// Four words of `p`.
__device__ __forceinline__ void poll_on(const void* p, uint4& v) {
  uint32_t n = 0;
  while (any_empty(v)) {
    pause(n);
    v = load_relaxed4(p);
  }
}
/// Eight words of `p`.
__device__ __forceinline__ void poll_on(const float* p, uint4& v, uint4& w) {
  uint32_t n = 0;
  while (any_empty(v) || any_empty(w)) {
    pause(n);
    v = load_relaxed4(p), w = load_relaxed4(p + 4);
  }
}
__device__ __forceinline__ float4 as_floats(uint4 v) {
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}
__device__ __forceinline__ uint4 as_words(float4 v) {
  return make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z), __float_as_uint(v.w));
}
/// Four floats, as soon as all are there.
__device__ __forceinline__ float4 poll4(const float* p) {
  uint4 v = load_relaxed4(p);
  poll_on(p, v);
  return as_floats(v);
}
__device__ __forceinline__ void poll_on(const void* p, uint32_t& v) {
  uint32_t n = 0;
  while (v == kEmpty) {
    pause(n);
    v = load_relaxed(p);
  }
}

/// The compiler may not make this sum part of a product: `a * b + 0` as one fma is -0.0 where a * b is negative and too
/// small for a float, and whoever waits for such a value waits for ever.
__device__ __forceinline__ void put_value(float* now, float v) {
  store_relaxed(now, __float_as_uint(__fadd_rn(v, 0.0f)));
}
/// Writes a value into the copy of this layer and empties its place in the other.
__device__ __forceinline__ void put(float* now, float* other, float v) {
  put_value(now, v);
  store_relaxed(other, kEmpty);
}
__device__ __forceinline__ void put_codes(uint8_t* now, uint8_t* other, uint32_t four) {
  store_relaxed(now, four);
  store_relaxed(other, kEmptyCodes);
}

}  // namespace infer::cuda
