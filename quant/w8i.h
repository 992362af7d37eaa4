// W8I: the block of Q8_0, where weights meet activations of 16 bits instead of int8 ones: 8-bit integers of Hugging
// Face folders (GPTQ, compressed-tensors), which are made for those. A GPU holds such matrices as this format; no file
// has it.
#pragma once

#include "quant/q8_0.h"

namespace infer {

struct W8I {
  static constexpr DType id = DType::W8I;
  static constexpr const char* name = "W8I";
  static constexpr int block = Q8_0::block;
  static constexpr bool has_offset = false;
  using Block = Q8_0::Block;

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) { Q8_0::codes(b, group, out); }
  static INFER_HD void scales(const Block& b, int group, float scale[2], float offset[2]) {
    Q8_0::scales(b, group, scale, offset);
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { Q8_0::unpack(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { Q8_0::decode(b, group, out); }
};

static_assert(QuantFormat<W8I>);

}  // namespace infer
