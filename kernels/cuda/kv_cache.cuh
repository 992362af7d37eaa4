// The KV cache as the device sees it: [n_pages, n_kv_heads, kPageTokens, head_dim] in f32, f16, bf16, q8_0 or q4_0. The
// unit is the "head page", the kPageTokens rows of one KV head in one page, one contiguous run of bytes.
//
// q8_0 and q4_0 have as many bytes as the file formats and the same codes, in another order, so that codes can be read
// 16 bytes at a time: within a head page first all codes, then the scales, f16 [kPageTokens][head_dim / 32]. Codes of
// q8_0 are int8 [kPageTokens][head_dim]. Those of q4_0 are signed numbers of four bits, eight to a word: byte i of it
// holds number i in its lower half and number i + 4 in its upper half, so that two masks and a shift make sixteen times
// the codes, int8, of it. Heads lie rotated in q4_0, see kv_format.h.
#pragma once

#include <type_traits>

#include "kernels/cuda/common.cuh"
#include "kernels/kv_format.h"
#include "kernels/ops.h"

namespace infer::cuda {

struct CacheF32 {
  using Keys = CacheF32;
  using Values = CacheF32;
  static constexpr DType id = DType::F32;
  static constexpr bool tensor_cores = false, codes = false;
  static constexpr int bits = 32;
  using Type = HalfType;
};
struct CacheF16 {
  using Keys = CacheF16;
  using Values = CacheF16;
  static constexpr DType id = DType::F16;
  static constexpr bool tensor_cores = true, codes = false;
  static constexpr int bits = 16;
  using Type = HalfType;
};
struct CacheBF16 {
  using Keys = CacheBF16;
  using Values = CacheBF16;
  static constexpr DType id = DType::BF16;
  static constexpr bool tensor_cores = true, codes = false;
  static constexpr int bits = 16;
  using Type = Bf16Type;
};
struct CacheQ8_0 {
  using Keys = CacheQ8_0;
  using Values = CacheQ8_0;
  static constexpr DType id = DType::Q8_0;
  static constexpr bool tensor_cores = true, codes = true;
  static constexpr int bits = 8;
  using Type = HalfType;
};
struct CacheQ4_0 {
  using Keys = CacheQ4_0;
  using Values = CacheQ4_0;
  static constexpr DType id = DType::Q4_0;
  static constexpr bool tensor_cores = true, codes = true;
  static constexpr int bits = 4;
  using Type = HalfType;
};

/// Keys and values of two types, both of which become f16 before they are multiplied.
template <class K, class V>
struct CachePair {
  using Keys = K;
  using Values = V;
  static constexpr bool tensor_cores = true;
  using Type = HalfType;
  static_assert(std::is_same_v<typename K::Type, HalfType> && std::is_same_v<typename V::Type, HalfType>);
};

/// The struct above that has these types.
template <DType k, DType v>
struct CacheNamed {
  using Type = CachePair<typename CacheNamed<k, k>::Type, typename CacheNamed<v, v>::Type>;
};
template <>
struct CacheNamed<DType::F16, DType::F16> {
  using Type = CacheF16;
};
template <>
struct CacheNamed<DType::BF16, DType::BF16> {
  using Type = CacheBF16;
};
template <>
struct CacheNamed<DType::Q8_0, DType::Q8_0> {
  using Type = CacheQ8_0;
};
template <>
struct CacheNamed<DType::Q4_0, DType::Q4_0> {
  using Type = CacheQ4_0;
};

/// Whether a head size suits both.
template <int kHeadDim, class Cache>
inline constexpr bool kCacheFits = kHeadDim % 32 == 0 || (!Cache::Keys::codes && !Cache::Values::codes);

/// Bytes of kPageTokens rows; head_dim is a multiple of 32 for Q8_0 and Q4_0.
__host__ __device__ constexpr int64_t head_page_bytes(DType dtype, int64_t head_dim) {
  if (dtype == DType::Q8_0) return kPageTokens * (head_dim + head_dim / 16);
  if (dtype == DType::Q4_0) return kPageTokens * (head_dim / 2 + head_dim / 16);
  return kPageTokens * head_dim * (dtype == DType::F32 ? 4 : 2);
}

/// Codes of four bits become int8 codes, sixteen times as large, whose scale is a sixteenth.
template <int kWords>
__device__ __forceinline__ void widen_codes(const uint32_t* packed, uint32_t* words) {
#pragma unroll
  for (int i = 0; i < kWords; ++i)
    words[2 * i] = packed[i] << 4 & 0xf0f0f0f0u, words[2 * i + 1] = packed[i] & 0xf0f0f0f0u;
}
__device__ __forceinline__ uint32_t widened_scale(uint32_t scale) { return half2_mul(scale, 0x2c002c00u); }

/// In place, each `block` of n numbers in shared memory, a power of two that divides n: the rotation of kv_format.h.
/// Called by all lanes of a warp, which see the results.
__device__ __forceinline__ void hadamard(float* x, int n, int block, int lane) {
  if (block == 1) return;
  __syncwarp();
  for (int half = 1; half < block; half *= 2) {
    for (int i = lane; i < n / 2; i += 32) {
      const int at = i / half * 2 * half + i % half;
      const float a = x[at], b = x[at + half];
      x[at] = a + b, x[at + half] = a - b;
    }
    __syncwarp();
  }
  const float scale = hadamard_scale(block);
  for (int i = lane; i < n; i += 32) x[i] *= scale;
  __syncwarp();
}

template <class Byte>
__device__ __forceinline__ Byte* head_page(Byte* cache, int64_t bytes, int64_t n_kv_heads, int64_t page,
                                           int64_t kv_head) {
  return cache + (page * n_kv_heads + kv_head) * bytes;
}

/// One number of a head page, for code that need not be fast.
__device__ __forceinline__ float cached_value(DType dtype, const uint8_t* page, int head_dim, int row, int dim) {
  const int at = row * head_dim + dim;
  switch (dtype) {
    case DType::F32:
      return __ldcg(reinterpret_cast<const float*>(page) + at);
    case DType::F16:
      return f16_to_f32(__ldcg(reinterpret_cast<const unsigned short*>(page) + at));
    case DType::BF16:
      return bf16_to_f32(__ldcg(reinterpret_cast<const unsigned short*>(page) + at));
    case DType::Q4_0: {
      const auto* scales = reinterpret_cast<const unsigned short*>(page + kPageTokens * head_dim / 2);
      const float scale = f16_to_f32(__ldcg(scales + row * (head_dim / 32) + dim / 32));
      const int two = __ldcg(reinterpret_cast<const signed char*>(page) + at / 8 * 4 + at % 4);
      return scale * static_cast<float>(at % 8 < 4 ? static_cast<signed char>(two << 4) >> 4 : two >> 4);
    }
    default: {
      const auto* scales = reinterpret_cast<const unsigned short*>(page + kPageTokens * head_dim);
      const float scale = f16_to_f32(__ldcg(scales + row * (head_dim / 32) + dim / 32));
      return scale * static_cast<float>(__ldcg(reinterpret_cast<const signed char*>(page) + at));
    }
  }
}

/// The code of one lane's number and the scale of the 32 numbers of a warp, as Q8_0::encode finds them.
__device__ __forceinline__ int8_t encode_q8_0(float x, uint16_t& scale) {
  const uint32_t largest = __reduce_max_sync(0xffffffffu, float_bits(x) & 0x7fffffff);
  const bool finite = largest < 0x7f800000;
  const float d = __fdiv_rn(bits_float(largest), 127.0f);
  const float inverse = finite && d > 1e-37f ? __fdiv_rn(1.0f, d) : 0.0f;
  scale = finite ? f32_to_f16(d) : 0x7e00;
  const float rounded = multiply_then_add(finite ? x : 0.0f, inverse, 12582912.0f);
  return static_cast<int8_t>(rounded - 12582912.0f);
}

/// The same of Q4_0::encode: signed, in the lower half of a byte.
__device__ __forceinline__ uint32_t encode_q4_0(float x, uint16_t& scale) {
  const uint32_t bits = float_bits(x), largest = __reduce_max_sync(0xffffffffu, bits << 1 | bits >> 31);
  const bool finite = largest >> 1 < 0x7f800000;
  const float d = bits_float(largest >> 1 | largest << 31) * -0.125f;
  const float inverse = finite && largest >> 1 > 0x02000000 ? __fdiv_rn(1.0f, d) : 0.0f;
  scale = finite ? f32_to_f16(d) : 0x7e00;
  const int code = static_cast<int>(multiply_then_add(finite ? x : 0.0f, inverse, 8.5f));
  return static_cast<uint32_t>(code > 15 ? 15 : code) ^ 8;
}

/// One warp writes one row of a head page from `row` f32 [head_dim] (shared or global memory).
__device__ __forceinline__ void store_cache_row(DType dtype, uint8_t* page, int head_dim, int offset, const float* row,
                                                int lane) {
  const int base = offset * head_dim;
  if (dtype == DType::F32) {
    for (int i = lane; i < head_dim; i += 32) reinterpret_cast<float*>(page)[base + i] = row[i];
  } else if (dtype == DType::F16) {
    for (int i = lane; i < head_dim; i += 32) reinterpret_cast<uint16_t*>(page)[base + i] = f32_to_f16(row[i]);
  } else if (dtype == DType::BF16) {
    for (int i = lane; i < head_dim; i += 32) reinterpret_cast<uint16_t*>(page)[base + i] = f32_to_bf16(row[i]);
  } else if (dtype == DType::Q4_0) {
    auto* scales = reinterpret_cast<uint16_t*>(page + kPageTokens * head_dim / 2) + offset * (head_dim / 32);
    for (int i = lane; i < head_dim; i += 32) {
      uint16_t scale;
      const uint32_t code = encode_q4_0(row[i], scale), upper = __shfl_down_sync(0xffffffffu, code, 4);
      if (i % 8 < 4) page[(base + i) / 8 * 4 + i % 8] = static_cast<uint8_t>(code | upper << 4);
      if (lane == 0) scales[i / 32] = scale;
    }
  } else {
    auto* scales = reinterpret_cast<uint16_t*>(page + kPageTokens * head_dim) + offset * (head_dim / 32);
    for (int i = lane; i < head_dim; i += 32) {
      uint16_t scale;
      reinterpret_cast<int8_t*>(page)[base + i] = encode_q8_0(row[i], scale);
      if (lane == 0) scales[i / 32] = scale;
    }
  }
}

/// The same by place: `slot` is page * kPageTokens + offset within the page. Called by all lanes of a warp.
__device__ __forceinline__ void store_kv(DType dtype, uint8_t* cache, int64_t n_kv_heads, int kv_head, int head_dim,
                                         int64_t slot, const float* row, int lane) {
  uint8_t* page = head_page(cache, head_page_bytes(dtype, head_dim), n_kv_heads, slot / kPageTokens, kv_head);
  store_cache_row(dtype, page, head_dim, static_cast<int>(slot % kPageTokens), row, lane);
}
template <class Cache>
__device__ __forceinline__ void store_kv(uint8_t* cache, int64_t n_kv_heads, int kv_head, int head_dim, int64_t slot,
                                         const float* row, int lane) {
  store_kv(Cache::id, cache, n_kv_heads, kv_head, head_dim, slot, row, lane);
}

}  // namespace infer::cuda
