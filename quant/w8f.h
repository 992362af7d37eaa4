// W8F: 256 weights, 8.25 bits each. weight = d[i / 128] * e4m3. What Hugging Face folders mean by fp8 with a scale to a
// block of 128 columns, or to a row; made of their files while loading for a GPU, no file has it.
//
//   byte 0   d      2 f32
//   byte 8   code   256 bytes, e4m3 as in fp8.h
#pragma once

#include "quant/format.h"
#include "quant/fp8.h"

namespace infer {

struct W8F {
  static constexpr DType id = DType::W8F;
  static constexpr const char* name = "W8F";
  static constexpr int block = 256;
  static constexpr int scale_columns = 128;
  static constexpr bool has_offset = false;
  struct Block {
    float d[2];
    uint8_t code[256];
  };
  static_assert(sizeof(Block) == 264);

  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) {
    for (int i = 0; i < kGroup; ++i)
      out[i] = b.d[group * kGroup / scale_columns] * e4m3_to_f32(b.code[group * kGroup + i]);
  }
};

static_assert(FloatFormat<W8F>);

}  // namespace infer
