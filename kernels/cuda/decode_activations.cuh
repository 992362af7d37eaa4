// Activations in shared memory in the forms that weights want, and waiting for what other CTAs send.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/decode_dot.cuh"
#include "kernels/cuda/exchange.cuh"
#include "kernels/cuda/int8_codes.cuh"

namespace infer::cuda {

/// All consumer threads of the CTA.
__device__ __forceinline__ void consumer_sync() { asm volatile("bar.sync 2, %0;" ::"n"(kConsumers) : "memory"); }

/// The sum over the warps of what each left in `of_warps`, f32 [kWarps] at a multiple of 16 bytes.
__device__ __forceinline__ float total(const float* of_warps) {
  float4 sums[kWarps / 4];
#pragma unroll
  for (int i = 0; i < kWarps / 4; ++i) sums[i] = reinterpret_cast<const float4*>(of_warps)[i];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps / 4; ++i) sum += (sums[i].x + sums[i].y) + (sums[i].z + sums[i].w);
  return sum;
}

/// Quantises the 16 values of two neighbouring lanes (i: index of this lane's first, a multiple of 8) into an int8
/// activation row. A group that holds a NaN or an infinity gets a scale that is one.
__device__ __forceinline__ void put_int8(uint8_t* row, int n_groups, int i, float4 a, float4 b, bool valid) {
  float largest = max_nan(max_nan(max_nan(fabsf(a.x), fabsf(a.y)), max_nan(fabsf(a.z), fabsf(a.w))),
                          max_nan(max_nan(fabsf(b.x), fabsf(b.y)), max_nan(fabsf(b.z), fabsf(b.w))));
  largest = max_nan(largest, __shfl_xor_sync(~0u, largest, 1));
  const float inverse = largest > 1e-30f ? __fdividef(127.0f, largest) : 0.0f;
  const uint32_t low = four_codes(a, inverse), high = four_codes(b, inverse);
  constexpr int kOnes = 0x01010101;
  int sum = __dp4a(static_cast<int>(low), kOnes, __dp4a(static_cast<int>(high), kOnes, 0));
  sum += __shfl_xor_sync(~0u, sum, 1);
  if (!valid) return;
  const auto at = static_cast<unsigned>(i);  // divided without a thought for its sign
  const int group = static_cast<int>(at / 32), half = static_cast<int>(at / 16 % 2),
            eight = static_cast<int>(at / 8 % 2);
  reinterpret_cast<uint2*>(row)[(half * n_groups + group) * 2 + eight] = make_uint2(low, high);
  if (at % 16 == 0) {
    const float scale = largest <= 1e-30f ? 0.0f : largest * (1.0f / 127.0f);  // NaN stays NaN
    reinterpret_cast<float*>(row + n_groups * 32)[2 * group + half] = scale;
    reinterpret_cast<float*>(row + n_groups * 40)[2 * group + half] = scale * static_cast<float>(sum);
  }
}

__device__ __forceinline__ float clamp_half(float v) { return v > 65504.0f ? 65504.0f : v < -65504.0f ? -65504.0f : v; }

/// Four values into a row of 16- or 32-bit activations.
__device__ __forceinline__ void put_wide(ActForm form, uint8_t* row, int i, float4 v) {
  if (form == ActForm::f32) {
    reinterpret_cast<float4*>(row)[i / 4] = v;
  } else if (form == ActForm::bf16) {
    const uint32_t a = f32_to_bf16(v.x) | static_cast<uint32_t>(f32_to_bf16(v.y)) << 16;
    const uint32_t b = f32_to_bf16(v.z) | static_cast<uint32_t>(f32_to_bf16(v.w)) << 16;
    reinterpret_cast<uint2*>(row)[i / 4] = make_uint2(a, b);
  } else {
    const uint32_t a = f32_to_f16(clamp_half(v.x)) | static_cast<uint32_t>(f32_to_f16(clamp_half(v.y))) << 16;
    const uint32_t b = f32_to_f16(clamp_half(v.z)) | static_cast<uint32_t>(f32_to_f16(clamp_half(v.w))) << 16;
    reinterpret_cast<uint2*>(row)[i / 4] = make_uint2(a, b);
  }
}

/// Zeros behind a row that is no multiple of 32 (int8) or 16 bytes.
__device__ inline void pad_row(ActForm form, uint8_t* row, int cols) {
  const int t = threadIdx.x;
  if (form == ActForm::int8 && cols % 32 == 16 && t == 0) {
    const int n_groups = (cols + 31) / 32, g = n_groups - 1;
    reinterpret_cast<uint4*>(row)[n_groups + g] = uint4{};
    reinterpret_cast<float*>(row + n_groups * 32)[2 * g + 1] = 0;
    reinterpret_cast<float*>(row + n_groups * 40)[2 * g + 1] = 0;
  }
}

/// Row m of a matrix. Of several rows it is worked out each time: kept over a wait for values, four of them end up in
/// local memory.
template <int M, class T>
__device__ __forceinline__ T* row_of(T* first, int m, int width) {
  if (M <= 2) return first + m * width;
  int at = m * width;
  asm volatile("" : "+r"(at));
  return first + at;
}

/// Numbers the threads so that the first ones are not those that have just finished sums and come last.
__device__ __forceinline__ int helper_thread() { return this_thread() ^ kConsumers / 2; }

/// One warp waits for the end of the vector, so that 512 threads do not poll while others still compute. Where the wait
/// is short that costs a trip to the L2 more than it saves.
__device__ __forceinline__ void scout(const float* row, int width) {
  if (const int t = helper_thread(); t < 32) {
    const int i = width - 4 * (t + 1);
    if (i >= 0) poll4(row + i);
  }
  consumer_sync();
}

/// Eight words from `first` on of each of the first n_rows rows, where this lane is `valid`; zeros elsewhere.
template <int M>
__device__ __forceinline__ void load_rows(const float* first, int width, int n_rows, bool valid, uint4 (&v)[M],
                                          uint4 (&w)[M]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
    if (valid && m < n_rows)
      v[m] = load_relaxed4(row_of<M>(first, m, width)), w[m] = load_relaxed4(row_of<M>(first, m, width) + 4);
}

/// Goes on until none of them is empty. Of several rows all are asked for again together, since one after the other
/// each would be a trip to the L2. By whole warps, whose lanes stay together: after a loop that each leaves when its
/// own words are there, what comes next would be done two or three times.
template <int M>
__device__ __forceinline__ void poll_rows(const float* first, int width, int n_rows, bool valid, uint4 (&v)[M],
                                          uint4 (&w)[M]) {
  if constexpr (M == 1) {
    if (valid) poll_on(first, v[0], w[0]);
    return __syncwarp();
  }
  uint32_t n = 0;
  while (true) {
    bool empty = false;
#pragma unroll
    for (int m = 0; m < M; ++m) empty = empty || any_empty(v[m]) || any_empty(w[m]);
    if (!__any_sync(~0u, empty)) return;
    pause(n);
    load_rows<M>(first, width, n_rows, empty, v, w);
  }
}

/// Says that results are near: those of part `part` of attention, or of CTA `part` in gate and up. By one thread, when
/// nothing but sums of this CTA's warps is missing.
__device__ __forceinline__ void announce(int part) {
  if (threadIdx.x != 0) return;
  const DecodeStage& s = current_stage();
  put(s.soon + part, s.soon_other + part, 1);
}

/// The same where results are announced: until all are near, which `known` says without a look. Then all threads ask
/// for them, and no trip to the L2 lies between the results and those who want them.
__device__ __forceinline__ void scout_soon(const DecodeStage& s, bool known) {
  for (int i = helper_thread(); i < s.n_soon && !known; i += kConsumers) {
    uint32_t word = load_relaxed(s.soon + i);
    poll_on(s.soon + i, word);
  }
  consumer_sync();
}

/// Before results of attention. Where parts of it are split, all CTAs are done at about the same time.
__device__ __forceinline__ void scout_attention(const DecodeStage& s, const float* row, int width) {
  if (s.n_soon == 0 || decode_context().single || this_walk().meets) return scout(row, width);
  scout_soon(s, this_walk().attended);
}

}  // namespace infer::cuda
