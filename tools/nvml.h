// What NVIDIA's management library says of GPUs: clocks, power, temperature, PCIe, ECC. The library is opened when it
// is asked for, and its absence is an answer; what it does not tell of a GPU is absent too. Computes nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace infer::tools {

/// What changes from moment to moment.
struct GpuSample {
  std::optional<unsigned> sm_mhz, memory_mhz, celsius;
  std::optional<double> watts;
  std::optional<double> joules;  ///< since the driver was loaded
  uint64_t throttle = 0;         ///< reasons why the clocks are not higher, see throttle_reasons()
};

struct GpuState {
  std::string name, pci_bus_id;
  std::optional<int> major, minor;  ///< compute capability
  std::optional<unsigned> max_sm_mhz, max_memory_mhz, slowdown_celsius;
  std::optional<double> limit_watts, default_limit_watts;
  std::optional<bool> ecc, persistence, mig;
  std::optional<uint64_t> uncorrected_errors;  ///< of ECC, since the driver was loaded
  std::optional<unsigned> pcie_generation, pcie_width, max_pcie_generation, max_pcie_width;
  std::optional<size_t> total_bytes, free_bytes;
  GpuSample now;
};

/// The reasons of GpuSample::throttle that slow a GPU down against its owner's wish: "power cap", "thermal slowdown"
/// ...
std::vector<std::string> throttle_reasons(uint64_t bits);

class Nvml {
 public:
  /// Null when the library is not there or does not start; `why_not` then says so.
  static std::shared_ptr<Nvml> open(std::string& why_not, const std::string& library = "libnvidia-ml.so.1");
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  using Device = void*;
  std::vector<Device> devices() const;
  /// As CUDA spells it, "0000:17:00.0"; null when there is none.
  Device find(const std::string& pci_bus_id) const;
  std::string driver_version() const;  ///< "580.65.06"; empty when it is not told
  GpuState state(Device device) const;
  GpuSample sample(Device device) const;

 private:
  explicit Nvml(void* library);
  struct Calls;
  void* library_;
  std::unique_ptr<Calls> calls_;
};

}  // namespace infer::tools
