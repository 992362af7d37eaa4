// Products of one token's numbers with tiles of 16 rows, for kernels whose grid is over tiles and tokens: activations
// in shared memory, int8 in groups of 16 for quantised weights and f32 for plain ones, and weights from global memory
// straight into the registers where they are multiplied. Nothing is handed over between blocks and little is set up:
// with some ten kernels a layer of a few us each, what counts is how soon all of a kernel's loads are under way. So
// tiles that are known before the kernel's input is there are asked of the L2 meanwhile.
#pragma once

#include "kernels/cuda/int8_codes.cuh"
#include "kernels/cuda/token_plan.h"
#include "kernels/cuda/unpack.cuh"

namespace infer::cuda {

/// Which rows of its tile a lane has sums of, after multiply_tiles(): of quantised weights lane / 4 and that + 8,
/// shared with three other lanes; of plain ones four that all lanes of the warp share.
template <class F>
inline constexpr int kLaneRows = F::block > 1 ? 2 : 4;
/// Partial sums that each row of a tile has in shared memory.
template <class F, int kWarps>
inline constexpr int kRowParts = F::block > 1 ? kWarps : kWarps / 4;

/// Asks the L2 for `bytes`, by all threads.
template <int kThreads>
__device__ __forceinline__ void prefetch_l2(const uint8_t* from, int64_t bytes) {
  for (int64_t at = threadIdx.x * 128; at < bytes; at += kThreads * 128)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
}

/// Sum over the block, the same for all threads. `warps` f32 [kWarps]; one barrier, and none after its last read.
template <int kWarps>
__device__ __forceinline__ float block_sum(float x, float* warps) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += warps[w];
  return sum;
}

/// Numbers i .. i + 3 of a row of `cols`, i a multiple of 4; zeros beyond its end. kWide: cols is a multiple of 4, as
/// it always is where weights are quantised.
template <bool kWide>
__device__ __forceinline__ float4 load_four(const float* row, int i, int cols) {
  if constexpr (kWide) {
    return i < cols ? *reinterpret_cast<const float4*>(row + i) : float4{};
  } else {
    const auto at = [&](int k) { return k < cols ? row[k] : 0.0f; };
    return make_float4(at(i), at(i + 1), at(i + 2), at(i + 3));
  }
}

// ---- activations ---------------------------------------------------------------------------------------------------

/// Four numbers as int8 codes, by the four neighbouring lanes that have a group of 16. After the codes of all columns:
/// for each 32 of them two scales, and two sums of what the codes stand for.
__device__ __forceinline__ void put_codes(uint8_t* to, int n_codes, int i, float4 v) {
  float largest = max_nan(max_nan(fabsf(v.x), fabsf(v.y)), max_nan(fabsf(v.z), fabsf(v.w)));
  largest = max_nan(largest, __shfl_xor_sync(~0u, largest, 1));
  largest = max_nan(largest, __shfl_xor_sync(~0u, largest, 2));
  const uint32_t codes = four_codes(v, largest > 1e-30f ? __fdividef(127.0f, largest) : 0.0f);
  int sum = __dp4a(static_cast<int>(codes), 0x01010101, 0);
  sum += __shfl_xor_sync(~0u, sum, 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  *reinterpret_cast<uint32_t*>(to + i) = codes;
  if (i % 16 != 0) return;
  const float scale = largest <= 1e-30f ? 0.0f : largest * (1.0f / 127.0f);  // NaN stays NaN
  float* of_group = reinterpret_cast<float*>(to + n_codes) + i / 32 * 4 + i / 16 % 2;
  of_group[0] = scale, of_group[2] = scale * static_cast<float>(sum);
}

template <class F, int kThreads, bool kWide, class Finish>
__device__ __forceinline__ void put_rows(uint8_t* to, const float* rows, int n_parts, int cols, const Finish& finish) {
  constexpr int kBatch = 2;  // loads that are under way together
  const int padded = token_columns(F::id, cols), bytes = static_cast<int>(token_act_bytes(F::id, cols));
  for (int at = threadIdx.x * 4; at < n_parts * padded; at += kBatch * kThreads * 4) {
    float4 v[kBatch];
    int part[kBatch], i[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int own = at + k * kThreads * 4;
      part[k] = n_parts == 1 ? 0 : own / padded, i[k] = own - part[k] * padded;
      v[k] = part[k] < n_parts ? load_four<kWide>(rows + static_cast<int64_t>(part[k]) * cols, i[k], cols) : float4{};
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (at + k * kThreads * 4 >= n_parts * padded) break;  // whole warps: rows are multiples of 128
      const float4 x = finish(i[k], v[k]);
      if constexpr (F::block > 1) {
        put_codes(to + part[k] * bytes, padded, i[k], x);
      } else {
        *reinterpret_cast<float4*>(to + part[k] * bytes + i[k] * 4) = x;
      }
    }
  }
}

/// Brings `n_parts` rows of `cols` numbers to shared memory, token_act_bytes() each, with zeros behind them. What is
/// put is finish(column, four numbers), which makes zeros of zeros. The caller synchronises.
template <class F, int kThreads, class Finish>
__device__ __forceinline__ void put_activations(uint8_t* to, const float* rows, int n_parts, int cols,
                                                const Finish& finish) {
  if (F::block > 1 || cols % 4 == 0)
    put_rows<F, kThreads, true>(to, rows, n_parts, cols, finish);
  else
    put_rows<F, kThreads, false>(to, rows, n_parts, cols, finish);
}
/// The rows as they are.
template <class F, int kThreads>
__device__ __forceinline__ void put_activations(uint8_t* to, const float* rows, int n_parts, int cols) {
  put_activations<F, kThreads>(to, rows, n_parts, cols, [](int, float4 v) { return v; });
}

// ---- products ------------------------------------------------------------------------------------------------------

/// A group of 32 weights and its scales as they lie there: loaded well before they are taken apart.
template <class F>
struct RawGroup {
  RawLow low;
  uint2 high;
  uint32_t group;
  uint4 block;

  RawGroup() = default;
  __device__ __forceinline__ RawGroup(const uint8_t* chunk, Chunk<F> c, int row, int g)
      : low(load_low<F>(chunk, c, row, g)),
        high(load_high<F>(chunk, c, row, g)),
        group(load_bytes<Chunk<F>::kGroupScale>(chunk + c.group_scale(row, g)).x),
        block(load_bytes<Chunk<F>::kBlockScale>(chunk + c.block_scale(row, g))) {}
};

/// Group g of its chunk times int8 activations: `codes`, and `of_group` as put_codes() leaves them.
template <class F>
__device__ __forceinline__ float dot_group(const RawGroup<F>& raw, int g, const uint4 (&codes)[2], float4 of_group) {
  uint32_t q[8];
  unpack_low<F>(raw.low, q);
  unpack_high<F>(raw.high, q);
  const GroupScales w = decode_scales<F>(raw.group, raw.block, g % 8 / 4, g % 4);
  const uint32_t a[8] = {codes[0].x, codes[0].y, codes[0].z, codes[0].w,
                         codes[1].x, codes[1].y, codes[1].z, codes[1].w};
  int sums[2] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[i / 4] = __dp4a(static_cast<int>(q[i]), static_cast<int>(a[i]), sums[i / 4]);
  const float first = of_group.x * static_cast<float>(sums[0]), second = of_group.y * static_cast<float>(sums[1]);
  float dot = kHalves<F> == 2 ? w.scale[0] * first + w.scale[1] * second : w.scale[0] * (first + second);
  if constexpr (kNeedsSums<F>) {
    constexpr float kBias = Packed<F>::bias > 0 ? Packed<F>::bias : 0;
    const auto offset = [&](int half) { return w.offset[half] - kBias * w.scale[half]; };
    dot += kHalves<F> == 2 ? offset(0) * of_group.z + offset(1) * of_group.w : offset(0) * (of_group.z + of_group.w);
  }
  return dot;
}

/// 16 bytes of plain weights as numbers.
template <class F>
__device__ __forceinline__ void plain_numbers(uint4 bytes, float (&out)[16 / sizeof(typename F::Block)]) {
  constexpr int n = 16 / sizeof(typename F::Block);
  const uint32_t w[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (F::id == DType::F32) {
      out[i] = bits_float(w[i]);
    } else {
      using Type = std::conditional_t<F::id == DType::F16, HalfType, Bf16Type>;
      out[n / 4 * i] = Type::low(w[i]), out[n / 4 * i + 1] = Type::high(w[i]);
    }
  }
}

/// acc[matrix] += factor(part) * (this warp's share of tile(part, matrix) . activations of the part), for all parts. A
/// warp takes 16 rows times 128 columns of quantised weights at a time, of plain ones four rows times 512 bytes; a part
/// of the work always goes to the same warp. Columns that there are not repeat the last weights and meet zeros.
/// `n_rows` of the tiles are there.
template <class F, int kWarps, int kMatrices, class TileOf, class FactorOf>
__device__ __forceinline__ void multiply_tiles(int n_parts, int cols, int n_rows, const uint8_t* acts,
                                               const TileOf& tile, const FactorOf& factor,
                                               float (&acc)[kMatrices][kLaneRows<F>]) {
  constexpr int kAhead = kMatrices == 1 ? 2 : 1;  // iterations whose loads may be under way together
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int padded = token_columns(F::id, cols), bytes = static_cast<int>(token_act_bytes(F::id, cols));
  if constexpr (F::block > 1) {
    constexpr int kChunk = Packed<F>::chunk_groups;
    const int n_groups = cols / kGroup, steps = (n_groups + 3) / 4;
#pragma unroll kAhead
    for (int t = warp; t < n_parts * steps; t += kWarps) {
      const int part = n_parts == 1 ? 0 : t / steps, own = 4 * (t - part * steps) + lane % 4;
      const int g = min(own, n_groups - 1), number = g / kChunk;
      const Chunk<F> c{min(kChunk, n_groups - number * kChunk)};
      RawGroup<F> raw[kMatrices][2];
#pragma unroll
      for (int m = 0; m < kMatrices; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          raw[m][half] = RawGroup<F>(tile(part, m) + static_cast<int64_t>(number) * Chunk<F>{kChunk}.bytes(), c,
                                     lane / 4 + 8 * half, g - number * kChunk);
      const uint8_t* mine = acts + part * bytes;
      const uint4* at = reinterpret_cast<const uint4*>(mine + own * kGroup);
      const uint4 codes[2] = {at[0], at[1]};
      const float4 of_group = *reinterpret_cast<const float4*>(mine + padded + own * 16);
      const float times = factor(part);
#pragma unroll
      for (int m = 0; m < kMatrices; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          acc[m][half] = fmaf(times, dot_group<F>(raw[m][half], g - number * kChunk, codes, of_group), acc[m][half]);
    }
  } else {
    constexpr int n = 16 / sizeof(typename F::Block), kRows = kLaneRows<F>;
    const int stride = static_cast<int>(row_major_stride(sizeof(typename F::Block), cols)),
              steps = (stride + 511) / 512;
#pragma unroll kAhead
    for (int t = warp / 4; t < n_parts * steps; t += kWarps / 4) {
      const int part = n_parts == 1 ? 0 : t / steps, own = (t - part * steps) * 512 + lane * 16;
      const int from = min(own, stride - 16);
      uint4 raw[kMatrices][kRows];
#pragma unroll
      for (int m = 0; m < kMatrices; ++m)
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          raw[m][r] = *reinterpret_cast<const uint4*>(
              tile(part, m) + static_cast<int64_t>(min(warp % 4 * kRows + r, n_rows - 1)) * stride + from);
      float x[n];
      const float4* at = reinterpret_cast<const float4*>(acts + part * bytes + own / 16 * n * 4);
#pragma unroll
      for (int i = 0; i < n / 4; ++i) {
        const float4 v = at[i];
        x[4 * i] = v.x, x[4 * i + 1] = v.y, x[4 * i + 2] = v.z, x[4 * i + 3] = v.w;
      }
      const float times = factor(part);
#pragma unroll
      for (int m = 0; m < kMatrices; ++m)
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float dot = 0, w[n];
          plain_numbers<F>(raw[m][r], w);
#pragma unroll
          for (int i = 0; i < n; ++i) dot = fmaf(w[i], x[i], dot);
          acc[m][r] = fmaf(times, dot, acc[m][r]);
        }
    }
  }
}

/// The warps' sums of a tile. The caller synchronises between store and total.
template <class F, int kWarps, int kMatrices>
struct TileSums {
  static constexpr int kParts = kRowParts<F, kWarps>;
  float of[kParts][kMatrices][kTileRows];

  __device__ __forceinline__ void store(const float (&acc)[kMatrices][kLaneRows<F>]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < kMatrices; ++m)
#pragma unroll
      for (int r = 0; r < kLaneRows<F>; ++r) {
        float v = acc[m][r];
        if constexpr (F::block > 1) {
          v += __shfl_xor_sync(~0u, v, 1);
          v += __shfl_xor_sync(~0u, v, 2);
          if (lane % 4 == 0) of[warp][m][lane / 4 + 8 * r] = v;
        } else {
          v = warp_sum(v);
          if (lane == 0) of[warp / 4][m][warp % 4 * kLaneRows<F> + r] = v;
        }
      }
  }
  __device__ __forceinline__ float total(int matrix, int row) const {
    float sum = 0;
#pragma unroll
    for (int part = 0; part < kParts; ++part) sum += of[part][matrix][row];
    return sum;
  }
};

}  // namespace infer::cuda
