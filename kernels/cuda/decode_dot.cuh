// The inner loop of decoding: rows of packed weights, chunk after chunk out of the ring, times up to four staged
// activation rows. A tile has 16 rows. Two teams of eight warps take the chunks in turn; of its chunk a warp takes 32
// groups (one to a lane) of four rows where chunks hold 64 groups, else of two rows, so that rows share the loads of
// the activations: shared memory is what this loop runs out of first. A lane takes 32 weights of each row: two dp4a
// accumulators (the activations have a scale for each 16 values) and a few multiply-adds in float32. Sums of a warp go
// to shared memory; who finishes them is the epilogue's business.
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
  RingBarriers* barriers;
  int act, partial;  ///< offsets into decode_memory: activation rows; sums, f32 [kMaxSlots][kSums][rows][16]
  int n_slots, slot_bytes, act_row_bytes, n_rows;

  __device__ __forceinline__ uint8_t* act_row(int m) const { return decode_memory + act + m * act_row_bytes; }
  __device__ __forceinline__ float* sums() const { return reinterpret_cast<float*>(decode_memory + partial); }
};

template <class F>
constexpr int rows_per_warp() {
  if constexpr (F::block > 1) {
    return Packed<F>::chunk_groups == 64 ? 4 : 2;
  } else {
    return 2;
  }
}
template <class F>
inline constexpr int kRowsPerWarp = rows_per_warp<F>();

/// Sum of sixteen products of stored codes (unsigned where kUnsigned) and signed activations.
template <bool kUnsigned>
__device__ __forceinline__ float dot16(const uint32_t* q, uint4 a) {
  const uint32_t w[4] = {a.x, a.y, a.z, a.w};
  int sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kUnsigned) {
      asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(q[i]), "r"(w[i]));
    } else {
      sum = __dp4a(static_cast<int>(q[i]), static_cast<int>(w[i]), sum);
    }
  }
  return static_cast<float>(sum);
}

/// Formats of 4 bits and no table keep the codes of weights 16-31 in the upper halves of their bytes, times 16: what
/// masks them needs no shift, and the scale takes the 16 back.
template <class F>
inline constexpr bool kUpperHalves = Packed<F>::low_bits == 4 && Packed<F>::high_bits == 0 && Packed<F>::bias != kTable;

template <class F>
__device__ __forceinline__ void load_dot_quads(const uint8_t* chunk, Chunk<F> c, int row, int g, uint32_t (&q)[8]) {
  if constexpr (kUpperHalves<F>) {
    const uint4 v = *reinterpret_cast<const uint4*>(chunk + c.low(row, g));
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) q[i] = w[i] & 0x0f0f0f0fu, q[i + 4] = w[i] & 0xf0f0f0f0u;
  } else {
    load_quads<F>(chunk, c, row, g, q);
  }
}

/// 32 groups of a chunk, one to a lane: `g` is this lane's; first_group: of the row, of the chunk's group 0.
template <class F, int M>
__device__ __forceinline__ void dot_groups(const uint8_t* chunk, Chunk<F> c, const DotContext& ctx, int n_groups,
                                           int first_group, int first_row, int g, float (&acc)[kRowsPerWarp<F>][M]) {
  constexpr int R = kRowsPerWarp<F>;
  constexpr float kBias = Packed<F>::bias > 0 ? Packed<F>::bias : 0;
  uint32_t q[R][8];
  GroupScales s[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    load_dot_quads<F>(chunk, c, first_row + r, g, q[r]);
    s[r] = load_scales<F>(chunk, c, first_row + r, g);
  }
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const ActView act{ctx.act_row(m < ctx.n_rows ? m : 0), n_groups};
    const uint4 low = act.low(first_group + g), high = act.high(first_group + g);
    float2 scale = act.scale(first_group + g);
    if constexpr (kUpperHalves<F>) scale.y *= 0.0625f;
    const float2 sum = kNeedsSums<F> ? act.sum(first_group + g) : float2{};
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float a = scale.x * dot16<kUpperHalves<F>>(q[r], low);
      if constexpr (kHalves<F> == 1) {
        float both = fmaf(scale.y, dot16<kUpperHalves<F>>(q[r] + 4, high), a);
        if constexpr (kBias > 0) both = fmaf(-kBias, sum.x + sum.y, both);
        acc[r][m] = fmaf(s[r].scale[0], both, acc[r][m]);
        if constexpr (F::has_offset) acc[r][m] = fmaf(s[r].offset[0], sum.x + sum.y, acc[r][m]);
      } else {
        float x = a, y = scale.y * dot16<kUpperHalves<F>>(q[r] + 4, high);
        if constexpr (kBias > 0) x = fmaf(-kBias, sum.x, x), y = fmaf(-kBias, sum.y, y);
        acc[r][m] = fmaf(s[r].scale[0], x, fmaf(s[r].scale[1], y, acc[r][m]));
        if constexpr (F::has_offset) acc[r][m] = fmaf(s[r].offset[0], sum.x, fmaf(s[r].offset[1], sum.y, acc[r][m]));
      }
    }
  }
}

/// One chunk of quantised weights. A whole one has offsets that are constants.
template <class F, int M>
__device__ __forceinline__ void dot_chunk(const uint8_t* chunk, int groups, const DotContext& ctx, int n_groups,
                                          int first_group, int first_row, int g, float (&acc)[kRowsPerWarp<F>][M]) {
  constexpr int kChunk = Packed<F>::chunk_groups;
  if (groups == kChunk) {
    dot_groups<F, M>(chunk, Chunk<F>{kChunk}, ctx, n_groups, first_group, first_row, g, acc);
  } else if (g < groups) {
    dot_groups<F, M>(chunk, Chunk<F>{groups}, ctx, n_groups, first_group, first_row, g, acc);
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
__device__ __forceinline__ void dot_plain(const uint8_t* chunk, int bytes, int first_byte, const DotContext& ctx,
                                          int first_row, int rows, int lane, float (&acc)[kRowsPerWarp<F>][M]) {
  constexpr int n = 16 / sizeof(typename F::Block), R = kRowsPerWarp<F>;
  if (first_row >= rows) return;
  for (int at = lane * 16; at < bytes; at += 512) {
    float w[R][n];
#pragma unroll
    for (int r = 0; r < R; ++r)  // a row beyond the last reads what lies there and is dropped by the epilogue
      widen<F>(*reinterpret_cast<const uint4*>(chunk + (first_row + r) * bytes + at), w[r]);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float a[n];
      widen<F>(*reinterpret_cast<const uint4*>(ctx.act_row(m < ctx.n_rows ? m : 0) + first_byte + at), a);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int i = 0; i < n; ++i) acc[r][m] = fmaf(w[r][i], a[i], acc[r][m]);
    }
  }
}

/// A whole tile: waits for its chunks, leaves the sums in the slot. Returns the place after it.
template <class F, int M>
__device__ __noinline__ RingPlace dot_tile(const DotContext& shared_context, const MatrixArg& w, RingPlace place,
                                           int slot, int rows) {
  constexpr int R = kRowsPerWarp<F>;
  const DotContext ctx = shared_context;  // into registers: what waits for a barrier reads shared memory anew
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kTeamWarps, n_groups = w.cols / kGroup;
  const uint32_t team = threadIdx.x / 32 / kTeamWarps;
  const int n_chunks = w.n_chunks, chunk_bytes = w.chunk_bytes, last_bytes = w.last_bytes;
  const int first_row = warp % (kTileRows / R) * R, half = warp / (kTileRows / R);
  float acc[R][M] = {};
  for (int i = 0; i < n_chunks; ++i) {
    if (place.team == team) {
      const uint8_t* chunk = decode_memory + place.slot * ctx.slot_bytes;
      barrier_wait(&ctx.barriers->full[place.slot], place.phase);
      if constexpr (F::block > 1) {
        constexpr int kChunk = Packed<F>::chunk_groups;
        const int left = n_groups - i * kChunk;
        dot_chunk<F, M>(chunk, left < kChunk ? left : kChunk, ctx, n_groups, i * kChunk, first_row, half * 32 + lane,
                        acc);
      } else {
        dot_plain<F, M>(chunk, i + 1 < n_chunks ? chunk_bytes : last_bytes, i * chunk_bytes, ctx, first_row, rows, lane,
                        acc);
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(&ctx.barriers->empty[place.slot]);
    }
    place.advance(ctx.n_slots);
  }
  float* sums = ctx.sums() + (slot * kSums + team + 2 * half) * M * 16;
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float v = acc[r][m];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
      if (lane == 0) sums[m * 16 + first_row + r] = v;
    }
  return place;
}

}  // namespace infer::cuda
