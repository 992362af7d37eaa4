// The arithmetic of attention_prefill.cu: what one warp does with its rows of Q and a tile of keys and values in shared
// memory. Knows fragments, masks and running maxima; not pages, sequences or global memory.
#pragma once

#include "kernels/cuda/common.cuh"

namespace infer::cuda {

inline constexpr int kTileKeys = 64;

/// Rows of shared memory are padded by 16 bytes, which spreads the rows of an 8x8 matrix over all banks. With kMTiles 2
/// the keys and values of a tile serve twice the rows, which relieves shared memory; with 1 there are twice the blocks,
/// and three of them to an SM.
template <int kHeadDim, int kMTiles_>
struct PrefillShape {
  static_assert(kHeadDim <= 128 || kMTiles_ == 1);
  static constexpr int kMTiles = kMTiles_;  ///< of 16 rows per warp
  static constexpr int kWarps = kHeadDim > 128 ? 8 : 4;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kMinBlocks = kHeadDim > 128 ? 1 : kMTiles == 2 ? 2 : 3;
  static constexpr int kRows = 16 * kMTiles * kWarps;
  static constexpr int kSteps = kHeadDim / 16;  ///< products to a score
  static constexpr int kStride = kHeadDim + 8;  ///< in numbers of 16 bits
  static constexpr int kTile = kTileKeys * kStride;
  static constexpr bool kQueriesInRegisters = kHeadDim <= 128 && kMTiles == 1;
  static constexpr int kQueryWords = kQueriesInRegisters ? 0 : kRows * kHeadDim / 8;  ///< of 16 bytes
  static constexpr int kSharedBytes = kQueryWords * 16 + 4 * kTile * 2;
};

/// The rows of Q of one warp as operands of the products, a 16-byte word per lane, tile of 16 rows and step.
template <class Shape>
struct Queries {
  uint4 registers[Shape::kQueriesInRegisters ? Shape::kSteps : 1];
  uint4* shared;  ///< of this lane, 32 words apart

  __device__ __forceinline__ void set(int m, int step, const uint4& word) {
    if constexpr (Shape::kQueriesInRegisters)
      registers[step] = word;
    else
      shared[(m * Shape::kSteps + step) * 32] = word;
  }
  __device__ __forceinline__ uint4 get(int m, int step) const {
    if constexpr (Shape::kQueriesInRegisters)
      return registers[step];
    else
      return shared[(m * Shape::kSteps + step) * 32];
  }
};

/// What a warp knows of its rows: per tile of 16 rows two of them in a lane, r = lane / 4 and r + 8.
template <int kHeadDim, int kMTiles, class Type>
struct RowState {
  using Shape = PrefillShape<kHeadDim, kMTiles>;
  static constexpr int kKeyTiles = kTileKeys / 8, kDimTiles = kHeadDim / 8;
  float sums[kMTiles][kDimTiles][4] = {};
  float highest[kMTiles][2], total[kMTiles][2];
  int position[kMTiles][2];

  /// s = Q K^T of the warp's rows and all keys of the tile.
  __device__ __forceinline__ void scores(const Queries<Shape>& queries, const uint16_t* keys, int lane,
                                         float s[kMTiles][kKeyTiles][4]) const {
#pragma unroll
    for (int step = 0; step < Shape::kSteps; ++step) {
      uint4 q[kMTiles];
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) q[m] = queries.get(m, step);
#pragma unroll
      for (int n = 0; n < kKeyTiles; n += 2) {
        uint32_t k[4];
        const int row = n * 8 + lane / 16 * 8 + lane % 8;
        load_matrices<false>(keys + row * Shape::kStride + step * 16 + lane / 8 % 2 * 8, k);
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
          Type::mma(s[m][n], q[m].x, q[m].y, q[m].z, q[m].w, k[0], k[1]);
          Type::mma(s[m][n + 1], q[m].x, q[m].y, q[m].z, q[m].w, k[2], k[3]);
        }
      }
    }
  }

  /// Scores become weights exp2(factor * s - highest) under the new maximum; sums and totals follow it.
  __device__ __forceinline__ void weigh(float s[kMTiles][kKeyTiles][4], float factor) {
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = -INFINITY;
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) top = fmaxf(top, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        top = fmaxf(highest[m][half], top * factor);
        const float base = top == -INFINITY ? 0.0f : top;  // a row that has seen nothing yet
        const float shrink = exp2_fast(highest[m][half] - base);
        highest[m][half] = top;
        float total_here = 0;
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            s[m][n][i] = exp2_fast(__fmaf_rn(s[m][n][i], factor, -base));
            total_here += s[m][n][i];
          }
        }
        total[m][half] = total[m][half] * shrink + total_here;
#pragma unroll
        for (int n = 0; n < kDimTiles; ++n) sums[m][n][2 * half] *= shrink, sums[m][n][2 * half + 1] *= shrink;
      }
    }
  }

  /// sums += P V
  __device__ __forceinline__ void accumulate(const float s[kMTiles][kKeyTiles][4], const uint16_t* values, int lane) {
#pragma unroll
    for (int step = 0; step < kTileKeys / 16; ++step) {
      uint32_t p[kMTiles][4];
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = s[m][2 * step + i / 2] + i % 2 * 2;
          p[m][i] = Type::pack(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int n = 0; n < kDimTiles; n += 2) {
        uint32_t v[4];
        load_matrices<true>(values + (step * 16 + lane % 16) * Shape::kStride + n * 8 + lane / 16 * 8, v);
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
          Type::mma(sums[m][n], p[m][0], p[m][1], p[m][2], p[m][3], v[0], v[1]);
          Type::mma(sums[m][n + 1], p[m][0], p[m][1], p[m][2], p[m][3], v[2], v[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void finish_scores(float s[kMTiles][kKeyTiles][4], float scale, float softcap) const {
#pragma unroll
    for (int i = 0; i < kMTiles * kKeyTiles * 4; ++i) {
      float& x = s[i / (kKeyTiles * 4)][i / 4 % kKeyTiles][i % 4];
      x = kLog2e * (softcap > 0 ? softcap * tanh_fast(x * scale / softcap) : x * scale);
    }
  }

  /// Keys that a row may not see get weight 0. `first` is the key of this lane's first column.
  __device__ __forceinline__ void mask(float s[kMTiles][kKeyTiles][4], int first, int window) const {
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = first + n * 8 + i % 2, own = position[m][i / 2];
          if (key > own || (window > 0 && own - key >= window)) s[m][n][i] = -INFINITY;
        }
      }
    }
  }
};

}  // namespace infer::cuda
