// Ops on one row of numbers, for every instruction set: norm, activation, residual, softcap, rotation, KV rows. It
// knows rows, not tensors or threads. What a row gives depends on nothing but the row.
#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"
#include "kernels/ops.h"

namespace infer::cpu {

struct PointwiseTable {
  /// out = x / sqrt(mean(x^2) + eps) * weight; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, float* out, int64_t n);
  /// out = activation(gate) * up; out may be gate.
  void (*activate)(Activation activation, const float* gate, const float* up, float* out, int64_t n);
  /// x += scale * branch
  void (*add)(float* x, const float* branch, float scale, int64_t n);
  /// x = softcap * tanh(scale * x / softcap), or scale * x when softcap is 0.
  void (*scale_softcap)(float* x, float scale, float softcap, int64_t n);
  /// Rotates one head by its position's row of the table, see RopeArgs.
  void (*rotate)(float* head, const float* cos_sin, int64_t pairs, bool adjacent);
  /// The Walsh-Hadamard transform of each `block` of a head, see kv_format.h; nothing where that is 1.
  void (*hadamard)(float* head, int64_t n, int64_t block);
  /// Writes a row of a KV cache, one of KvFormats, bits as quant/formats.h gives them.
  void (*encode)(DType dtype, const float* x, void* dst, int64_t n);
};

const PointwiseTable& pointwise(Isa isa);

extern const PointwiseTable kScalarPointwise, kAvx2Pointwise, kAvx512Pointwise;

}  // namespace infer::cpu
