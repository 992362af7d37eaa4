// TQ1_0: 256 weights that are -1, 0 or 1 times a scale, 1.6875 bits each. weight = d * (q - 1), q in 0..2.
//
//   byte  0   qs   48 bytes of five weights: bytes 0-31 hold weights 0-159 (weight 32n + i is digit n of byte i), bytes
//                  32-47 hold weights 160-239 (weight 160 + 16n + i is digit n of byte 32 + i)
//   byte 48   qh   4 bytes of four weights: weight 240 + 4n + i is digit n of byte i
//   byte 52   d    f16
//
// A byte is a fraction of 256 in base 3, rounded up: its digit n is the whole part of 3 * (byte * 3^n mod 256) / 256.
#pragma once

#include "quant/bits.h"
#include "quant/format.h"
#include "quant/half.h"

namespace infer {

struct TQ1_0 {
  static constexpr DType id = DType::TQ1_0;
  static constexpr const char* name = "TQ1_0";
  static constexpr int block = 256;
  static constexpr bool has_offset = false;
  struct Block {
    uint8_t qs[48];
    uint8_t qh[4];
    uint16_t d;
  };
  static_assert(sizeof(Block) == 54);

  static INFER_HD int digit(uint32_t byte, int n) {
    for (int i = 0; i < n; ++i) byte = byte * 3 & 255;
    return static_cast<int>(byte * 3 >> 8);
  }
  /// Which byte of the block holds weight k, and as which digit.
  static INFER_HD void place(int k, int& byte, int& n) {
    const int first = k < 160 ? 0 : k < 240 ? 160 : 240, width = k < 160 ? 32 : k < 240 ? 16 : 4;
    n = (k - first) / width;
    byte = (k < 160 ? 0 : k < 240 ? 32 : 48) + (k - first) % width;
  }

  static INFER_HD void codes(const Block& b, int group, int8_t out[kGroup]) {
    for (int i = 0; i < kGroup; ++i) {
      int byte = 0, n = 0;
      place(group * kGroup + i, byte, n);
      out[i] = static_cast<int8_t>(digit(byte < 48 ? b.qs[byte] : b.qh[byte - 48], n) - 1);
    }
  }
  static INFER_HD void scales(const Block& b, int, float scale[2], float offset[2]) {
    scale[0] = scale[1] = f16_to_f32(b.d);
    offset[0] = offset[1] = 0.0f;
  }
  static INFER_HD void unpack(const Block& b, int group, Group& out) { unpack_group<TQ1_0>(b, group, out); }
  static INFER_HD void decode(const Block& b, int group, float out[kGroup]) { decode_unpacked<TQ1_0>(b, group, out); }
};

static_assert(QuantFormat<TQ1_0>);

}  // namespace infer
