// Products of one or two tokens with matrices outside a program for the persistent kernel: launchers of
// token_products.cu. A token meets all rows by itself; the second one finds the weights in the L2.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/token_plan.h"
#include "kernels/ops.h"

namespace infer::cuda {

/// out[m, n] = x[m, k] * w[n, k]^T + bias[n] of up to three matrices, with x normed first if there is `norm`; or out +=
/// scale * that. The matrices are of one format, or the last ones of another that joins the first's.
struct TokenProductArgs {
  Tensor x, norm;
  float eps = 0;
  const Tensor *w[3] = {}, *bias[3] = {};  ///< null: no more of them
  float* out[3] = {};
  int64_t out_stride[3] = {};  ///< numbers from token to token
  bool add = false;
  float scale = 1;
};

/// Whether token_product() has a kernel for a weight: packed or plain, of rows whose activations find room.
bool token_product_takes(const Tensor& w);
/// Whether matrices of these formats, which token_product_takes(), may be one launch, in this order.
bool token_product_joins(DType first, DType second);
void token_product(const TokenProductArgs&, cudaStream_t);

}  // namespace infer::cuda
