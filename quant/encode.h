// Writing weights in a format of the table: slowly and well, where encode_row() in formats.h is quick. An encoder
// minimises the sum of importance * (weight - written)^2; without importances all weights count alike. Same bytes on
// every machine and for any number of threads. No allocation, no exceptions.
#pragma once

#include <cstdint>

#include "quant/dtype.h"

namespace infer {

/// Whether encode_weights can write the format: F32, F16, BF16 and all of Formats, TQ1_0, TQ2_0.
bool encodable(DType dtype);

/// What encode_weights answers: how many weights it wrote, and why it stopped if they are not all of them.
struct Encoded {
  enum Fault { none, not_finite, too_large, unknown };
  Fault fault = none;
  int64_t at = 0;  ///< index of the weight, or of the first of the block of weights, that could not be written
};

/// Encodes n weights; `dst` needs no alignment. `importance`: null, or n finite numbers of at least 0, only their
/// proportions count. Stops before a weight that is not finite (F32, F16 and BF16 write such) and before a block whose
/// scale would overflow; unknown where row_bytes says -1 or the format is not encodable.
Encoded encode_weights(DType dtype, const float* src, const float* importance, void* dst, int64_t n);

/// decode_row(), with the processor's own conversions of F16: what weights are mostly encoded from.
bool decode_weights(DType dtype, const void* src, float* dst, int64_t n);

/// Levels of x86 processors that the encoders are compiled for, for tests: all give the same bytes.
enum class EncodeLevel { any, avx2, avx512 };
/// The highest that this machine has.
EncodeLevel encode_level();
Encoded encode_weights(EncodeLevel level, DType dtype, const float* src, const float* importance, void* dst, int64_t n);
bool decode_weights(EncodeLevel level, DType dtype, const void* src, float* dst, int64_t n);

}  // namespace infer
