// The CUDA backend as the table of backends sees it; free of CUDA headers. Without nvcc kernels/none answers instead.
#pragma once

#include <memory>
#include <string>

#include "kernels/backend.h"

namespace infer {

/// Throws Error(run) saying why the device cannot be used.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions&);
/// Empty when GPU `index` can be used, else the reason for people.
std::string cuda_unusable_reason(int index);
/// 0 when there is no usable driver.
int cuda_device_count();

extern const DeviceRow kCudaDevices;

}  // namespace infer
