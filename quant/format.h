// What a number format is: a struct of constants and static functions, one header each, listed in formats.h. It knows
// bytes and nothing of rows, tensors or memory.
//
// The unit of work is a group of 32 consecutive weights. A quantised format stores whole groups, one or eight to a
// block; a weight is scale * code + offset, where scale and offset may change in the middle of a group (16-wide
// sub-blocks). A plain format stores single numbers, so its rows may have any length.
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include "quant/dtype.h"
#include "quant/host_device.h"

namespace infer {

inline constexpr int kGroup = 32;

/// A group with its bits taken apart: weight[i] = scale[i / 16] * code[i] + offset[i / 16], product rounded first.
struct Group {
  int8_t code[kGroup];
  float scale[2];
  float offset[2];
};

template <class F>
concept AnyFormat = std::is_trivially_copyable_v<typename F::Block> && requires {
  { F::id } -> std::convertible_to<DType>;
  { F::name } -> std::convertible_to<const char*>;
  { F::block } -> std::convertible_to<int>;
};

/// F32, F16, BF16: a block is one number.
template <class F>
concept PlainFormat = AnyFormat<F> && F::block == 1 && requires(const typename F::Block& block, float x) {
  { F::decode(block) } -> std::same_as<float>;
  { F::encode(x) } -> std::same_as<typename F::Block>;
};

/// Everything else. `codes` and `scales` read the two halves of what `unpack` reads; `decode` gives the floats, equal
/// bit for bit to the published definition. has_offset says whether an offset can be other than zero.
template <class F>
concept QuantFormat = AnyFormat<F> && F::block % kGroup == 0 &&
                      requires(const typename F::Block& block, int group, int8_t* code, float* x, Group& unpacked) {
  { F::has_offset } -> std::convertible_to<bool>;
  F::codes(block, group, code);
  F::scales(block, group, x, x);
  F::unpack(block, group, unpacked);
  F::decode(block, group, x);
};

/// Blocks of small floats with scales: no integer codes.
template <class F>
concept FloatFormat = AnyFormat<F> && F::block % kGroup == 0 &&
                      requires(const typename F::Block& block, int group, float* x) {
  F::decode(block, group, x);
}
&&!QuantFormat<F>;

template <class F>
concept Format = PlainFormat<F> || QuantFormat<F> || FloatFormat<F>;

/// Quantised formats that can also be written, 32 weights at a time (for KV caches).
template <class F>
concept EncodableFormat = QuantFormat<F> && F::block == kGroup&& requires(typename F::Block& block, const float* x) {
  F::encode(x, block);
};

/// The body of every F::unpack.
template <class F>
INFER_HD void unpack_group(const typename F::Block& block, int group, Group& out) {
  F::codes(block, group, out.code);
  F::scales(block, group, out.scale, out.offset);
}

/// The body of every F::decode. Without offsets nothing is added, since adding +0 would lose the sign of a -0.
template <class F>
INFER_HD void decode_unpacked(const typename F::Block& block, int group, float out[kGroup]) {
  Group g;
  F::unpack(block, group, g);
  for (int i = 0; i < kGroup; ++i) {
    if constexpr (F::has_offset) {
      out[i] = multiply_then_add(g.scale[i / 16], g.code[i], g.offset[i / 16]);
    } else {
      out[i] = g.scale[i / 16] * g.code[i];
    }
  }
}

/// Decodes group `group` of a row of `n` weights, whatever the format; returns how many floats it wrote, which is 32
/// but for the last group of a plain row of odd length.
template <Format F>
INFER_HD int decode_row_group(const typename F::Block* row, int64_t group, int64_t n, float out[kGroup]) {
  if constexpr (F::block == 1) {
    const int64_t left = n - group * kGroup;
    const int count = left < kGroup ? static_cast<int>(left) : kGroup;
    for (int i = 0; i < count; ++i) out[i] = F::decode(row[group * kGroup + i]);
    return count;
  } else {
    constexpr int kGroups = F::block / kGroup;
    F::decode(row[group / kGroups], static_cast<int>(group % kGroups), out);
    return kGroup;
  }
}

}  // namespace infer
