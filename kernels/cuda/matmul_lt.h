// Products on the tensor cores through cuBLASLt, which is opened at run time: a machine without it loses the speed of
// long prompts and nothing else, with a message. Knows row-major matrices of floats; formats are unpacked before they
// get here.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <string>

#include "kernels/tensor.h"

namespace infer::cuda {

class MatmulLt {
 public:
  /// Null, with the reason in `why_not`, when no cuBLASLt can be opened. Allocates its workspace.
  static std::unique_ptr<MatmulLt> open(std::string& why_not);
  virtual ~MatmulLt() = default;
  /// out[m, n] = beta * out + sum_k x[m, k] * w[n, k]. x and w share a type (f16, bf16 or f32) and may have padded rows
  /// (strides in elements); out is f32, f16 or bf16 with row stride out_stride. beta is 0 or 1. Or both are operands of
  /// e4m3 (e4m3.h) without padding, whose rows' factors the sums are multiplied with; n and k are multiples of 16 then.
  virtual void matmul(const Tensor& x, int64_t x_stride, const Tensor& w, int64_t w_stride, const Tensor& out,
                      int64_t out_stride, float beta, cudaStream_t stream) = 0;
  /// Why the library has no products of e4m3 with results in f32 and bf16 for the current device; empty when it has.
  virtual std::string why_no_e4m3() = 0;
  virtual size_t workspace_bytes() const = 0;
};

}  // namespace infer::cuda
