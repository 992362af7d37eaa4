// Activations as the right operand of wgmma: where each number lies. An operand of `tokens` tokens (8, 16, 32, 64 or
// 128; those that there are not hold anything) is blocks of 128 columns one after the other, a block is eight
// instructions' sixteen columns, and those lie as the instruction reads them without a swizzle: for every eight tokens
// two core matrices of eight tokens times eight numbers, 128 bytes each. So any run of blocks is one contiguous copy.
//
// Which columns an instruction takes is chosen so that the left operand needs no exchange between lanes: lane j of the
// four that share a row of weights brings its own group of 32 columns (4 * block + j), four of them per instruction,
// in the order in which codes come out of a quad (mma_column() in mma_plan.h).
#pragma once

#include <cstdint>

#include "quant/host_device.h"

namespace infer::cuda {

/// How a kernel hands activations to the next product: row by row, as an operand in bf16, or as codes (int8_operand.h).
enum class PassedForm : int32_t { rows, operand, codes };

inline constexpr int kOperandColumns = 128;    ///< of a block
inline constexpr int kOperandMaxTokens = 128;  ///< of an operand

/// Tokens that an operand for m tokens has room for.
INFER_HD int operand_tokens(int64_t m) { return m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : m <= 64 ? 64 : 128; }

/// Index, in numbers of 16 bits, of a token's number of a column. Columns c and c + 2 (c % 4 < 2) are neighbours.
INFER_HD int64_t operand_place(int tokens, int token, int64_t column) {
  const int c = static_cast<int>(column % kOperandColumns), lane = c / 32, quad = c % 32 / 4;
  const int half = c % 4 / 2, pair = c % 2;
  const int64_t instruction = column / kOperandColumns * 8 + quad;
  return ((instruction * (tokens / 8) + token / 8) * 2 + pair) * 64 + token % 8 * 8 + lane * 2 + half;
}

}  // namespace infer::cuda
