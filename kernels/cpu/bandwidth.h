// What the machine can do, measured: the two limits that speeds are compared with. Knows no tensors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/isa.h"

namespace infer::cpu {

/// GB/s at which `n_threads` (0: the default number) read memory far larger than any cache, best of the passes that fit
/// into about `seconds`.
double read_bandwidth_gbps(int n_threads, double seconds);
/// 1e9 operations/s of int8 multiply-add in registers with the best instruction set of this machine; a multiply and an
/// add are two. Best of the rounds that fit into about `seconds`.
double int8_peak_gops(int n_threads, double seconds);

/// The loops that are timed, per instruction set.
struct BandwidthTable {
  /// Reads all of it (a multiple of 1024 bytes, aligned to 64) and returns something that depends on every byte.
  uint64_t (*read)(const uint8_t* data, size_t bytes);
  /// Does `rounds` rounds of independent multiply-adds; `seed` keeps the compiler from knowing the operands.
  uint64_t (*multiply)(int64_t rounds, uint64_t seed);
  double operations_per_round;
};
extern const BandwidthTable kScalarBandwidth, kAvx2Bandwidth, kAvx512Bandwidth;
const BandwidthTable& bandwidth_table(Isa isa);

}  // namespace infer::cpu
