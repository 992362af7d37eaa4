// `infer doctor`: GPUs, through the CUDA runtime and through NVML.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "tools/doctor.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

std::string gibibytes(size_t bytes) { return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / 1073741824.0); }

std::string version(int number) { return fmt::format("{}.{}", number / 1000, number % 1000 / 10); }

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& w : words) out += (out.empty() ? "" : ", ") + w;
  return out;
}

void judge_identity(const GpuInfo* cuda, const GpuState* state, Section& out) {
  const std::string name = cuda && !cuda->name.empty() ? cuda->name : state ? state->name : "unknown";
  std::string text = escaped(name);
  ordered_json value = {{"name", name}};
  const int major = cuda ? cuda->major : state->major.value_or(0),
            minor = cuda ? cuda->minor : state->minor.value_or(0);
  if (major > 0) {
    text += fmt::format(", compute capability {}.{}", major, minor);
    value["compute_capability"] = fmt::format("{}.{}", major, minor);
  }
  if (cuda && cuda->n_sms > 0) {
    text += fmt::format(", {} SMs", cuda->n_sms);
    value["n_sms"] = cuda->n_sms;
  }
  if (!cuda)
    out.add("name", text, value, Mark::warn,
            "this program cannot use it: see the line of the driver, or build with nvcc");
  else if (!cuda->unusable.empty())
    out.add("name", text, value, Mark::warn, "cannot be used: " + cuda->unusable);
  else
    out.add("name", text, value, Mark::good);
  if (!cuda || cuda->driver_version == 0) return;
  out.add("driver",
          fmt::format("for CUDA {}; runtime {}", version(cuda->driver_version), version(cuda->runtime_version)),
          {{"cuda", version(cuda->driver_version)}, {"runtime", version(cuda->runtime_version)}}, Mark::good);
}

void judge_memory_of(const GpuInfo* cuda, const GpuState* state, Section& out) {
  const bool asked = cuda && cuda->total_bytes > 0;
  const size_t total = asked ? cuda->total_bytes : state ? state->total_bytes.value_or(0) : 0;
  const size_t free = asked ? cuda->free_bytes : state ? state->free_bytes.value_or(0) : 0;
  if (total == 0) return;
  const bool taken = free < total / 2;
  out.add("memory", fmt::format("{} free of {}", gibibytes(free), gibibytes(total)),
          {{"free_bytes", free}, {"total_bytes", total}}, taken ? Mark::warn : Mark::good,
          taken ? "other programs hold the rest; nvidia-smi lists them" : "");
}

void judge_clocks(const GpuState& s, Section& out) {
  const std::vector<std::string> reasons = throttle_reasons(s.now.throttle);
  if (s.now.sm_mhz) {
    // At their power limit GPUs clock lower than they could: that is how they are built, unless somebody lowered it.
    constexpr uint64_t kPowerCap = 0x4;
    const bool slowed = !throttle_reasons(s.now.throttle & ~kPowerCap).empty();
    out.add("clock",
            fmt::format("{} MHz{}{}", *s.now.sm_mhz, s.max_sm_mhz ? fmt::format(" of {}", *s.max_sm_mhz) : "",
                        reasons.empty() ? "" : ", held back by " + joined(reasons)),
            {{"mhz", *s.now.sm_mhz}, {"max_mhz", s.max_sm_mhz.value_or(0)}, {"throttle", reasons}},
            slowed ? Mark::warn : Mark::good,
            slowed ? "look after cooling and power: nvidia-smi -q -d PERFORMANCE" : "");
  }
  if (s.now.memory_mhz)
    out.add(
        "memory_clock",
        fmt::format("{} MHz{}", *s.now.memory_mhz, s.max_memory_mhz ? fmt::format(" of {}", *s.max_memory_mhz) : ""),
        {{"mhz", *s.now.memory_mhz}, {"max_mhz", s.max_memory_mhz.value_or(0)}});
  if (s.limit_watts) {
    const bool capped = s.default_limit_watts && *s.limit_watts < *s.default_limit_watts * 0.99;
    out.add("power_limit",
            fmt::format("{:.0f} W{}{}", *s.limit_watts,
                        s.default_limit_watts ? fmt::format(" of {:.0f}", *s.default_limit_watts) : "",
                        s.now.watts ? fmt::format(", {:.0f} now", *s.now.watts) : ""),
            {{"watts", *s.limit_watts},
             {"default_watts", s.default_limit_watts.value_or(0)},
             {"now_watts", s.now.watts.value_or(0)}},
            capped ? Mark::warn : Mark::good,
            capped ? fmt::format("power-capped: nvidia-smi -pl {:.0f} gives it back", *s.default_limit_watts) : "");
  }
  if (s.now.celsius) {
    const bool hot = s.slowdown_celsius && *s.now.celsius + 5 > *s.slowdown_celsius;
    out.add("temperature",
            fmt::format("{} °C{}", *s.now.celsius,
                        s.slowdown_celsius ? fmt::format(", slows down at {}", *s.slowdown_celsius) : ""),
            *s.now.celsius, hot ? Mark::warn : Mark::good,
            hot ? "nearly as hot as it may be: look after its cooling" : "");
  }
}

void judge_health(const GpuState& s, Section& out) {
  if (s.ecc) {
    const uint64_t errors = s.uncorrected_errors.value_or(0);
    out.add("ecc",
            fmt::format("{}, {} uncorrected errors", *s.ecc ? "on (takes some bandwidth where memory is GDDR)" : "off",
                        errors),
            {{"on", *s.ecc}, {"uncorrected_errors", errors}}, errors ? Mark::warn : Mark::good,
            errors ? "results may be wrong: reset or replace the GPU, nvidia-smi -q -d ECC" : "");
  }
  if (s.mig && *s.mig) out.add("mig", "on: this is a slice of a GPU", true);
  if (s.persistence && !*s.persistence)
    out.add("persistence", "off: the driver starts anew with every program", false, Mark::plain,
            "nvidia-smi -pm 1 makes programs start sooner");
}

/// `loaded`: null where the GPU had nothing to do, and its link may have slowed down to save power.
void judge_pcie(const GpuState& idle, const GpuState* loaded, Section& out) {
  const GpuState& seen = loaded ? *loaded : idle;
  if (!seen.pcie_generation || !seen.pcie_width) return;
  const unsigned generation = std::max(*seen.pcie_generation, idle.pcie_generation.value_or(0));
  const unsigned width = std::max(*seen.pcie_width, idle.pcie_width.value_or(0));
  const unsigned most = seen.max_pcie_generation.value_or(generation), widest = seen.max_pcie_width.value_or(width);
  const bool narrow = width < widest, slow = generation < most;
  std::string advice;
  if (narrow)
    advice = "fewer lanes than the GPU has: another slot or riser; loading suffers, generation hardly";
  else if (slow && loaded)
    advice = "an older generation than GPU and slot allow: look into the BIOS; loading suffers, generation hardly";
  out.add("pcie",
          fmt::format("generation {} of {}, x{} of x{}{}", generation, most, width, widest,
                      slow && !loaded ? "; idle links slow down" : ""),
          {{"generation", generation}, {"max_generation", most}, {"width", width}, {"max_width", widest}},
          advice.empty() ? Mark::good : Mark::warn, advice);
}

int wanted_index(const DoctorFlags& flags, const std::vector<GpuInfo>& gpus) {
  const std::string& device = flags.model.load.device;
  if (device == "cpu" || device == "ref") return -1;
  if (device.starts_with("cuda")) return device.size() > 5 ? std::atoi(device.c_str() + 5) : 0;
  for (const GpuInfo& g : gpus)
    if (g.unusable.empty()) return g.index;
  return -1;
}

void measure(const GpuInfo& gpu, const GpuState* idle, const Nvml* nvml, Nvml::Device handle, Measured& measured,
             Section& section) {
  try {
    note("measuring {}\n", gpu.name);
    const GpuCopySpeeds copies = measure_gpu_copies(gpu.index);
    std::optional<GpuState> copied, loaded;
    if (handle) copied = nvml->state(handle);
    measured.gpu_gbps = measure_gpu_read_bandwidth();
    measured.gpu_tflops = measure_gpu_tensor_peak();
    if (handle) {
      loaded = nvml->state(handle);
      loaded->pcie_generation = copied->pcie_generation, loaded->pcie_width = copied->pcie_width;
    }
    const std::string key = section.key, title = section.title;
    section = judge_gpu(&gpu, idle, loaded ? &*loaded : nullptr);
    section.key = key, section.title = title;
    judge_copies(copies, loaded ? &*loaded : nullptr, section);
    section.add("read_bandwidth", fmt::format("{:.0f} GB/s", measured.gpu_gbps), measured.gpu_gbps, Mark::good);
    section.add("tensor_peak", fmt::format("{:.0f} TFLOPS of bf16", measured.gpu_tflops), measured.gpu_tflops,
                Mark::good);
  } catch (const Error& error) {
    section.add("measuring", error.what(), error.what(), Mark::warn, "the figures above are all there is");
  }
}

}  // namespace

Section judge_gpu(const GpuInfo* cuda, const GpuState* state, const GpuState* loaded) {
  Section out;
  judge_identity(cuda, state, out);
  judge_memory_of(cuda, state, out);
  if (!state) return out;
  const GpuState& busy = loaded ? *loaded : *state;
  judge_clocks(busy, out);
  judge_health(*state, out);
  judge_pcie(*state, loaded, out);
  return out;
}

void judge_copies(const GpuCopySpeeds& c, const GpuState* loaded, Section& out) {
  // GB/s of a lane, after its coding; packets take some more.
  static constexpr double kLane[] = {0, 0.25, 0.5, 0.985, 1.969, 3.938, 7.563};
  double possible = 0;
  if (loaded && loaded->pcie_generation && loaded->pcie_width && *loaded->pcie_generation < std::size(kLane))
    possible = kLane[*loaded->pcie_generation] * *loaded->pcie_width;
  const bool slow = possible > 0 && std::min(c.pinned_to_device, c.pinned_from_device) < 0.6 * possible;
  out.add("copy_pinned",
          fmt::format("{:.1f} GB/s to the GPU, {:.1f} from it{}", c.pinned_to_device, c.pinned_from_device,
                      possible > 0 ? fmt::format("; the link carries {:.1f}", possible) : ""),
          {{"to_device", c.pinned_to_device}, {"from_device", c.pinned_from_device}, {"link", possible}},
          slow ? Mark::warn : Mark::good,
          slow ? "the GPU may hang on another processor's memory: numactl --cpunodebind, or nvidia-smi topo -m" : "");
  out.add("copy_pageable",
          fmt::format("{:.1f} GB/s to the GPU, {:.1f} from it", c.pageable_to_device, c.pageable_from_device),
          {{"to_device", c.pageable_to_device}, {"from_device", c.pageable_from_device}});
  out.add("copy_on_device", fmt::format("{:.0f} GB/s, read and written", c.on_device), c.on_device);
}

std::vector<Section> check_gpus(const DoctorFlags& flags, Measured& measured) {
  std::string why_not;
  const std::shared_ptr<Nvml> nvml = Nvml::open(why_not);
  const std::vector<GpuInfo> gpus = list_gpus(flags.measure);
  const int wanted = wanted_index(flags, gpus);
  std::vector<Section> out;
  const auto start = [&](size_t index, const Section& judged) {
    out.push_back(judged);
    out.back().key = fmt::format("gpu{}", index);
    out.back().title = fmt::format("GPU {}", index);
  };
  for (const GpuInfo& gpu : gpus) {
    const Nvml::Device handle = nvml ? nvml->find(gpu.pci_bus_id) : nullptr;
    std::optional<GpuState> state;
    if (handle) state = nvml->state(handle);
    start(static_cast<size_t>(gpu.index), judge_gpu(&gpu, state ? &*state : nullptr, nullptr));
    if (flags.measure && gpu.index == wanted && gpu.unusable.empty())
      measure(gpu, state ? &*state : nullptr, nvml.get(), handle, measured, out.back());
  }
  if (gpus.empty() && nvml)  // those that the program cannot reach
    for (const Nvml::Device handle : nvml->devices()) {
      const GpuState state = nvml->state(handle);
      start(out.size(), judge_gpu(nullptr, &state, nullptr));
    }
  Section general{"gpu", "GPUs", {}};
  for (const std::string& line : list_unusable_devices())
    if (gpus.empty()) general.add("cuda", line, line, out.empty() ? Mark::plain : Mark::warn);
  const std::string driver = nvml ? nvml->driver_version() : "";
  if (nvml)
    general.add("nvml", driver.empty() ? "there" : "driver " + driver, driver, Mark::good);
  else
    general.add("nvml", why_not, nullptr, gpus.empty() ? Mark::plain : Mark::warn,
                gpus.empty() ? "" : "it comes with the driver; without it clocks, power and PCIe are not told");
  out.insert(out.begin(), general);
  return out;
}

}  // namespace infer::tools
