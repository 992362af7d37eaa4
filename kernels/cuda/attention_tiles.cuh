// What attention_prefill.cu has to find and to fetch: which rows and which keys are a block's, and those keys and
// values from the pages of the cache into shared memory, in 16 bits, the next tile while one is multiplied. Knows
// pages, cache types and what a tile may see; not what is computed from it.
#pragma once

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/kv_cache.cuh"

namespace infer::cuda {

struct PrefillArgs {
  const float* q;  ///< [n_tokens, n_heads, head_dim]
  const uint8_t *k_cache, *v_cache;
  const int32_t *page_table, *q_start, *kv_len;
  const float* sinks;
  void* out;
  int64_t max_pages;
  int n_seqs, n_heads, n_kv_heads, head_dim, group, window;
  float scale, softcap;
  DType k_type, v_type, out_type;
  int begin, end;  ///< tokens of this launch
  float* partial;  ///< null, or where the rows of each part of the positions go: see attention_parts.cuh
};

/// The part of the work that one block has.
struct Tile {
  int first_token, n_tokens;  ///< of the sequence, in this step
  int first_row;              ///< of the sequence's n_tokens * group rows
  int first_position;         ///< of first_token
  int low, high;              ///< positions that some row of the tile sees
  const int32_t* pages;
  bool any;
};

/// Tiles are counted through the sequences, whose lengths only the device knows; the grid has room for the worst case.
template <int kRows>
__device__ Tile find_tile(const PrefillArgs& a, int number) {
  Tile t{};
  for (int s = 0; s < a.n_seqs; ++s) {
    const int next = a.q_start[s + 1], begin = max(a.q_start[s], a.begin);
    const int n_tokens = max(min(next, a.end) - begin, 0), n_rows = n_tokens * a.group;
    const int n_tiles = ceil_div(n_rows, kRows);
    if (number < n_tiles) {
      t.first_token = begin, t.n_tokens = n_tokens, t.first_row = number * kRows;
      t.first_position = a.kv_len[s] - (next - begin);
      const int lowest = t.first_position + t.first_row / a.group;
      const int highest = t.first_position + min(t.first_row + kRows - 1, n_rows - 1) / a.group;
      t.low = a.window > 0 ? max(0, lowest - a.window + 1) : 0;
      t.high = highest + 1;
      t.pages = a.page_table + s * a.max_pages;
      t.any = true;
      return t;
    }
    number -= n_tiles;
  }
  return t;
}

/// Leaves of a tile the positions of one part; false where it sees none of them.
__device__ __forceinline__ bool take_part(Tile& t, int part) {
  t.low = max(t.low, part * kPartKeys), t.high = min(t.high, (part + 1) * kPartKeys);
  return t.low < t.high;
}

/// Eight numbers of a row of a cache of any type, as f16.
__device__ __forceinline__ uint4 cached_half8(DType type, const uint8_t* page, int head_dim, int row, int dim) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = dim + 2 * i;
    const float x = at < head_dim ? cached_value(type, page, head_dim, row, at) : 0.0f;
    const float y = at + 1 < head_dim ? cached_value(type, page, head_dim, row, at + 1) : 0.0f;
    pairs[i] = f32_to_f16_clamped(x) | static_cast<uint32_t>(f32_to_f16_clamped(y)) << 16;
  }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

/// The same for codes, four places at once so that their loads overlap. Codes of what is not inside count as zeros.
template <int kBits>
struct CodeBatch {
  static constexpr int kSize = 4;
  uint2 codes[kSize];
  uint32_t scale[kSize];

  __device__ __forceinline__ void load(int i, const uint8_t* page, int head_dim, int row, int dim, bool inside) {
    const int at = row * (head_dim / 32) + dim / 32;
    if constexpr (kBits == 4) {
      load_stream<1>(page + (row * head_dim + dim) / 2, inside, &codes[i].x);
      scale[i] = load_stream_16(page + kPageTokens * head_dim / 2 + at * 2, inside) * 0x10001u;
    } else {
      load_stream<2>(page + row * head_dim + dim, inside, &codes[i].x);
      scale[i] = load_stream_16(page + kPageTokens * head_dim + at * 2, inside) * 0x10001u;
    }
  }
  __device__ __forceinline__ uint4 half8(int i) const {
    uint32_t word[2] = {codes[i].x, codes[i].y}, by = scale[i];
    if constexpr (kBits == 4) widen_codes<1>(&codes[i].x, word), by = widened_scale(by);
    const uint32_t x = word[0] ^ kFlipSigns, y = word[1] ^ kFlipSigns;
    return make_uint4(codes_to_half2<0>(x, by), codes_to_half2<2>(x, by), codes_to_half2<0>(y, by),
                      codes_to_half2<2>(y, by));
  }
};

inline constexpr int kPage = static_cast<int>(kPageTokens), kTilePages = kTileKeys / kPage;
static_assert(kTilePages == 2);

/// Where the pages of a tile of keys are; page 0, which is never read, where there is none to be seen.
struct TilePages {
  int number[kTilePages];

  __device__ __forceinline__ void find(const Tile& t, int first_key) {
#pragma unroll
    for (int p = 0; p < kTilePages; ++p) {
      const int at = first_key + p * kPage;
      number[p] = at < t.high && at + kPage > t.low ? t.pages[at / kPage] : 0;
    }
  }
};

/// copy_async without a condition.
__device__ __forceinline__ void copy_async_all(void* shared, const void* from) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

/// A tile of 16-bit numbers that can all be seen, of heads as long as the kernel is made for: addresses are constants
/// apart.
template <int kHeadDim, class Shape>
__device__ __forceinline__ void load_whole_tile(const uint8_t* const (&pages)[kTilePages], uint16_t* tile) {
  constexpr int kChunks = kHeadDim / 8, kRowStep = Shape::kThreads / kChunks;
  static_assert(Shape::kThreads % kChunks == 0 && kPage % kRowStep == 0);
  const int row = threadIdx.x / kChunks, dim = threadIdx.x % kChunks * 8;
  uint16_t* to = tile + row * Shape::kStride + dim;
#pragma unroll
  for (int p = 0; p < kTilePages; ++p) {
    const uint8_t* from = pages[p] + (row * kHeadDim + dim) * 2;
#pragma unroll
    for (int r = 0; r < kPage; r += kRowStep) {
      copy_async_all(to + (p * kPage + r) * Shape::kStride, from + r * kHeadDim * 2);
    }
  }
}

/// Rows [first_key, first_key + kTileKeys) of one head to shared memory; zeros for keys that the tile may not see,
/// whose memory may hold anything or not exist.
template <int kHeadDim, class Shape, bool kNative>
__device__ __forceinline__ void load_tile(const PrefillArgs& a, const Tile& t, const uint8_t* cache, DType type,
                                          int kv_head, int first_key, const TilePages& numbers, uint16_t* tile) {
  constexpr int kChunks = kHeadDim / 8;
  constexpr int kPerThread = kTileKeys * kChunks / Shape::kThreads;
  const int64_t bytes = head_page_bytes(type, a.head_dim);
  const uint8_t* pages[kTilePages];
#pragma unroll
  for (int p = 0; p < kTilePages; ++p) pages[p] = head_page(cache, bytes, a.n_kv_heads, numbers.number[p], kv_head);
  if constexpr (kNative && Shape::kThreads % kChunks == 0) {
    if (a.head_dim == kHeadDim && first_key >= t.low && first_key + kTileKeys <= t.high) {
      return load_whole_tile<kHeadDim, Shape>(pages, tile);
    }
  }
  // The compiler would keep every chunk's offset in registers from tile to tile; it shall find them anew instead.
  int thread = threadIdx.x;
  asm volatile("" : "+r"(thread));
  // Calls f(page, row in it, dimension, whether it is to be read, where it goes) for chunk i of this thread.
  const auto visit = [&](int i, auto&& f) {
    const int number = thread + i * Shape::kThreads, row = number / kChunks, dim = number % kChunks * 8;
    const int key = first_key + row;
    f(row < kPage ? pages[0] : pages[1], row % kPage, dim, key >= t.low && key < t.high && dim < a.head_dim,
      tile + row * Shape::kStride + dim);
  };
  if constexpr (kNative) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      visit(i, [&](const uint8_t* page, int row, int dim, bool inside, uint16_t* to) {
        copy_async(to, page + (inside ? (row * a.head_dim + dim) * 2 : 0), inside);
      });
    }
  } else if (type == DType::Q8_0 || type == DType::Q4_0) {
    const auto load_codes = [&]<int kBits>() {
      static_assert(kPerThread % 2 == 0);
      constexpr int kBatch = kPerThread % CodeBatch<kBits>::kSize == 0 ? CodeBatch<kBits>::kSize : 2;
#pragma unroll 1
      for (int first = 0; first < kPerThread; first += kBatch) {
        CodeBatch<kBits> batch;
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          visit(first + i, [&](const uint8_t* page, int row, int dim, bool inside, uint16_t*) {
            batch.load(i, page, a.head_dim, row, dim, inside);
          });
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          visit(first + i,
                [&](const uint8_t*, int, int, bool, uint16_t* to) { *reinterpret_cast<uint4*>(to) = batch.half8(i); });
        }
      }
    };
    type == DType::Q8_0 ? load_codes.template operator()<8>() : load_codes.template operator()<4>();
  } else {
#pragma unroll 1
    for (int i = 0; i < kPerThread; ++i) {
      visit(i, [&](const uint8_t* page, int row, int dim, bool inside, uint16_t* to) {
        const uint4 zero = make_uint4(0, 0, 0, 0);
        *reinterpret_cast<uint4*>(to) = inside ? cached_half8(type, page, a.head_dim, row, dim) : zero;
      });
    }
  }
}

}  // namespace infer::cuda
