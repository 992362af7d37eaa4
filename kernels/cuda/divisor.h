// Division of any 32-bit number by one that a launch knows: a multiplication and a correction, where the machine's own
// division is thirty instructions that wait for one another.
#pragma once

#include <cstdint>

#include "quant/host_device.h"

namespace infer::cuda {

struct Divisor {
  uint32_t by = 1, inverse = ~0u;  ///< 2^32 / by, rounded down; of 1 one less, which the correction makes good

  Divisor() = default;
  explicit Divisor(uint32_t n) : by(n), inverse(n == 1 ? ~0u : static_cast<uint32_t>((uint64_t{1} << 32) / n)) {}

  struct Result {
    uint32_t quotient, rest;
  };
  INFER_HD Result divide(uint32_t n) const {
    // At most one too small: n * (2^32 / by - inverse) is below 2^32.
    const auto quotient = static_cast<uint32_t>(static_cast<uint64_t>(n) * inverse >> 32);
    const uint32_t rest = n - quotient * by;
    return rest >= by ? Result{quotient + 1, rest - by} : Result{quotient, rest};
  }
};

}  // namespace infer::cuda
