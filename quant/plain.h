// F32, F16 and BF16: one number to a block, so rows of any length. Encoding rounds to nearest, ties to even.
//
//   F32   4 bytes  IEEE binary32      F16   2 bytes  IEEE binary16      BF16  2 bytes  upper half of a binary32
#pragma once

#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct F32 {
  static constexpr DType id = DType::F32;
  static constexpr const char* name = "F32";
  static constexpr int block = 1;
  struct Block {
    float value;
  };
  static_assert(sizeof(Block) == 4);

  static INFER_HD float decode(const Block& b) { return b.value; }
  static INFER_HD Block encode(float x) { return {x}; }
};

struct F16 {
  static constexpr DType id = DType::F16;
  static constexpr const char* name = "F16";
  static constexpr int block = 1;
  struct Block {
    uint16_t bits;
  };
  static_assert(sizeof(Block) == 2);

  static INFER_HD float decode(const Block& b) { return f16_to_f32(b.bits); }
  static INFER_HD Block encode(float x) { return {f32_to_f16(x)}; }
};

struct BF16 {
  static constexpr DType id = DType::BF16;
  static constexpr const char* name = "BF16";
  static constexpr int block = 1;
  struct Block {
    uint16_t bits;
  };
  static_assert(sizeof(Block) == 2);

  static INFER_HD float decode(const Block& b) { return bf16_to_f32(b.bits); }
  static INFER_HD Block encode(float x) { return {f32_to_bf16(x)}; }
};

static_assert(PlainFormat<F32> && PlainFormat<F16> && PlainFormat<BF16>);

}  // namespace infer
