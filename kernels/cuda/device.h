// One NVIDIA device as the backend sees it: whether it can be used, what it is, and how its errors become infer::Error.
// Knows no tensors and no ops. Everything that fails in CUDA passes through check(), so that an error names the call
// and, once seen, is the answer to every later call of that backend.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "infer/error.h"

namespace infer::cuda {

/// Throws Error(run) "cuda: <what>: <CUDA's text>" unless `status` is cudaSuccess.
void check(cudaError_t status, const char* what);

struct DeviceInfo {
  int index = 0;
  std::string name;          ///< "NVIDIA H200"
  int major = 0, minor = 0;  ///< compute capability
  int n_sms = 0;
  size_t total_bytes = 0, l2_bytes = 0, shared_bytes_per_block = 0;
  bool cooperative = false;  ///< can launch kernels of which all blocks run together
};

/// Why no device can be used, as a person wants to read it: no driver, driver too old, no device, architecture not in
/// this build. Empty when device `index` can be used. Never throws, prints or leaves a context behind on failure.
std::string unusable_reason(int index);
int device_count();  ///< 0 when there is no usable driver
DeviceInfo device_info(int index);
/// "cuda (NVIDIA H200, sm_90, 132 SMs)", with its index unless that is 0.
std::string describe(const DeviceInfo& device);
/// Compute capabilities this binary has machine code for, "90a" or "80, 86, 90a".
std::string built_architectures();

template <class T, cudaError_t (*destroy)(T)>
class Handle {
 public:
  Handle() = default;
  explicit Handle(T handle) : handle_(handle) {}
  Handle(Handle&& other) noexcept : handle_(std::exchange(other.handle_, T{})) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Handle() {
    if (handle_) destroy(handle_);
  }
  T get() const { return handle_; }
  T* out() { return &handle_; }
  explicit operator bool() const { return handle_ != T{}; }

 private:
  T handle_{};
};
using Stream = Handle<cudaStream_t, cudaStreamDestroy>;
using Event = Handle<cudaEvent_t, cudaEventDestroy>;
using Graph = Handle<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Handle<cudaGraphExec_t, cudaGraphExecDestroy>;

}  // namespace infer::cuda
