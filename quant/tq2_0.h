// TQ2_0: 256 weights that are -1, 0 or 1 times a scale, 2.0625 bits each. weight = d * (q - 1), q in 0..2 (3 decodes to
// 2).
//
//   byte  0   qs   64 bytes, 32 to four groups: byte i holds weight i of each, the first group in the lowest two bits
//   byte 64   d    f16
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct TQ2_0 {
  static constexpr DType id = DType::TQ2_0;
  static constexpr const char* name = "TQ2_0";
  static constexpr int block = 256;
  static constexpr bool has_offset = false;
  struct Block {
    uint8_t qs[64];
    uint16_t d;
  };
  static_assert(sizeof(Block) == 66);

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    const uint8_t* qs = b.qs + 32 * (group / 4);
    for (int i = 0; i < kGroup; ++i) out[i] = static_cast<int8_t>(bits::group_pair(qs, group % 4, i) - 1);
  }
  static INFER_HD void scales(const Block& b, int, float scale[2], float offset[2]) {
    scale[0] = scale[1] = f16_to_f32(b.d);
    offset[0] = offset[1] = 0.0f;
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<TQ2_0>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<TQ2_0>(b, group, out); }
};

static_assert(QuantFormat<TQ2_0>);

}  // namespace infer
