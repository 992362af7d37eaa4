// From how many rows of a step on one way through its products beats another, where a backend has several (cuda): small
// tables of numbers by the weights' format, measured on one device. Built-in ones are the backend's own.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/tensor.h"

namespace infer {

/// Rows of a step above which nothing is measured and nothing chosen.
inline constexpr int64_t kMostCrossoverRows = 128;
/// Rows above which no kernel takes a whole step.
inline constexpr int64_t kMostProgramRows = 4;

struct Crossovers {
  int64_t program_most = 0;  ///< rows up to which one kernel takes the whole step; 0 to 4
  int64_t few_least = 0;     ///< from which tensor cores read weights as they lie, in kernels for few rows; 129: never
  int64_t wide_least = 0;    ///< from which products are cuBLASLt's, weights unpacked before; 129: beyond what counts
  friend bool operator==(const Crossovers&, const Crossovers&) = default;
};

/// What holds for weights of a format on the devices of a name; an empty name is every device's.
struct FormatCrossovers {
  std::string device;
  DType format = DType::F32;
  Crossovers at;
};

}  // namespace infer
