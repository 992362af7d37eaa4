// The inner loop of decoding: rows of packed weights, chunk after chunk out of the ring, times up to four staged
// activation rows. A tile has 16 rows. Formats whose chunks hold 64 groups give each warp two rows and every other
// block of 32 groups, so that two rows share one load of the activations; the others give each warp one row. A lane
// takes one group: 32 weights of a row, two dp4a accumulators (the activations have a scale for each 16 values), one or
// two multiply-adds in float32 per accumulator. Sums of a warp go to shared memory; who finishes them is the epilogue's
// business. Bound by the memory behind the ring: 28 instructions per 32 weights of 4 bits and lane, 28 % of the issue
// slots of an H200 at full speed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/ring.cuh"
#include "kernels/cuda/unpack.cuh"

namespace infer::cuda {

/// One row of int8 activations in shared memory: codes 0-15 and 16-31 of each group of 32, the scales of the two
/// halves, and scale * sum of the codes of each half.
struct ActView {
  const uint8_t* base;
  int n_groups;
  __device__ __forceinline__ uint4 low(int g) const { return reinterpret_cast<const uint4*>(base)[g]; }
  __device__ __forceinline__ uint4 high(int g) const { return reinterpret_cast<const uint4*>(base)[n_groups + g]; }
  __device__ __forceinline__ float2 scale(int g) const {
    return reinterpret_cast<const float2*>(base + n_groups * 32)[g];
  }
  __device__ __forceinline__ float2 sum(int g) const {
    return reinterpret_cast<const float2*>(base + n_groups * 40)[g];
  }
};

/// What the dot products of a stage need to know, in shared memory of the CTA.
struct DotContext {
  const uint8_t* ring;
  RingBarriers* barriers;
  const uint8_t* act;
  float* partial;  ///< [kMaxSlots][2][rows][16]
  int n_slots, slot_bytes, act_row_bytes, n_rows;
};

template <class F>
inline constexpr int kRowsPerWarp = (F::block > 1 ? Packed<F>::chunk_groups == 64 : false) ? 2 : 1;
template <>
inline constexpr int kRowsPerWarp<F32> = 1;
template <>
inline constexpr int kRowsPerWarp<F16> = 1;
template <>
inline constexpr int kRowsPerWarp<BF16> = 1;

__device__ __forceinline__ int dot16(const uint32_t* q, uint4 a) {
  int sum = __dp4a(static_cast<int>(q[0]), static_cast<int>(a.x), 0);
  sum = __dp4a(static_cast<int>(q[1]), static_cast<int>(a.y), sum);
  sum = __dp4a(static_cast<int>(q[2]), static_cast<int>(a.z), sum);
  return __dp4a(static_cast<int>(q[3]), static_cast<int>(a.w), sum);
}

/// One chunk of quantised weights; first_group: of the row, of its group 0.
template <class F, int M>
__device__ __forceinline__ void dot_chunk(const uint8_t* chunk, Chunk<F> c, const DotContext& ctx, int n_groups,
                                          int first_group, int warp, int lane, float (&acc)[kRowsPerWarp<F>][M]) {
  constexpr int R = kRowsPerWarp<F>, kBias = Packed<F>::bias > 0 ? Packed<F>::bias : 0;
  const int first_row = R == 2 ? warp % 8 * 2 : warp, first_block = R == 2 ? warp / 8 : 0;
  for (int g = first_block * 32 + lane; g < c.groups; g += R * 32) {
    uint32_t q[R][8];
    GroupScales s[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      load_quads<F>(chunk, c, first_row + r, g, q[r]);
      s[r] = load_scales<F>(chunk, c, first_row + r, g);
#pragma unroll
      for (int h = 0; h < 2; ++h) s[r].offset[h] -= s[r].scale[h] * kBias;
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const ActView act{ctx.act + (m < ctx.n_rows ? m : 0) * ctx.act_row_bytes, n_groups};
      const uint4 low = act.low(first_group + g), high = act.high(first_group + g);
      const float2 scale = act.scale(first_group + g);
      const float2 sum = kNeedsSums<F> ? act.sum(first_group + g) : float2{};
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float a = scale.x * static_cast<float>(dot16(q[r], low));
        const float b = scale.y * static_cast<float>(dot16(q[r] + 4, high));
        if constexpr (kHalves<F> == 1) {
          acc[r][m] = fmaf(s[r].scale[0], a + b, acc[r][m]);
          if constexpr (kNeedsSums<F>) acc[r][m] = fmaf(s[r].offset[0], sum.x + sum.y, acc[r][m]);
        } else {
          acc[r][m] = fmaf(s[r].scale[0], a, fmaf(s[r].scale[1], b, acc[r][m]));
          if constexpr (kNeedsSums<F>)
            acc[r][m] = fmaf(s[r].offset[0], sum.x, fmaf(s[r].offset[1], sum.y, acc[r][m]));
        }
      }
    }
  }
}

template <class F>
__device__ __forceinline__ void widen(uint4 v, float (&out)[16 / sizeof(typename F::Block)]) {
  const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (F::id == DType::F32) {
      out[i] = __uint_as_float(w[i]);
    } else if constexpr (F::id == DType::BF16) {
      out[2 * i] = __uint_as_float(w[i] << 16), out[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    } else {
      const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&w[i]));
      out[2 * i] = two.x, out[2 * i + 1] = two.y;
    }
  }
}

/// One chunk of plain weights: `bytes` of each row; the activations are of the same type and padded with zeros.
template <class F, int M>
__device__ __forceinline__ void dot_plain(const uint8_t* chunk, int bytes, const uint8_t* act, const DotContext& ctx,
                                          int warp, int lane, float (&acc)[1][M]) {
  constexpr int n = 16 / sizeof(typename F::Block);
  for (int at = lane * 16; at < bytes; at += 512) {
    float w[n];
    widen<F>(*reinterpret_cast<const uint4*>(chunk + warp * bytes + at), w);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float a[n];
      widen<F>(*reinterpret_cast<const uint4*>(act + (m < ctx.n_rows ? m : 0) * ctx.act_row_bytes + at), a);
#pragma unroll
      for (int i = 0; i < n; ++i) acc[0][m] = fmaf(w[i], a[i], acc[0][m]);
    }
  }
}

/// A whole tile: waits for its chunks, leaves the sums in partial[slot]. Returns the place after it.
template <class F, int M>
__device__ __noinline__ RingPlace dot_tile(const DotContext& ctx, const MatrixArg& w, RingPlace place, int slot,
                                           int rows) {
  constexpr int R = kRowsPerWarp<F>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_groups = w.cols / kGroup;
  float acc[R][M] = {};
  for (int i = 0; i < w.n_chunks; ++i) {
    const uint8_t* chunk = ctx.ring + place.slot * ctx.slot_bytes;
    barrier_wait(&ctx.barriers->full[place.slot], place.phase);
    if constexpr (F::block > 1) {
      constexpr int kChunk = Packed<F>::chunk_groups;
      const int left = n_groups - i * kChunk;
      dot_chunk<F, M>(chunk, {left < kChunk ? left : kChunk}, ctx, n_groups, i * kChunk, warp, lane, acc);
    } else {
      const int bytes = i + 1 < w.n_chunks ? w.chunk_bytes : w.last_bytes;
      if (warp < rows) dot_plain<F, M>(chunk, bytes, ctx.act + i * w.chunk_bytes, ctx, warp, lane, acc);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&ctx.barriers->empty[place.slot]);
    place.advance(ctx.n_slots);
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float v = acc[r][m];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
      const int row = R == 2 ? warp % 8 * 2 + r : warp, half = R == 2 ? warp / 8 : 0;
      if (lane == 0) ctx.partial[((slot * 2 + half) * M + m) * 16 + row] = v;
      if (R == 1 && lane == 1) ctx.partial[((slot * 2 + 1) * M + m) * 16 + row] = 0;
    }
  return place;
}

}  // namespace infer::cuda
