// The few functions of NVML's documented C interface that are needed, declared here: its header is not on every machine
// that builds infer. Any of them may be missing from an old library or refused for a GPU.
#include "tools/nvml.h"

#include <dlfcn.h>

#include <cstring>

namespace infer::tools {
namespace {

using Status = int;
constexpr Status kSuccess = 0;
constexpr int kClockSm = 1, kClockMemory = 2, kSensorGpu = 0, kThresholdSlowdown = 1, kUncorrected = 1, kVolatile = 0;

struct MemoryInfo {
  unsigned long long total, free, used;
};

struct PciInfo {
  char legacy_bus_id[16];
  unsigned domain, bus, device, device_id, subsystem_id;
  char bus_id[32];
};

/// Null when the library lacks it.
template <class F>
void find_symbol(void* library, const char* name, F*& function) {
  function = reinterpret_cast<F*>(dlsym(library, name));
}

/// Calls what may be missing; false when it is, or when it fails.
template <class F, class... A>
bool ask(F* function, A... arguments) {
  return function && function(arguments...) == kSuccess;
}

/// What a function with one result tells.
template <class T, class F, class... A>
std::optional<T> told(F* function, A... arguments) {
  T value{};
  if (!ask(function, arguments..., &value)) return std::nullopt;
  return value;
}

template <class T>
std::optional<double> thousandths(std::optional<T> value) {
  if (!value) return std::nullopt;
  return static_cast<double>(*value) / 1e3;
}

}  // namespace

struct Nvml::Calls {
  using OneNumber = Status(Device, unsigned*);
  Status (*init)() = nullptr;
  Status (*shutdown)() = nullptr;
  const char* (*error_string)(Status) = nullptr;
  Status (*driver_version)(char*, unsigned) = nullptr;
  Status (*count)(unsigned*) = nullptr;
  Status (*by_index)(unsigned, Device*) = nullptr;
  Status (*by_bus_id)(const char*, Device*) = nullptr;
  Status (*name)(Device, char*, unsigned) = nullptr;
  Status (*capability)(Device, int*, int*) = nullptr;
  Status (*pci_info)(Device, PciInfo*) = nullptr;
  Status (*memory)(Device, MemoryInfo*) = nullptr;
  Status (*clock)(Device, int, unsigned*) = nullptr;
  Status (*max_clock)(Device, int, unsigned*) = nullptr;
  Status (*temperature)(Device, int, unsigned*) = nullptr;
  Status (*threshold)(Device, int, unsigned*) = nullptr;
  Status (*energy)(Device, unsigned long long*) = nullptr;
  Status (*throttle)(Device, unsigned long long*) = nullptr;
  Status (*ecc)(Device, unsigned*, unsigned*) = nullptr;
  Status (*mig)(Device, unsigned*, unsigned*) = nullptr;
  Status (*ecc_errors)(Device, int, int, unsigned long long*) = nullptr;
  OneNumber *power = nullptr, *limit = nullptr, *default_limit = nullptr, *persistence = nullptr;
  OneNumber *generation = nullptr, *width = nullptr, *max_generation = nullptr, *max_width = nullptr;

  explicit Calls(void* library) {
    const auto get = [&](const char* symbol, auto*& function) { find_symbol(library, symbol, function); };
    get("nvmlInit_v2", init);
    get("nvmlShutdown", shutdown);
    get("nvmlErrorString", error_string);
    get("nvmlSystemGetDriverVersion", driver_version);
    get("nvmlDeviceGetCount_v2", count);
    get("nvmlDeviceGetHandleByIndex_v2", by_index);
    get("nvmlDeviceGetHandleByPciBusId_v2", by_bus_id);
    get("nvmlDeviceGetName", name);
    get("nvmlDeviceGetCudaComputeCapability", capability);
    get("nvmlDeviceGetPciInfo_v3", pci_info);
    get("nvmlDeviceGetMemoryInfo", memory);
    get("nvmlDeviceGetClockInfo", clock);
    get("nvmlDeviceGetMaxClockInfo", max_clock);
    get("nvmlDeviceGetTemperature", temperature);
    get("nvmlDeviceGetTemperatureThreshold", threshold);
    get("nvmlDeviceGetTotalEnergyConsumption", energy);
    get("nvmlDeviceGetCurrentClocksThrottleReasons", throttle);
    if (!throttle) get("nvmlDeviceGetCurrentClocksEventReasons", throttle);  // its newer name
    get("nvmlDeviceGetEccMode", ecc);
    get("nvmlDeviceGetMigMode", mig);
    get("nvmlDeviceGetTotalEccErrors", ecc_errors);
    get("nvmlDeviceGetPowerUsage", power);
    get("nvmlDeviceGetEnforcedPowerLimit", limit);
    get("nvmlDeviceGetPowerManagementDefaultLimit", default_limit);
    get("nvmlDeviceGetPersistenceMode", persistence);
    get("nvmlDeviceGetCurrPcieLinkGeneration", generation);
    get("nvmlDeviceGetCurrPcieLinkWidth", width);
    get("nvmlDeviceGetMaxPcieLinkGeneration", max_generation);
    get("nvmlDeviceGetMaxPcieLinkWidth", max_width);
  }
};

std::vector<std::string> throttle_reasons(uint64_t bits) {
  struct Reason {
    uint64_t bit;
    const char* name;
  };
  // Idleness, clocks that were set and displays are nobody's trouble.
  static constexpr Reason kReasons[] = {
      {0x04, "power cap"},        {0x08, "hardware slowdown"},         {0x10, "sync boost"},
      {0x20, "thermal slowdown"}, {0x40, "hardware thermal slowdown"}, {0x80, "power brake"}};
  std::vector<std::string> out;
  for (const Reason& r : kReasons)
    if (bits & r.bit) out.emplace_back(r.name);
  return out;
}

Nvml::Nvml(void* library) : library_(library), calls_(std::make_unique<Calls>(library)) {}

std::shared_ptr<Nvml> Nvml::open(std::string& why_not, const std::string& library) {
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    why_not = library + " is not there";
    return nullptr;
  }
  std::shared_ptr<Nvml> nvml(new Nvml(handle));
  const Status status = nvml->calls_->init ? nvml->calls_->init() : -1;
  if (status == kSuccess) return nvml;
  const auto* text = nvml->calls_->error_string && status > 0 ? nvml->calls_->error_string(status) : nullptr;
  why_not = library + (text ? std::string(" does not start: ") + text : " is no NVML that infer knows");
  nvml->calls_->shutdown = nullptr;  // what did not start is not ended
  return nullptr;
}

Nvml::~Nvml() {
  if (calls_->shutdown) calls_->shutdown();
  dlclose(library_);
}

std::vector<Nvml::Device> Nvml::devices() const {
  std::vector<Device> out;
  const unsigned n = told<unsigned>(calls_->count).value_or(0);
  for (unsigned i = 0; i < n; ++i)
    if (const auto device = told<Device>(calls_->by_index, i)) out.push_back(*device);
  return out;
}

Nvml::Device Nvml::find(const std::string& pci_bus_id) const {
  return told<Device>(calls_->by_bus_id, pci_bus_id.c_str()).value_or(nullptr);
}

std::string Nvml::driver_version() const {
  char text[96] = {};
  return ask(calls_->driver_version, text, static_cast<unsigned>(sizeof text - 1)) ? text : "";
}

GpuSample Nvml::sample(Device device) const {
  GpuSample s;
  s.sm_mhz = told<unsigned>(calls_->clock, device, kClockSm);
  s.memory_mhz = told<unsigned>(calls_->clock, device, kClockMemory);
  s.celsius = told<unsigned>(calls_->temperature, device, kSensorGpu);
  s.watts = thousandths(told<unsigned>(calls_->power, device));
  s.joules = thousandths(told<unsigned long long>(calls_->energy, device));
  s.throttle = told<unsigned long long>(calls_->throttle, device).value_or(0);
  return s;
}

GpuState Nvml::state(Device device) const {
  GpuState s;
  char name[96] = {};
  if (ask(calls_->name, device, name, static_cast<unsigned>(sizeof name - 1))) s.name = name;
  PciInfo pci = {};
  if (ask(calls_->pci_info, device, &pci)) s.pci_bus_id.assign(pci.bus_id, strnlen(pci.bus_id, sizeof pci.bus_id));
  int major = 0, minor = 0;
  if (ask(calls_->capability, device, &major, &minor)) s.major = major, s.minor = minor;
  s.max_sm_mhz = told<unsigned>(calls_->max_clock, device, kClockSm);
  s.max_memory_mhz = told<unsigned>(calls_->max_clock, device, kClockMemory);
  s.slowdown_celsius = told<unsigned>(calls_->threshold, device, kThresholdSlowdown);
  s.limit_watts = thousandths(told<unsigned>(calls_->limit, device));
  s.default_limit_watts = thousandths(told<unsigned>(calls_->default_limit, device));
  if (const auto on = told<unsigned>(calls_->persistence, device)) s.persistence = *on != 0;
  unsigned current = 0, pending = 0;
  if (ask(calls_->ecc, device, &current, &pending)) s.ecc = current != 0;
  if (ask(calls_->mig, device, &current, &pending)) s.mig = current != 0;
  s.uncorrected_errors = told<unsigned long long>(calls_->ecc_errors, device, kUncorrected, kVolatile);
  s.pcie_generation = told<unsigned>(calls_->generation, device);
  s.pcie_width = told<unsigned>(calls_->width, device);
  s.max_pcie_generation = told<unsigned>(calls_->max_generation, device);
  s.max_pcie_width = told<unsigned>(calls_->max_width, device);
  MemoryInfo memory = {};
  if (ask(calls_->memory, device, &memory)) s.total_bytes = memory.total, s.free_bytes = memory.free;
  s.now = sample(device);
  return s;
}

}  // namespace infer::tools
