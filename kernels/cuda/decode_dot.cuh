// The inner loop of decoding: rows of packed weights, chunk after chunk out of the ring, times up to four staged
// activation rows. A tile has 16 rows. Two teams of eight warps take the chunks in turn. Of a chunk of quantised
// weights a warp takes an eighth of the columns of all rows (decode_mma.cuh), of plain ones two rows, which share the
// loads of the activations: shared memory is what that loop runs out of first. Sums of a warp go to shared memory; who
// finishes them is the epilogue's business.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/decode_mma.cuh"

namespace infer::cuda {

/// What the dot products of a stage need to know, in shared memory of the CTA.
struct DotContext {
  RingBarriers* barriers;
  int act, partial;  ///< offsets into decode_memory: activation rows; sums, f32 [kept_tiles][kWarps][rows][16]
  int n_slots, slot_bytes, act_row_bytes, n_rows;

  __device__ __forceinline__ uint8_t* act_row(int m) const { return decode_memory + act + m * act_row_bytes; }
  __device__ __forceinline__ float* sums() const { return reinterpret_cast<float*>(decode_memory + partial); }
};

inline constexpr int kPlainRows = kTileRows / kTeamWarps;  ///< of a warp, which share the loads of the activations

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
                                          int first_row, int rows, int lane, float (&acc)[kPlainRows][M]) {
  constexpr int n = 16 / sizeof(typename F::Block), R = kPlainRows;
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

/// A whole tile: waits for its chunks, leaves the sums in the slot. Returns the place after it. kWhole: all chunks of
/// quantised weights have all their groups.
template <class F, int M, bool kWhole>
__device__ __noinline__ RingPlace dot_tile(const DotContext& shared_context, const MatrixArg& w, RingPlace place,
                                           int slot, int rows) {
  const DotContext ctx = shared_context;  // into registers: what waits for a barrier reads shared memory anew
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kTeamWarps;
  const uint32_t team = threadIdx.x / 32 / kTeamWarps;
  const int n_chunks = w.n_chunks;
  const auto for_chunks = [&](const auto& dot) {
    for (int i = 0; i < n_chunks; ++i) {
      if (place.team == team) {
        const uint8_t* chunk = decode_memory + place.slot * ctx.slot_bytes;
        barrier_wait(&ctx.barriers->full[place.slot], place.phase);
        dot(chunk, i);
        __syncwarp();
        if (lane == 0) barrier_arrive(&ctx.barriers->empty[place.slot]);
      }
      place.advance(ctx.n_slots);
    }
  };
  float* sums = ctx.sums() + slot * kWarps * M * kTileRows;
  if constexpr (F::block > 1) {
    constexpr int kChunk = Packed<F>::chunk_groups;
    const int n_groups = w.cols / kGroup, g = warp * kStepGroups<F>;
    int act_rows[M];
#pragma unroll
    for (int m = 0; m < M; ++m) act_rows[m] = ctx.act + (m < ctx.n_rows ? m : 0) * ctx.act_row_bytes;
    MmaState<F, M> state;
    for_chunks([&](const uint8_t* chunk, int i) {
      const int left = kWhole ? kChunk : min(kChunk, n_groups - i * kChunk);
      if (kWhole || g < left) mma_step<F, M, kWhole>(chunk, Chunk<F>{left}, act_rows, n_groups, i * kChunk, g, state);
    });
    store_sums(state, sums + (threadIdx.x / 32) * M * kTileRows);
  } else {
    const int chunk_bytes = w.chunk_bytes, last_bytes = w.last_bytes, first_row = warp * kPlainRows;
    float acc[kPlainRows][M] = {};
    for_chunks([&](const uint8_t* chunk, int i) {
      dot_plain<F, M>(chunk, i + 1 < n_chunks ? chunk_bytes : last_bytes, i * chunk_bytes, ctx, first_row, rows, lane,
                      acc);
    });
#pragma unroll
    for (int r = 0; r < kPlainRows; ++r)
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const float v = warp_sum(acc[r][m]);
        if (lane == 0) sums[team * M * kTileRows + m * kTileRows + first_row + r] = v;
      }
  }
  return place;
}

}  // namespace infer::cuda
