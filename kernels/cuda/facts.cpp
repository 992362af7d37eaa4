// What the CUDA runtime knows of each device, for people who ask what is wrong with it. Measures nothing.
#include <cuda_runtime.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/limits.h"

namespace infer::cuda {
namespace {

int attribute(cudaDeviceAttr which, int index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, index), "attributes of the device");
  return value;
}

/// Sizes need a context, which is only made where something can be computed.
void ask_memory(DeviceFacts& facts) {
  int before = 0;
  check(cudaGetDevice(&before), "cudaGetDevice");
  check(cudaSetDevice(facts.index), "cudaSetDevice");
  const cudaError_t status = cudaMemGetInfo(&facts.free_bytes, &facts.total_bytes);
  check(cudaSetDevice(before), "cudaSetDevice");
  check(status, "memory of the device");
}

}  // namespace

std::vector<DeviceFacts> device_facts(bool with_memory) {
  std::vector<DeviceFacts> all;
  for (int i = 0; i < device_count(); ++i) {
    DeviceFacts facts;
    facts.index = i;
    facts.unusable = unusable_reason(i);
    try {
      char bus_id[32] = {};
      check(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, i), "place of the device");
      facts.pci_bus_id = bus_id;
      check(cudaDriverGetVersion(&facts.driver_version), "version of the driver");
      check(cudaRuntimeGetVersion(&facts.runtime_version), "version of the runtime");
      facts.major = attribute(cudaDevAttrComputeCapabilityMajor, i);
      facts.minor = attribute(cudaDevAttrComputeCapabilityMinor, i);
      facts.n_sms = attribute(cudaDevAttrMultiProcessorCount, i);
      facts.name = device_info(i).name;
      if (with_memory && facts.unusable.empty()) ask_memory(facts);
    } catch (const Error& error) {
      if (facts.unusable.empty()) facts.unusable = error.what();
    }
    all.push_back(facts);
  }
  return all;
}

}  // namespace infer::cuda
