// What the devices are, and what one can do, measured: the two limits that speeds are compared with, and copies. Free
// of CUDA headers. Each measurement takes memory of the current device, takes well under half a second and gives the
// memory back; when there is too little for the full size a quarter of it must do, and when there is not even that,
// Error(does_not_fit) says so.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace infer::cuda {

/// GB/s at which all SMs together read device memory, far more of it than any cache holds. Best of several passes.
double read_bandwidth_gbps();
/// 1e12 operations/s of a bf16 product of 8192 x 8192 x 8192 random numbers through cuBLASLt; a multiply and an add are
/// two. Best of several runs. Throws Error(run) without cuBLASLt.
double tensor_peak_tflops();

/// GB/s of copies, best of several; makes device `index` the current one.
struct CopySpeeds {
  double pinned_to_device = 0, pinned_from_device = 0, pageable_to_device = 0, pageable_from_device = 0;
  double on_device = 0;  ///< bytes copied, which are read and written
};
CopySpeeds copy_speeds(int index);

/// A device whether or not it can be used.
struct DeviceFacts {
  int index = 0;
  std::string name, unusable, pci_bus_id;
  int major = 0, minor = 0, n_sms = 0, driver_version = 0, runtime_version = 0;
  size_t total_bytes = 0, free_bytes = 0;
};
/// `with_memory` leaves a context on each that can be used, and the current device as it was.
std::vector<DeviceFacts> device_facts(bool with_memory);

}  // namespace infer::cuda
