// The ways in which the formats pack small integers into bytes; each is used by more than one of them. Values are read
// byte by byte, so neither alignment nor the machine's byte order matters.
#pragma once

#include <cstdint>

#include "quant/host_device.h"

namespace infer::bits {

/// 16 bytes hold 32 codes of 4 bits: byte i has code i in its low half and code i + 16 in its high half.
INFER_HD int split_nibble(const uint8_t* bytes, int i) { return (bytes[i & 15] >> (i & 16 ? 4 : 0)) & 15; }

/// 32 bytes hold two groups of 32 codes of 4 bits: the even group in the low halves, the odd group in the high halves.
INFER_HD int group_nibble(const uint8_t* bytes, int odd, int i) { return (bytes[i] >> (4 * odd)) & 15; }

/// 32 bytes hold four groups of 32 codes of 2 bits, group `quarter` at bit 2 * quarter of every byte.
INFER_HD int group_pair(const uint8_t* bytes, int quarter, int i) { return (bytes[i] >> (2 * quarter)) & 3; }

/// 32 bits, little end first.
INFER_HD uint32_t word(const uint8_t* bytes) {
  return bytes[0] | static_cast<uint32_t>(bytes[1]) << 8 | static_cast<uint32_t>(bytes[2]) << 16 |
         static_cast<uint32_t>(bytes[3]) << 24;
}

// The 12 bytes of Q4_K and Q5_K: eight scales and eight minimums of 6 bits. The first four of each sit in the low 6
// bits of bytes 0-3 (scales) and 4-7 (minimums). Of the last four, bytes 8-11 hold the low 4 bits (scale in the low
// half, minimum in the high half) and the two spare bits on top of bytes 0-7 hold the high 2 bits.

INFER_HD int six_bit_scale(const uint8_t packed[12], int i) {
  return i < 4 ? packed[i] & 63 : (packed[i + 4] & 15) | (packed[i - 4] >> 6) << 4;
}

INFER_HD int six_bit_min(const uint8_t packed[12], int i) {
  return i < 4 ? packed[i + 4] & 63 : packed[i + 4] >> 4 | (packed[i] >> 6) << 4;
}

/// Sign of value k of eight whose signs take 7 bits: bit k is set where value k is negative, and the eighth follows
/// from the rule that an even number of the eight is.
INFER_HD int seven_signs(uint32_t seven, int k) {
  const uint32_t eight = seven | (__builtin_popcount(seven) & 1u) << 7;
  return eight >> k & 1 ? -1 : 1;
}

}  // namespace infer::bits
