// Several matrices as one: the weights of a layer that meet the same activations lie next to one another in memory
// (models/weights.cpp packs them in the order of its rules), so that one product can take the rows of all of them. It
// is looked up, never assumed: padding between matrices, or another loader, makes the products separate ones again.
#pragma once

#include <initializer_list>
#include <optional>

#include "kernels/cuda/packed.h"
#include "kernels/tensor.h"

namespace infer::cuda {

/// The rows of all `matrices` in order as one row-major matrix; nothing unless they are plain, of one type and width,
/// and each begins where the one before ends.
inline std::optional<Tensor> contiguous_rows(std::initializer_list<const Tensor*> matrices) {
  Tensor all = **matrices.begin();
  if (all.layout != kRowMajor || all.n_dims != 2) return std::nullopt;
  const int64_t stride = row_major_stride(row_bytes(all.dtype, 1), all.cols());
  all.dims[0] = 0;
  for (const Tensor* w : matrices) {
    const bool next = w->as<char>() == all.as<char>() + all.rows() * stride;
    if (!next || w->layout != kRowMajor || w->dtype != all.dtype || w->n_dims != 2 || w->cols() != all.cols())
      return std::nullopt;
    all.dims[0] += w->rows();
  }
  return all;
}

}  // namespace infer::cuda
