// Rows of weights through the encoders: what encode.cpp and its siblings compile for their level of the CPU.
// See lanes.h for the unnamed namespace.
#pragma once

#include "quant/encode.h"
#include "quant/encode_affine.h"
#include "quant/encode_levels.h"
#include "quant/encode_simple.h"
#include "quant/encode_sixteen.h"
#include "quant/formats.h"

namespace infer {
namespace {

template <class F>
concept HasEncoder = requires(const float* x, typename F::Block& block) {
  Encoder<F>::encode(x, x, block);
};

template <class F>
concept HasSixteenEncoder = requires(const float* x, typename F::Block* blocks) {
  SixteenEncoder<F>::encode(x, blocks);
};

/// The first of n weights that is infinite or NaN, or n.
INFER_INLINE int64_t first_not_finite(const float* x, int n) {
  uint32_t largest = 0;
  for (int i = 0; i < n; ++i) {
    const uint32_t size = float_bits(x[i]) & 0x7fffffff;
    largest = size > largest ? size : largest;
  }
  if (largest < 0x7f800000) return n;
  int i = 0;
  while ((float_bits(x[i]) & 0x7fffffff) < 0x7f800000) ++i;
  return i;
}

template <Format F>
Encoded encode_blocks(const float* src, const float* importance, char* dst, int64_t n) {
  int64_t i = 0;
  if constexpr (HasSixteenEncoder<F>) {
    typename F::Block blocks[kBlocks];
    constexpr int kWeights = kBlocks * F::block;
    for (; !importance && i + kWeights <= n; i += kWeights, dst += sizeof blocks) {
      // What cannot be written is found again below, block by block.
      if (first_not_finite(src + i, kWeights) < kWeights || !SixteenEncoder<F>::encode(src + i, blocks)) break;
      std::memcpy(dst, blocks, sizeof blocks);
    }
  }
  typename F::Block block;
  for (; i < n; i += F::block, dst += sizeof block) {
    if constexpr (PlainFormat<F>) {
      block = F::encode(src[i]);
    } else {
      const int64_t bad = first_not_finite(src + i, F::block);
      if (bad < F::block) return {Encoded::not_finite, i + bad};
      if (!Encoder<F>::encode(src + i, importance ? importance + i : nullptr, block)) return {Encoded::too_large, i};
    }
    std::memcpy(dst, &block, sizeof block);
  }
  return {Encoded::none, n};
}

INFER_INLINE Encoded encode_row_of(DType dtype, const float* src, const float* importance, void* dst, int64_t n) {
  Encoded out{Encoded::unknown, 0};
  visit_any_format(dtype, [&]<class F>() {
    if constexpr (PlainFormat<F> || HasEncoder<F>) {
      out = encode_blocks<F>(src, importance, static_cast<char*>(dst), n);
    }
  });
  return out;
}

INFER_INLINE bool decode_row_of(DType dtype, const void* src, float* dst, int64_t n) {
  const auto* bytes = static_cast<const char*>(src);
  int64_t i = 0;
  if (dtype == DType::F16 && n >= 0) {
    uint16_t halves[kLanes];
    for (; i + kLanes <= n; i += kLanes) {
      std::memcpy(halves, bytes + 2 * i, sizeof halves);
      store(dst + i, load_halves(halves));
    }
  }
  return decode_row(dtype, bytes + 2 * i, dst + i, n - i);
}

}  // namespace
}  // namespace infer
