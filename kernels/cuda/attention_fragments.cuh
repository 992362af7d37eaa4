// How the keys and values of 16 positions of the cache become operands of tensor cores: which number a lane loads, and
// which words of it go into which product. For attention_decode.cuh; knows pages, not sequences. A page lies in global
// memory or, where something else has brought it there, in shared memory.
#pragma once

#include "kernels/cuda/kv_cache.cuh"

namespace infer::cuda {

/// Loads of pages in global memory, of bytes that are read once. All loads of a block shall be on their way at once,
/// as far as there are registers.
struct FromGlobal {
  static constexpr bool far = true;
  template <int kWords>
  static __device__ __forceinline__ void load(const uint8_t* from, bool inside, uint32_t* w) {
    load_stream<kWords>(from, inside, w);
  }
  static __device__ __forceinline__ uint32_t load_16(const uint8_t* from, bool inside) {
    return load_stream_16(from, inside);
  }
};
/// Of pages in shared memory, which is near enough to load what is needed next.
struct FromShared {
  static constexpr bool far = false;
  template <int kWords>
  static __device__ __forceinline__ void load(const uint8_t* from, bool inside, uint32_t* w) {
    load_shared<kWords>(from, inside, w);
  }
  static __device__ __forceinline__ uint32_t load_16(const uint8_t* from, bool inside) {
    return inside ? *reinterpret_cast<const uint16_t*>(from) : 0;
  }
};

/// How a head of kHeadDim numbers is laid over fragments.
template <int kHeadDim, class Cache, class Memory = FromGlobal>
struct AttentionShape {
  using Keys = typename Cache::Keys;
  using Values = typename Cache::Values;
  static_assert(kCacheFits<kHeadDim, Cache>);
  // Keys: a lane loads kKLoad numbers of one key, 4 lanes a group. They feed kKLoad / 4 products of 16 dimensions.
  static constexpr int kKLoad = Keys::codes && kHeadDim % 64 == 0 ? 16 : 8;
  static constexpr int kKGroupDims = 4 * kKLoad;
  static constexpr int kKGroups = ceil_div(kHeadDim, kKGroupDims);
  static constexpr int kKWords = Keys::codes ? kKLoad / 4 : kKLoad / 2;
  static constexpr int kSteps = kKGroups * kKLoad / 4;
  // Values: a lane loads kVLoad numbers for rows 0-7 of kVLoad tiles and as many for rows 8-15.
  static constexpr int kVLoad = (Memory::far && kHeadDim == 128) || (Values::codes && kHeadDim == 256) ? 8
                                : kHeadDim >= 64 || Values::bits == 4                                  ? 4
                                                                                                       : 2;
  static constexpr int kVGroups = ceil_div(kHeadDim, 16 * kVLoad);
  static constexpr int kTiles = kVGroups * kVLoad;
  // The sums of a head take kTiles * 4 registers. Where little is left, keys and values are loaded part by part; where
  // much is, values are loaded together with the keys.
  static constexpr int kKParts = !Memory::far ? kKGroups : kHeadDim > 128 ? 4 : 1;
  static constexpr int kVParts = !Memory::far || kHeadDim > 128 ? kVGroups : 1;
  static constexpr bool kTogether = Memory::far && kHeadDim <= 64;

  /// Dimension of k index {2j, 2j+1, 2j+8, 2j+9}[element] of product `step`.
  static __device__ __forceinline__ int k_dim(int step, int j, int element) {
    constexpr int kPer = kKLoad / 4;
    return step / kPer * kKGroupDims + j * kKLoad + step % kPer * 4 + element;
  }
  /// First dimension of lane row r (0-7) for rows r + 8 * half of group g; tile t of the group is that plus t. Codes
  /// lie so densely that both halves come in one load.
  static __device__ __forceinline__ int v_dim(int group, int half, int r) {
    return group * 16 * kVLoad + (Values::codes ? r * 2 * kVLoad + half * kVLoad : half * 8 * kVLoad + r * kVLoad);
  }
};

/// kWords words of 16-bit numbers or int8 codes, from number `at` of a page on.
template <class Cache, class Memory, int kWords>
__device__ __forceinline__ void load_numbers(const uint8_t* page, int at, bool inside, uint32_t* words) {
  if constexpr (Cache::bits == 4) {
    uint32_t packed[kWords / 2];
    Memory::template load<kWords / 2>(page + at / 2, inside, packed);
    widen_codes<kWords / 2>(packed, words);
  } else {
    Memory::template load<kWords>(page + at * (Cache::bits / 8), inside, words);
  }
}
/// The scale of those codes, f16.
template <int kHeadDim, class Cache, class Memory>
__device__ __forceinline__ uint32_t load_scale(const uint8_t* page, int row, int dim, bool inside) {
  constexpr int kCodeBytes = static_cast<int>(kPageTokens) * kHeadDim * Cache::bits / 8;
  const uint32_t scale = Memory::load_16(page + kCodeBytes + (row * (kHeadDim / 32) + dim / 32) * 2, inside);
  return Cache::bits == 4 ? widened_scale(scale) : scale;
}

/// Keys of a block, as loaded: two tiles of 8 keys.
template <int kHeadDim, class Cache, class Memory>
struct KeyPart {
  using Shape = AttentionShape<kHeadDim, Cache, Memory>;
  using Keys = typename Cache::Keys;
  static constexpr int kGroups = Shape::kKGroups / Shape::kKParts;
  uint32_t words[2][kGroups][Shape::kKWords];
  uint32_t scale[2][Keys::codes ? kGroups : 1];

  __device__ __forceinline__ void load(const uint8_t* page, int first_row, int part, int lane) {
    const int r = lane / 4, j = lane % 4;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int row = first_row + 8 * tile + r;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int dim = (part * kGroups + g) * Shape::kKGroupDims + j * Shape::kKLoad;
        const bool inside = kHeadDim % Shape::kKGroupDims == 0 || dim < kHeadDim;
        load_numbers<Keys, Memory, Shape::kKWords>(page, row * kHeadDim + dim, inside, words[tile][g]);
        if constexpr (Keys::codes)
          scale[tile][g] = load_scale<kHeadDim, Keys, Memory>(page, row, dim, inside) * 0x10001u;
      }
    }
  }

  /// Adds q . k to the fragments of S: c[tile][0..1] from the heads' leading bits, c[tile][2..3] from the rest.
  __device__ __forceinline__ void add_scores(const uint4* query, int part, int lane, float c[2][4]) const {
    constexpr int kPer = Shape::kKLoad / 4;
#pragma unroll
    for (int step = 0; step < kGroups * kPer; ++step) {
      const uint4 a = query[(part * kGroups * kPer + step) * 32 + lane];
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const uint32_t* w = words[tile][step / kPer];
        uint32_t b0, b1;
        if constexpr (Keys::codes) {
          const uint32_t flipped = w[step % kPer] ^ kFlipSigns;
          b0 = codes_to_half2<0>(flipped, scale[tile][step / kPer]);
          b1 = codes_to_half2<2>(flipped, scale[tile][step / kPer]);
        } else {
          b0 = w[step % kPer * 2], b1 = w[step % kPer * 2 + 1];
        }
        Cache::Type::mma(c[tile], a.x, a.y, a.z, a.w, b0, b1);
      }
    }
  }
};

/// Values of a block, as loaded: a lane holds keys 2j, 2j+1, 2j+8 and 2j+9. Keys out of range are zeros, since what
/// lies there may be NaN.
template <int kHeadDim, class Cache, class Memory>
struct ValuePart {
  using Shape = AttentionShape<kHeadDim, Cache, Memory>;
  using Values = typename Cache::Values;
  static constexpr int kGroups = Shape::kVGroups / Shape::kVParts, kLoad = Shape::kVLoad;
  static constexpr int kWords = kLoad / 2;  ///< f16: of one half; codes: of both
  uint32_t words[4][kGroups][Values::codes ? 1 : 2][kWords];
  uint32_t scale[2][Values::codes ? kGroups : 1];  ///< of two neighbouring keys

  __device__ __forceinline__ void load(const uint8_t* page, int first_row, int part, const bool valid[4], int lane) {
    const int r = lane / 4, j = lane % 4;
#pragma unroll
    for (int key = 0; key < 4; ++key) {
      const int row = first_row + 2 * j + key % 2 + 8 * (key / 2);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int half = 0; half < (Values::codes ? 1 : 2); ++half) {
          const int dim = Shape::v_dim(part * kGroups + g, half, r);
          const bool inside = valid[key] && dim < kHeadDim;
          load_numbers<Values, Memory, kWords>(page, row * kHeadDim + dim, inside, words[key][g][half]);
          if constexpr (Values::codes) {
            const uint32_t s = load_scale<kHeadDim, Values, Memory>(page, row, dim, inside);
            scale[key / 2][g] = key % 2 == 0 ? s : scale[key / 2][g] | s << 16;
          }
        }
      }
    }
  }

  /// Numbers of tile t of a group for the keys 2*pair and 2*pair+1 of this lane, rows of one half.
  __device__ __forceinline__ uint32_t element(int g, int t, int pair, int half) const {
    if constexpr (Values::codes) {
      const int at = half * kLoad + t;
      const uint32_t both =
          __byte_perm(words[2 * pair][g][0][at / 4], words[2 * pair + 1][g][0][at / 4], at % 4 < 2 ? 0x5140 : 0x7362) ^
          kFlipSigns;
      return at % 2 == 0 ? codes_to_half2<0>(both, scale[pair][g]) : codes_to_half2<2>(both, scale[pair][g]);
    } else {
      return __byte_perm(words[2 * pair][g][half][t / 2], words[2 * pair + 1][g][half][t / 2],
                         t % 2 == 0 ? 0x5410 : 0x7632);
    }
  }

  __device__ __forceinline__ void accumulate(float (*o)[4], int part, uint32_t p0, uint32_t p1) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int t = 0; t < kLoad; ++t) {
        Cache::Type::mma(o[(part * kGroups + g) * kLoad + t], element(g, t, 0, 0), element(g, t, 0, 1),
                         element(g, t, 1, 0), element(g, t, 1, 1), p0, p1);
      }
    }
  }
};

}  // namespace infer::cuda
