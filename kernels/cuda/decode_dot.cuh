// The inner loop of decoding: rows of packed weights, chunk after chunk out of the ring, times up to four staged
// activation rows. A tile has 16 rows. Teams of warps take the chunks in turn. Of a chunk of quantised weights, some
// columns of all 16 rows, each warp takes a share of the columns (decode_mma.cuh); of plain ones, a few rows at full
// length or long pieces of them, a pair of rows or a share of it. Sums of a warp go to shared memory; who finishes them
// is the epilogue's business.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/decode_context.cuh"
#include "kernels/cuda/decode_f16.cuh"
#include "kernels/cuda/decode_mma.cuh"
#include "kernels/cuda/decode_tokens.cuh"

namespace infer::cuda {

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

/// Of a chunk of plain weights a warp takes all rows, which share the loads of the activations, and a share of the
/// columns.
template <int M>
struct PlainShare {
  static constexpr int kRows = plain_rows(M), kShares = team_warps(M);
};

/// The bytes [begin, end) of a group of rows, `row_bytes` apart. The activations are of the same type and begin at
/// `act` with the chunk's first column. A row beyond the matrix reads what lies there and is dropped by the epilogue.
template <class F, int M, int R>
__device__ __forceinline__ void dot_plain(const uint8_t* rows, int row_bytes, int begin, int end, int act,
                                          int act_row_bytes, int n_rows, int lane, float (&acc)[R][M]) {
  constexpr int n = 16 / sizeof(typename F::Block);
  for (int at = begin + lane * 16; at < end; at += 512) {
    float w[R][n];
#pragma unroll
    for (int r = 0; r < R; ++r) widen<F>(*reinterpret_cast<const uint4*>(rows + r * row_bytes + at), w[r]);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float a[n];
      widen<F>(*reinterpret_cast<const uint4*>(decode_memory() + act + (m < n_rows ? m : 0) * act_row_bytes + at), a);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int i = 0; i < n; ++i) acc[r][m] = fmaf(w[r][i], a[i], acc[r][m]);
    }
  }
}

/// The same of 16-bit types for several tokens, on tensor cores: tokens are rows of the left operand, the chunk's eight
/// rows columns of the right one. Lane 4r + j holds 16 bytes of row r, eight columns for two instructions; what k means
/// is free. acc: token r, rows 2j and 2j + 1 (the rest are tokens that there are not).
template <class F>
__device__ __forceinline__ void mma_plain(const uint8_t* rows, int row_bytes, int begin, int end, int act,
                                          int act_row_bytes, int n_rows, int lane, float (&acc)[4]) {
  using Type = std::conditional_t<F::id == DType::F16, HalfType, Bf16Type>;
  const int r = lane / 4;
  rows += r * row_bytes, act += r * act_row_bytes;
  for (; begin < end; begin += 64) {
    const int at = begin + lane % 4 * 16;
    uint4 w{}, a{};
    if (at < end) w = *reinterpret_cast<const uint4*>(rows + at);
    if (at < end && r < n_rows) a = *reinterpret_cast<const uint4*>(decode_memory() + act + at);
    Type::mma(acc, a.x, 0, a.y, 0, w.x, w.y);
    Type::mma(acc, a.z, 0, a.w, 0, w.z, w.w);
  }
}

/// This team's chunks of one tile: dot(chunk in shared memory, its number).
template <int M, class Dot>
__device__ __forceinline__ void for_chunks(int n_chunks, int n_slots, int slot_bytes, RingPlace& place,
                                           const Dot& dot) {
  const int lane = threadIdx.x % 32;
  int i = place.skip;
  place.skip = (place.skip - n_chunks) & (n_teams(M) - 1);
  for (; i < n_chunks; i += n_teams(M)) {
    barrier_wait(&decode_barriers().full[place.slot], place.phase);
    dot(decode_memory() + place.slot * slot_bytes, i);
    __syncwarp();
    if (lane == 0) barrier_arrive(&decode_barriers().empty[place.slot]);
    place.advance(n_slots, n_teams(M));
  }
}

/// Which partial sums a row of a tile has. Of quantised weights: of all warps of the teams that had a chunk; where a
/// team takes its first chunk is where its sums go. Of plain ones: of the warps that share the row.
struct SumsOfRow {
  int first, n;
};
template <int M>
__device__ __forceinline__ SumsOfRow sums_of_row(const MatrixArg& w, int row) {
  using Share = PlainShare<M>;
  return w.is_plain ? SumsOfRow{row / Share::kRows * Share::kShares, Share::kShares}
                    : SumsOfRow{0, min(w.n_chunks, n_teams(M)) * team_warps(M)};
}

/// By one lane of each warp: the run that begins with the tile at hand, as far as sums can be kept, and what comes
/// after it.
template <int M>
__device__ __forceinline__ void find_run(const DecodeStage& s, WarpWalk& walk) {
  TileWalk at = walk.tiles;
  const DecodeContext& ctx = decode_context();
  const int most = kept_tiles(M, s.n_parts), room = most - at.kept, grid = grid_size();
  int matrix = at.part, n_tiles = 1, end = s.n_units;
  if (s.n_parts == 1) {
    for (matrix = 0; at.unit >= s.w[matrix].end;) ++matrix;
    end = s.w[matrix].run_end;
  }
  const auto to_share = static_cast<unsigned>(end - at.unit + grid - 1);
  const int n_units = static_cast<int>(grid == 1 ? to_share : __umulhi(to_share, ctx.per_grid));
  if (s.n_parts == 1) {
    n_tiles = min(n_units, room);
    at.unit += n_tiles * grid;
  } else {
    if (s.w[0].kernel == s.w[1].kernel) n_tiles = min(2 * n_units, room / 2 * 2);
    at.part += n_tiles;
    at.unit += at.part / 2 * grid, at.part %= 2;
  }
  walk.run = {n_tiles, matrix, s.w[matrix].kernel, at.kept, s.input == StageInput::hidden ? 2 : 1};
  at.kept += n_tiles;
  const bool fits = at.kept + (at.part == 0 ? s.n_parts : 0) <= most;
  walk.after = at.unit >= s.n_units ? AfterRun::finish : fits ? AfterRun::run : AfterRun::finish_some;
  walk.tiles = at;
}

/// By one lane of each warp: where the product of this stage begins.
template <int M>
static __device__ __noinline__ void begin_product(int which) {
  const DecodeStage& s = decode_stages()[which];
  WarpWalk& walk = this_walk();
  int first = static_cast<int>(blockIdx.x) - s.first_cta;
  if (first < 0) first += grid_size();
  walk.tiles = {first, 0, 0, first};
  walk.run.n_tiles = 0;
  if (first < s.n_units) find_run<M>(s, walk);
}

/// Where this warp's walk lies, and what comes after a run.
struct RunEnd {
  uint32_t walk;
  AfterRun after;
};

/// A run of tiles of format F whose sums go to the places `kept` and on. Every team walks over its own chunks only:
/// what a warp does for each tile is done four times for each scheduler of the SM, and once cost as much as a third of
/// the products. kWhole: all chunks of quantised weights have all their groups. kScales: see TokenActs.
template <class F, int M, bool kWhole, int kScales = 1>
__device__ __noinline__ RunEnd dot_tiles(uint32_t walk_address, int n_tiles, int matrix, int kept) {
  constexpr int kTeams = n_teams(M), kTeamWarps = team_warps(M);
  const DecodeStage& s = decode_stages()[walk_at(walk_address).which];
  DecodeContext& ctx = decode_context();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kTeamWarps;
  const int n_slots = ctx.n_slots, slot_bytes = ctx.slot_bytes, act = ctx.act, act_row_bytes = ctx.act_row_bytes;
  const int n_rows = ctx.n_rows, n_chunks = s.w[matrix].n_chunks;
  RingPlace place = walk_at(walk_address).place;
  float* sums = ctx.sums<M>(kept);
  int i = place.skip, left = n_tiles * n_chunks - place.skip;  // number in its tile; chunks from there to the end
  // Calls dot(chunk in shared memory, its number in the tile) for this team's chunks, and flush(sums, which part of
  // them) where a tile ends.
  const auto for_run = [&](const auto& dot, const auto& flush) {
    const uint32_t barriers = kept_in_register(shared_address(&decode_barriers()));
    while (left > 0) {
      for (; i >= n_chunks; i -= n_chunks) sums -= kWarps * M * kTileRows;
      const uint32_t full = barriers + place.slot * 8, empty = full + kMaxSlots * 8;
      barrier_wait(full, place.phase);
      dot(decode_memory() + place.slot * slot_bytes, i);
      __syncwarp();
      if (lane == 0) barrier_arrive(empty);
      place.advance(n_slots, kTeams);
      const int part = i % kTeams;
      i += kTeams, left -= kTeams;
      if (i >= n_chunks) flush(part);
    }
  };
  if constexpr (meets_f16(F::id)) {
    constexpr int kChunk = Packed<F>::chunk_groups, kMine = kWarpGroups<F, M>;
    const int n_groups = s.cols / kGroup;
    F16State<F, M> state;
    for_run(
        [&](const uint8_t* chunk, int number) {
          const int of_chunk = kWhole ? kChunk : min(kChunk, n_groups - number * kChunk);
#pragma unroll
          for (int g = 0; g < kMine; g += 4)
            if (kWhole || warp * kMine + g < of_chunk)
              f16_step<kWhole>(chunk, Chunk<F>{of_chunk}, act, act_row_bytes, n_rows, number * kChunk, warp * kMine + g,
                               state);
        },
        [&](int part) { store_sums(state, sums + (part * kTeamWarps + warp) * M * kTileRows); });
  } else if constexpr (F::block > 1 && M == kMaxDecodeRows && kWhole) {
    TokenDot<F, M, kScales> dot(TokenActs<M, kScales>(act, s.cols / kGroup), warp);
    for_run([&](const uint8_t* chunk, int number) { dot.step(chunk, number); },
            [&](int part) { dot.store(sums + (part * kTeamWarps + warp) * M * kTileRows); });
  } else if constexpr (F::block > 1) {
    constexpr int kChunk = Packed<F>::chunk_groups, kMine = kWarpGroups<F, M>, kStep = kStepGroups<F, M>;
    const int n_groups = s.cols / kGroup;
    int act_rows[M];
#pragma unroll
    for (int m = 0; m < M; ++m) act_rows[m] = act + (m < n_rows ? m : 0) * act_row_bytes;
    MmaState<F, M> state;
    for_run(
        [&](const uint8_t* chunk, int number) {
          const int of_chunk = kWhole ? kChunk : min(kChunk, n_groups - number * kChunk);
#pragma unroll
          for (int g = 0; g < kMine; g += kStep)
            if (kWhole || warp * kMine + g < of_chunk)
              mma_step<F, M, kWhole>(chunk, Chunk<F>{of_chunk}, act_rows, n_groups, number * kChunk, warp * kMine + g,
                                     state);
        },
        [&](int part) {
          store_sums(state, sums + (part * kTeamWarps + warp) * M * kTileRows);
#pragma unroll
          for (int m = 0; m < M; ++m) state.acc[0][m] = state.acc[1][m] = 0;
        });
  } else {
    using Share = PlainShare<M>;
    constexpr int kRows = Share::kRows, kShares = Share::kShares;
    constexpr bool kMma = kRows == 8 && F::id != DType::F32;
    constexpr int kStepBytes = kMma ? 64 : 512;
    const int chunk_bytes = s.w[matrix].chunk_bytes, last_bytes = s.w[matrix].last_bytes;
    float acc[kMma ? 1 : kRows][kMma ? 4 : M] = {};
    for_run(
        [&](const uint8_t* chunk, int number) {
          const int bytes = number + kTeams < n_chunks ? chunk_bytes : last_bytes;
          const int share = (bytes / kShares + kStepBytes - 1) / kStepBytes * kStepBytes, begin = warp * share,
                    end = min(begin + share, bytes), of_chunk = act + number / kTeams * chunk_bytes;
          if constexpr (kMma)
            mma_plain<F>(chunk, bytes, begin, end, of_chunk, act_row_bytes, n_rows, lane, acc[0]);
          else
            dot_plain<F, M>(chunk, bytes, begin, end, of_chunk, act_row_bytes, n_rows, lane, acc);
        },
        [&](int part) {
          float* to = sums + (part * kTeamWarps + warp) * M * kTileRows + part * kRows;
          if constexpr (kMma) {
            if (lane / 4 < M)
              *reinterpret_cast<float2*>(to + lane / 4 * kTileRows + lane % 4 * 2) = {acc[0][0], acc[0][1]};
            for (float& v : acc[0]) v = 0;
          } else {
#pragma unroll
            for (int r = 0; r < kRows; ++r)
#pragma unroll
              for (int m = 0; m < M; ++m) {
                const float v = warp_sum(acc[r][m]);
                if (lane == 0) to[m * kTileRows + r] = v;
                acc[r][m] = 0;
              }
          }
        });
  }
  place.skip = -left;
  __syncwarp();  // all have read where the team was
  WarpWalk& walk = this_walk();
  if (lane == 0) walk.place = place;
  return {shared_address(&walk), walk.after};
}

}  // namespace infer::cuda
