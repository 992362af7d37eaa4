// Energy that a device takes: NVML's counter of a GPU, RAPL's of the CPU's packages. Whether it can be read depends on
// machine and rights, and where it cannot, the reason is kept. Knows nothing of what is computed meanwhile.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tools/nvml.h"

namespace infer::tools {

/// Energy counters of the CPU's packages and their memory. They wrap: joules() must be called every minute or so.
class Rapl {
 public:
  explicit Rapl(const std::string& root = "/sys/class/powercap");
  const std::string& why_not() const { return why_not_; }  ///< empty when there is something to read
  double joules();                                         ///< since construction

 private:
  struct Zone {
    std::string folder;
    double last = 0, range = 0;  ///< microjoules
  };
  std::vector<Zone> zones_;
  std::string why_not_;
  double microjoules_ = 0;
};

class EnergyMeter {
 public:
  /// Of the device that a model is computed on, as ModelInfo::device says it.
  static EnergyMeter of_device(const std::string& device);
  EnergyMeter(std::shared_ptr<Nvml> nvml, Nvml::Device gpu) : nvml_(std::move(nvml)), gpu_(gpu) {}
  explicit EnergyMeter(Rapl rapl) : rapl_(std::move(rapl)), why_not_(rapl_->why_not()) {}
  explicit EnergyMeter(std::string why_not) : why_not_(std::move(why_not)) {}

  const std::string& why_not() const { return why_not_; }  ///< empty when joules() tells something
  /// Since some moment. A GPU without a counter is asked for its power, which holds from one call to the next.
  std::optional<double> joules();
  /// Clocks and so on; nothing on a CPU.
  std::optional<GpuSample> sample() const;

 private:
  std::shared_ptr<Nvml> nvml_;
  Nvml::Device gpu_ = nullptr;
  std::optional<Rapl> rapl_;
  std::string why_not_;
  double summed_ = 0;
  std::chrono::steady_clock::time_point last_{};
};

/// The power since construction. Counters move in steps of up to a tenth of a second: nothing is said of less than
/// kShortest.
class PowerAverage {
 public:
  static constexpr double kShortest = 0.3;  ///< seconds
  /// `meter` may be null.
  explicit PowerAverage(EnergyMeter* meter);
  std::optional<double> watts() const;

 private:
  EnergyMeter* meter_;
  std::optional<double> joules_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace infer::tools
