// The inner loop of decoding: rows of packed weights, chunk after chunk out of the ring, times up to four staged
// activation rows. A tile has 16 rows. Two teams of eight warps take the chunks in turn. Of a chunk of quantised
// weights a warp takes an eighth of the columns of all rows (decode_mma.cuh), of plain ones two rows, which share the
// loads of the activations: shared memory is what that loop runs out of first. Sums of a warp go to shared memory; who
// finishes them is the epilogue's business.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/decode_context.cuh"
#include "kernels/cuda/decode_mma.cuh"

namespace infer::cuda {

template <int M>
inline constexpr int kPlainRows = kTileRows / team_warps(M);  ///< of a warp, which share the loads of the activations

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
__device__ __forceinline__ void dot_plain(const uint8_t* chunk, int bytes, int first_byte, int act, int act_row_bytes,
                                          int n_rows, int first_row, int rows, int lane,
                                          float (&acc)[kPlainRows<M>][M]) {
  constexpr int n = 16 / sizeof(typename F::Block), R = kPlainRows<M>;
  if (first_row >= rows) return;
  for (int at = lane * 16; at < bytes; at += 512) {
    float w[R][n];
#pragma unroll
    for (int r = 0; r < R; ++r)  // a row beyond the last reads what lies there and is dropped by the epilogue
      widen<F>(*reinterpret_cast<const uint4*>(chunk + (first_row + r) * bytes + at), w[r]);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float a[n];
      widen<F>(
          *reinterpret_cast<const uint4*>(decode_memory + act + (m < n_rows ? m : 0) * act_row_bytes + first_byte + at),
          a);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int i = 0; i < n; ++i) acc[r][m] = fmaf(w[r][i], a[i], acc[r][m]);
    }
  }
}

/// The matrix that a tile is of; a unit's index becomes that of the tile.
__device__ __forceinline__ int tile_matrix(const DecodeStage& s, int part, int& tile) {
  if (s.n_parts > 1) return part;
  int matrix = 0;
  while (tile >= s.w[matrix].n_tiles) tile -= s.w[matrix++].n_tiles;
  return matrix;
}

/// This team's chunks of one tile: dot(chunk in shared memory, its number).
template <int M, class Dot>
__device__ __forceinline__ void for_chunks(int n_chunks, int n_slots, int slot_bytes, RingPlace& place,
                                           const Dot& dot) {
  const int lane = threadIdx.x % 32;
  int i = place.skip;
  place.skip = (place.skip - n_chunks) & (n_teams(M) - 1);
  for (; i < n_chunks; i += n_teams(M)) {
    barrier_wait(&decode_barriers.full[place.slot], place.phase);
    dot(decode_memory + place.slot * slot_bytes, i);
    __syncwarp();
    if (lane == 0) barrier_arrive(&decode_barriers.empty[place.slot]);
    place.advance(n_slots, n_teams(M));
  }
}

/// How many partial sums a row of a tile has: where a team takes its first chunk is where its sums go.
template <int M>
__device__ __forceinline__ int n_sums(const MatrixArg& w) {
  return min(w.n_chunks, n_teams(M)) * (w.is_plain ? 1 : team_warps(M));
}

/// Tiles of the CTA, one after the other, as long as their weights are of format F, there are any, and sums can be
/// kept. kWhole: all chunks of quantised weights have all their groups.
template <class F, int M, bool kWhole>
__device__ __noinline__ void dot_tiles() {
  const DecodeStage& s = current_stage();
  DecodeContext& ctx = decode_context;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % team_warps(M);
  const int n_slots = ctx.n_slots, slot_bytes = ctx.slot_bytes, act = ctx.act, act_row_bytes = ctx.act_row_bytes;
  const int n_rows = ctx.n_rows, n_parts = s.n_parts, n_units = s.n_units;
  WarpWalk& mine = ctx.walk[threadIdx.x / 32];
  RingPlace place = mine.place;
  TileWalk walk = mine.tiles;
  float* sums = ctx.sums() + walk.kept * kWarps * M * kTileRows;
  int tile = walk.unit, matrix = tile_matrix(s, walk.part, tile);
  const int n_chunks = s.w[matrix].n_chunks;
  const auto next_tile = [&] {
    sums += kWarps * M * kTileRows, ++walk.kept;
    if (++walk.part == n_parts) walk.part = 0, walk.unit += static_cast<int>(gridDim.x);
    if (walk.unit >= n_units || walk.kept + (walk.part == 0 ? n_parts : 0) > kept_tiles(M)) return false;
    tile = walk.unit, matrix = tile_matrix(s, walk.part, tile);
    return s.w[matrix].dtype == static_cast<int32_t>(F::id);
  };
  if constexpr (F::block > 1) {
    constexpr int kChunk = Packed<F>::chunk_groups, kMine = kWarpGroups<F, M>, kStep = kStepGroups<F, M>;
    const int n_groups = s.cols / kGroup;
    int act_rows[M];
#pragma unroll
    for (int m = 0; m < M; ++m) act_rows[m] = act + (m < n_rows ? m : 0) * act_row_bytes;
    MmaState<F, M> state;
    do {
      const int skip = place.skip;
#pragma unroll
      for (int m = 0; m < M; ++m) state.acc[0][m] = state.acc[1][m] = 0;
      for_chunks<M>(n_chunks, n_slots, slot_bytes, place, [&](const uint8_t* chunk, int i) {
        const int left = kWhole ? kChunk : min(kChunk, n_groups - i * kChunk);
#pragma unroll 1
        for (int g = warp * kMine; g < warp * kMine + kMine && (kWhole || g < left); g += kStep)
          mma_step<F, M, kWhole>(chunk, Chunk<F>{left}, act_rows, n_groups, i * kChunk, g, state);
      });
      if (skip < n_chunks) store_sums(state, sums + (skip * team_warps(M) + warp) * M * kTileRows);
    } while (next_tile());
  } else {
    constexpr int kRows = kPlainRows<M>;
    const int chunk_bytes = s.w[matrix].chunk_bytes, last_bytes = s.w[matrix].last_bytes, first_row = warp * kRows;
    do {
      const int rows = min(kTileRows, s.w[matrix].rows - tile * kTileRows), skip = place.skip;
      float acc[kRows][M] = {};
      for_chunks<M>(n_chunks, n_slots, slot_bytes, place, [&](const uint8_t* chunk, int i) {
        dot_plain<F, M>(chunk, i + 1 < n_chunks ? chunk_bytes : last_bytes, i * chunk_bytes, act, act_row_bytes, n_rows,
                        first_row, rows, lane, acc);
      });
      if (skip >= n_chunks) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int m = 0; m < M; ++m) {
          const float v = warp_sum(acc[r][m]);
          if (lane == 0) sums[(skip * M + m) * kTileRows + first_row + r] = v;
        }
    } while (next_tile());
  }
  __syncwarp();
  if (lane == 0) mine.place = place, mine.tiles = walk;
  __syncwarp();
}

}  // namespace infer::cuda
