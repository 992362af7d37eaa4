// A tensor view: where numbers lie, in which format, in which shape. Trivially copyable, owns nothing. A null tensor
// (data == nullptr) means "this optional feature is absent". Row-major, outermost dimension first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "quant/dtype.h"

namespace infer {

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::F32;
  uint32_t layout = 0;  ///< 0: rows of file blocks, one after another; else a packed layout private to the backend
  int32_t n_dims = 0;
  int64_t dims[4] = {1, 1, 1, 1};  ///< unused ones are 1

  Tensor() = default;
  Tensor(void* address, DType type, std::initializer_list<int64_t> shape) : data(address), dtype(type) {
    for (int64_t d : shape) dims[n_dims++] = d;
  }

  explicit operator bool() const { return data != nullptr; }
  int64_t rows() const { return dims[0]; }
  int64_t cols() const { return n_dims < 2 ? dims[0] : dims[n_dims - 1]; }  ///< length of the innermost dimension
  int64_t n_elements() const { return dims[0] * dims[1] * dims[2] * dims[3]; }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

/// Matrix `i` [rows, cols] of a stack [n, rows, cols] whose matrices lie `stride_bytes` apart.
inline Tensor matrix_of(const Tensor& stack, int64_t i, int64_t stride_bytes) {
  Tensor out(stack.as<char>() + i * stride_bytes, stack.dtype, {stack.dims[1], stack.dims[2]});
  out.layout = stack.layout;
  return out;
}

/// "Q4_K", or "type 77" for a number without a name; for messages.
std::string format_name(DType dtype);

}  // namespace infer
