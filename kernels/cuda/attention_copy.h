// Attention of a step of several tokens leaves its result a second time, as the product that follows wants it. In which
// form is decided here, before it is known which weight that will be. Plain C++, free of devices and part of every
// build.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/cuda/activations.h"
#include "kernels/cuda/int8_operand.h"
#include "kernels/cuda/operand.h"
#include "kernels/cuda/packed.h"

namespace infer::cuda {

struct AttentionCopy {
  int64_t rows = 0, n_heads = 0, head_dim = 0;
  int64_t room = 0;        ///< 16-bit numbers that there is memory for
  bool has_wgmma = false;  ///< matmul_wgmma and matmul_int8
  bool has_lt = false;
};

/// Nothing where no form serves all weights of these formats that it could meet, or where there is no room.
inline std::optional<PassedForm> attention_copy_form(const AttentionCopy& a, const std::vector<DType>& formats) {
  const int64_t width = a.n_heads * a.head_dim;
  bool some_codes = false, some_operands = false, all_bf16 = true;
  for (const DType format : formats) {
    const bool packed = packed_layout(format) == kTiles, codes = a.rows <= kInt8Tokens && int8_knows(format);
    some_codes = some_codes || (packed && codes), some_operands = some_operands || (packed && !codes);
    all_bf16 = all_bf16 && format == DType::BF16;
  }
  if (some_operands && a.has_wgmma && a.rows <= kOperandMaxTokens && width % kOperandColumns == 0 &&
      operand_tokens(a.rows) * width <= a.room)
    return PassedForm::operand;
  // A group of codes is 32 numbers of one head, a lane of a warp each.
  if (some_codes && !some_operands && a.has_wgmma && a.head_dim % kGroup == 0 && width % (2 * kGroup) == 0 &&
      Int8Operand<1>::bytes(width) <= 2 * a.room)
    return PassedForm::codes;
  if (all_bf16 && a.has_lt && a.rows * width <= a.room) return PassedForm::rows;
  return std::nullopt;
}

}  // namespace infer::cuda
