// Which way a product goes, and whether a step is one kernel, by the rows of the step: the one place that decides it.
// The built-in numbers are those measured on an H200; others come from whoever made the backend (infer bench
// --autotune). Plain C++, free of devices and part of every build.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "kernels/crossovers.h"
#include "kernels/cuda/activations.h"
#include "kernels/cuda/program.h"

namespace infer::cuda {

inline constexpr int64_t kWgmmaLeast = 3;     ///< rows from which wgmma beats mma
inline constexpr int64_t kPlainFewMost = 16;  ///< rows for which plain weights have a kernel, see matmul_16bit.h
inline constexpr int64_t kMatvecMost = 2;     ///< rows up to which matvec reads a weight best
inline constexpr int64_t kNever = kMostCrossoverRows + 1;
static_assert(kMostProgramRows == kMaxDecodeRows);

/// How a product of m rows of x with a weight is made.
enum class Way {
  matvec,  ///< int8, 16- or 32-bit activations, up to 4 rows a pass, packed weights as they are
  few,    ///< bf16 activations, packed weights unpacked in registers, or plain ones with their own type: memory's speed
  wide,   ///< 16- or 8-bit activations, quantised weights unpacked into scratch, cuBLASLt: the tensor cores' speed
  fixed,  ///< --deterministic: 16-bit activations, one order of sums for any number of rows
};

/// Unpacking a quantised weight pays beyond 128 rows: 32 of them read it once. A plain one needs none; one of 16 bits
/// has a kernel for few rows where the GPU has it (`few_plain`).
inline Crossovers built_in_crossovers(DType format, bool few_plain) {
  if (format == DType::F32 || (is_plain(format) && !few_plain)) return {kMaxDecodeRows, kNever, kMatvecMost + 1};
  if (is_plain(format)) return {kMatvecMost, kMatvecMost + 1, kPlainFewMost + 1};
  return {kMaxDecodeRows, kMatvecMost + 1, kMostCrossoverRows + 1};
}

/// What there are kernels and room for.
struct Possible {
  bool few = false, wide = false;
  bool ready = false;  ///< the weight lies as the tensor cores read it
};

inline Way choose_way(int64_t m, Act act, const Possible& can, const Crossovers& c) {
  if (act == Act::int8) return Way::matvec;
  if (!can.ready && !few_by_format(act))
    return can.wide ? Way::wide : Way::matvec;  // nothing else has such activations
  if (!can.ready && !can.few) return Way::matvec;
  // A plain weight that has no kernel for few rows, as f32 has none, goes to cuBLASLt where others go to theirs.
  const int64_t wide_least = can.ready && !can.few ? std::min(c.few_least, c.wide_least) : c.wide_least;
  if (can.wide && m >= wide_least) return Way::wide;
  return can.few && m >= c.few_least ? Way::few : Way::matvec;
}

/// The numbers of one device, by format.
class CrossoverTable {
 public:
  CrossoverTable() = default;
  /// Of `rows`, the last that matches counts.
  CrossoverTable(const std::vector<FormatCrossovers>& rows, const std::string& device, bool few_plain)
      : few_plain_(few_plain) {
    for (const FormatCrossovers& row : rows)
      if (row.device.empty() || row.device == device) rows_.push_back(row);
  }

  Crossovers at(DType format) const {
    for (auto row = rows_.rbegin(); row != rows_.rend(); ++row)
      if (row->format == format) return row->at;
    return built_in_crossovers(format, few_plain_);
  }
  /// Rows up to which a step with weights of all these formats is one kernel. Where some are quantised, plain ones are
  /// few and have no say.
  int64_t program_most(const std::vector<DType>& formats) const {
    const bool all_plain = std::all_of(formats.begin(), formats.end(), is_plain);
    int64_t most = kMaxDecodeRows;
    for (const DType format : formats)
      if (all_plain || !is_plain(format)) most = std::min(most, at(format).program_most);
    return most;
  }
  /// Rows from which a product with any of these formats is Way::few.
  int64_t few_least(const std::vector<DType>& formats) const {
    int64_t least = kNever;
    for (const DType format : formats) least = std::min(least, at(format).few_least);
    return least;
  }

 private:
  bool few_plain_ = true;               ///< see built_in_crossovers()
  std::vector<FormatCrossovers> rows_;  ///< of this device
};

}  // namespace infer::cuda
