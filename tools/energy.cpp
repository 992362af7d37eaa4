// See energy.h.
#include "tools/energy.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "infer.h"

namespace infer::tools {
namespace {

namespace fs = std::filesystem;

std::optional<double> read_number(const std::string& path) {
  std::ifstream file(path);
  double value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

std::string read_word(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

}  // namespace

// Zones are "intel-rapl:0" for a package (on AMD too) and "intel-rapl:0:1" for a part of it. Of the parts only memory
// lies outside the package's own figure.
Rapl::Rapl(const std::string& root) {
  std::error_code error;
  bool unreadable = false;
  for (const auto& entry : fs::directory_iterator(root, error)) {
    const std::string folder = entry.path().string(), file = entry.path().filename().string();
    if (!file.starts_with("intel-rapl:")) continue;
    const std::string name = read_word(folder + "/name");
    if (!name.starts_with("package") && name != "dram") continue;
    const auto now = read_number(folder + "/energy_uj");
    if (!now)
      unreadable = true;
    else
      zones_.push_back({folder, *now, read_number(folder + "/max_energy_range_uj").value_or(0)});
  }
  if (zones_.empty())
    why_not_ = unreadable ? root + "/intel-rapl:*/energy_uj may not be read by this user"
                          : root + " has no energy counters (RAPL)";
}

double Rapl::joules() {
  for (Zone& zone : zones_) {
    const auto now = read_number(zone.folder + "/energy_uj");
    if (!now) continue;
    microjoules_ += *now >= zone.last ? *now - zone.last : *now + std::max(0.0, zone.range - zone.last);
    zone.last = *now;
  }
  return microjoules_ / 1e6;
}

EnergyMeter EnergyMeter::of_device(const std::string& device) {
  if (!device.starts_with("cuda")) return EnergyMeter(Rapl());
  int index = 0;
  if (device.size() > 5 && device[4] == ':') index = std::atoi(device.c_str() + 5);
  std::string why_not;
  const std::shared_ptr<Nvml> nvml = Nvml::open(why_not);
  if (!nvml) return EnergyMeter(why_not);
  for (const GpuInfo& gpu : list_gpus())
    if (gpu.index == index)
      if (Nvml::Device found = nvml->find(gpu.pci_bus_id)) return {nvml, found};
  return EnergyMeter("NVML does not know the GPU of " + device);
}

std::optional<GpuSample> EnergyMeter::sample() const {
  if (!nvml_) return std::nullopt;
  return nvml_->sample(gpu_);
}

std::optional<double> EnergyMeter::joules() {
  if (!why_not_.empty()) return std::nullopt;
  if (rapl_) return rapl_->joules();
  const GpuSample now = nvml_->sample(gpu_);
  if (now.joules) return now.joules;
  if (!now.watts) {
    why_not_ = "the GPU tells neither its energy nor its power";
    return std::nullopt;
  }
  const auto time = std::chrono::steady_clock::now();
  if (last_ != std::chrono::steady_clock::time_point{})
    summed_ += *now.watts * std::chrono::duration<double>(time - last_).count();
  last_ = time;
  return summed_;
}

PowerAverage::PowerAverage(EnergyMeter* meter) : meter_(meter), start_(std::chrono::steady_clock::now()) {
  if (meter_) joules_ = meter_->joules();
}

std::optional<double> PowerAverage::watts() const {
  if (!meter_ || !joules_) return std::nullopt;
  const auto now = meter_->joules();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  if (!now || seconds < kShortest) return std::nullopt;
  return (*now - *joules_) / seconds;
}

}  // namespace infer::tools
