// Products on the tensor cores, for the ops and stages of more rows than matvec takes: cuBLASLt multiplies activations
// of 16 bits, or e4m3 with a factor to each row, with weights of the same type. Plain weights are read where they lie,
// others are unpacked into scratch first, a block of rows at a time. Knows what can go this way (crossovers.h says what
// does); activations come converted.
#pragma once

#include <initializer_list>

#include "kernels/cuda/activations.h"
#include "kernels/cuda/crossovers.h"
#include "kernels/cuda/e4m3.h"
#include "kernels/cuda/matmul_lt.h"
#include "kernels/cuda/unpack_ahead.h"
#include "kernels/ops.h"
#include "quant/formats.h"

namespace infer::cuda {

inline constexpr int64_t kMatvecRows = 4;  ///< rows of x that one matvec takes

/// Of a plain type.
inline int64_t element_bytes(DType dtype) { return row_bytes(dtype, 1); }

/// The memory of `t` as a matrix of another type and shape, which must fit.
inline Tensor memory_as(const Tensor& t, DType dtype, int64_t rows, int64_t cols) {
  return Tensor(t.data, dtype, {rows, cols});
}

/// Tensor cores for products of narrowed activations, with the scratch that quantised weights need.
struct Wide {
  MatmulLt* lt;
  Tensor narrow;  ///< scratch for activations in 16 bits: only its size counts here
  UnpackAhead* unpacked;
  int64_t epoch;  ///< of unpacked
  cudaStream_t stream;
  Act act;
  bool fixed;      ///< all products are Way::fixed
  bool few_plain;  ///< the GPU has matmul_16bit
  const CrossoverTable* crossovers;

  /// Of both operands. What has sizes that the library's e4m3 does not take goes as if left alone.
  DType type(const Tensor& w) const {
    const bool fits = w.rows() % kE4m3Step == 0 && w.cols() % kE4m3Step == 0;
    return operand_type(w.dtype, act == Act::fp8 && !fits ? Act::automatic : act);
  }
  bool ready(const Tensor& w) const { return lies_ready(w.dtype, act); }
  /// Rows that are no multiple of 16 bytes never go this way: they would take slow algorithms, and no model has them.
  Way way(int64_t m, const Tensor& w) const;
  bool takes(int64_t m, const Tensor& w) const { return way(m, w) == Way::wide; }
  /// Rows of a quantised weight that are unpacked at a time: multiples of the products' tiles.
  int64_t block_rows(int64_t k) const;

  /// out (+)= x * w^T; x is of type(w). Without bias.
  void product(const Tensor& x, const Tensor& w, const Tensor& out, bool accumulate) const;
  /// The same for f32 results with an optional bias.
  void product(const MatmulArgs& args, bool accumulate = false) const;
  /// Whether product_merged() takes matrices of `rows` rows in all: such that lie side by side, or are unpacked so.
  bool takes_merged(int64_t rows, std::initializer_list<const Tensor*> matrices) const;
  /// out = x * [w; w; ...]^T
  void product_merged(const Tensor& x, std::initializer_list<const Tensor*> matrices, const Tensor& out) const;
};

}  // namespace infer::cuda
