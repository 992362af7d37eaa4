// Asks the CUDA runtime what is there and why it cannot be used. The runtime is linked statically and opens the driver
// at its first call, so all of this works where there is no driver. Attributes are asked one by one: that makes no
// context, which costs hundreds of megabytes on the device.
#include "kernels/cuda/device.h"

#include <cstdlib>

#include "kernels/backend.h"
#include "kernels/cuda/architectures.h"
#include "kernels/cuda/cuda_row.h"
#include "kernels/cuda/sizes.h"
#include "kernels/cuda/watch.h"

#ifndef INFER_CUDA_ARCHS
#error "the build says which architectures the kernels are compiled for"
#endif

namespace infer::cuda {
namespace {

/// Errors after which a context answers everything with an error.
bool is_sticky(cudaError_t status) {
  switch (status) {
    case cudaErrorECCUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
      return true;
    default:
      return false;
  }
}

int attribute(cudaDeviceAttr which, int index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, index), "attributes of the device");
  return value;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

/// Why there is no device at all, from what cudaGetDeviceCount said.
std::string no_device_reason(cudaError_t status) {
  const int driver = driver_version();
  if (driver == 0) return "there is no NVIDIA driver (libcuda.so.1 was not found or does not start)";
  if (status == cudaErrorInsufficientDriver)
    return "the NVIDIA driver is too old: found one for CUDA " + version_text(driver) + ", needed is one for CUDA " +
           version_text(CUDART_VERSION / 1000 * 1000) + " or newer";
  if (status != cudaSuccess && status != cudaErrorNoDevice) return cudaGetErrorString(status);
  const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return "there is no NVIDIA GPU" +
         (visible ? " among those that CUDA_VISIBLE_DEVICES allows ('" + escaped(visible) + "')" : std::string());
}

std::string compute_capability(int major, int minor) { return "sm_" + std::to_string(major) + std::to_string(minor); }

std::string name_of(int index) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "properties of the device");
  return properties.name;
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // what can be forgotten is not reported twice
  if (is_sticky(status)) throw Fault(what, cudaGetErrorString(status));
  throw Error(ErrorKind::run, std::string("cuda: ") + what + ": " + cudaGetErrorString(status));
}

int device_count() {
  int n = 0;
  if (cudaGetDeviceCount(&n) == cudaSuccess) return n;
  cudaGetLastError();
  return 0;
}

std::string unusable_reason(int index) {
  int n = 0;
  const cudaError_t status = cudaGetDeviceCount(&n);
  if (status != cudaSuccess || n == 0) {
    cudaGetLastError();
    return no_device_reason(status);
  }
  if (index < 0 || index >= n)
    return "there is no GPU " + std::to_string(index) +
           (n == 1 ? ", only GPU 0" : ", only GPUs 0 to " + std::to_string(n - 1));
  try {
    const int major = attribute(cudaDevAttrComputeCapabilityMajor, index);
    const int minor = attribute(cudaDevAttrComputeCapabilityMinor, index);
    if (!runs_on(INFER_CUDA_ARCHS, major, minor))
      return "the architecture of " + name_of(index) + ", " + compute_capability(major, minor) +
             ", is not in this program, which was built for " + built_architectures();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

DeviceInfo device_info(int index) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "properties of the device");
  DeviceInfo info;
  info.index = index;
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.n_sms = properties.multiProcessorCount;
  info.total_bytes = properties.totalGlobalMem;
  info.l2_bytes = static_cast<size_t>(properties.l2CacheSize);
  info.shared_bytes_per_block = properties.sharedMemPerBlockOptin;
  info.cooperative = attribute(cudaDevAttrCooperativeLaunch, index) != 0;
  return info;
}

std::string built_architectures() {
  std::string out;
  for (const char c : std::string_view(INFER_CUDA_ARCHS)) out += c == ',' ? std::string(", ") : std::string(1, c);
  return out;
}

std::string describe(const DeviceInfo& device) {
  return "cuda" + (device.index ? ':' + std::to_string(device.index) : "") + " (" + device.name + ", " +
         compute_capability(device.major, device.minor) + ", " + std::to_string(device.n_sms) + " SMs)";
}

}  // namespace infer::cuda

namespace infer {

std::string cuda_unusable_reason(int index) { return cuda::unusable_reason(index); }

int cuda_device_count() { return cuda::device_count(); }

// A driver that is too old hides how many GPUs there are: one is assumed, so that its reason is told.
const DeviceRow kCudaDevices = {
    [] {
      int n = 0;
      const cudaError_t status = cudaGetDeviceCount(&n);
      if (status != cudaSuccess) cudaGetLastError();
      if (status == cudaErrorInsufficientDriver) return cuda::driver_version() > 0 ? 1 : 0;
      return status == cudaSuccess ? n : 0;
    },
    cuda::unusable_reason,
    [](int index) { return cuda::describe(cuda::device_info(index)); },
    cuda::refusal,
    cuda::packed_bytes,
    cuda::scratch_bytes,
    cuda::kContextBytes,
    cuda::slow_cache,
};

}  // namespace infer
