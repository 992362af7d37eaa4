// The rows of quantised weights, in 16 bits or as e4m3, (of plain ones too, where --act wants another type) that
// products of prompts multiply: made on a stream of their own, into one half of a scratch while the product before
// reads the other. Unpacking is bound by memory and products by tensor cores; the last CTAs of a product, attention and
// norms leave SMs and memory idle, and that is when unpacking runs. The host is layers ahead of the device, so nobody
// has to say which weight comes next.
#pragma once

#include <array>

#include "kernels/cuda/device.h"
#include "kernels/tensor.h"

namespace infer::cuda {

class UnpackAhead {
 public:
  static constexpr bool kBeside = true;  ///< false: unpacked in the products' own stream, one after the other
  static constexpr int kHalves = kBeside ? 2 : 1;

  /// Takes `bytes` of device memory, which must live as long as this.
  void place(char* memory, size_t bytes);
  /// 16-bit numbers that a half holds; as many e4m3 with their factors, at least.
  int64_t n_elements() const { return n_elements_; }

  /// f16, bf16 or an operand of e4m3 [n_rows, cols]: rows [begin, begin + n_rows) of w, there for what `stream` does
  /// next until release(). `epoch` changes with every step, whenever a recorded step may have been replayed in between,
  /// and when weights have been packed.
  Tensor unpack(const Tensor& w, int64_t begin, int64_t n_rows, DType type, int64_t epoch, cudaStream_t stream);
  /// The same of several matrices of equally long rows, below one another.
  Tensor unpack(std::initializer_list<const Tensor*> matrices, DType type, int64_t epoch, cudaStream_t stream);
  /// `stream` has been given everything that reads what unpack() returned last.
  void release(cudaStream_t stream);

 private:
  struct Half {
    char* memory = nullptr;
    Event unpacked, released;
    int64_t epoch = -1;              ///< in which it was released: events of others say nothing about this one
    unsigned long long capture = 0;  ///< likewise; 0: none
  };
  cudaStream_t begin(int64_t epoch, cudaStream_t stream);
  void finish(cudaStream_t stream);
  /// Rows [begin, begin + n_rows) of w to those of `to` from row `at` on.
  static void put(const Tensor& w, int64_t begin, int64_t n_rows, const Tensor& to, int64_t at, cudaStream_t stream);

  Stream stream_;
  std::array<Half, kHalves> halves_;
  int64_t n_elements_ = 0;
  size_t next_ = 0;
};

}  // namespace infer::cuda
