// `infer doctor`: processors, memory, and where the bytes of a file come from.
#include <fmt/format.h>

#include <algorithm>

#include "tools/doctor.h"
#include "tools/storage.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

std::string gibibytes(size_t bytes) { return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / 1073741824.0); }

void judge_threads(const MachineFacts& m, int n_threads, Section& out) {
  const bool beyond = m.cpu_quota && n_threads > *m.cpu_quota + 0.01;
  const bool crowded = !beyond && m.n_cores > 0 && n_threads > m.n_cores;
  out.add("threads",
          fmt::format("{} chosen; {} cores, {} logical CPUs, {} NUMA node{}", n_threads, m.n_cores, m.n_cpus, m.n_nodes,
                      m.n_nodes == 1 ? "" : "s"),
          {{"chosen", n_threads}, {"n_cores", m.n_cores}, {"n_cpus", m.n_cpus}, {"n_nodes", m.n_nodes}},
          beyond || crowded ? Mark::warn : Mark::good,
          beyond    ? fmt::format("the control group allows {:.2g} CPUs: -t {}", *m.cpu_quota,
                                  std::max(1, static_cast<int>(*m.cpu_quota)))
          : crowded ? fmt::format("more threads than cores wait for each other: -t {}", m.n_cores)
                    : "");
  if (m.cpu_quota)
    out.add("quota", fmt::format("{:.2f} CPUs by control group", *m.cpu_quota), *m.cpu_quota,
            *m.cpu_quota < m.n_cores ? Mark::warn : Mark::good,
            *m.cpu_quota < m.n_cores ? "raise the container's CPU limit to use the whole machine" : "");
  if (m.n_nodes > 1)
    out.add("numa", fmt::format("{} nodes", m.n_nodes), m.n_nodes, Mark::warn,
            "a small model is quicker within one: numactl --cpunodebind=0 --membind=0 infer ...");
}

}  // namespace

Section judge_cpu(const MachineFacts& m, const HostInfo& host, int n_threads) {
  Section out{"cpu", "CPU", {}};
  out.add("model", m.cpu.empty() ? "unknown" : escaped(m.cpu, 120), m.cpu);
  std::string features;
  for (const std::string& f : m.features) features += (features.empty() ? "" : " ") + f;
  const bool scalar = host.isa == "scalar";
  out.add(
      "isa",
      fmt::format("{} kernels; the CPU has {}", host.isa, features.empty() ? "none of AVX2, AVX-512, AMX" : features),
      {{"level", host.isa}, {"features", m.features}}, scalar ? Mark::warn : Mark::good,
      scalar ? "no AVX2: several times slower; in a virtual machine pass the host's CPU through" : "");
  judge_threads(m, n_threads, out);
  if (host.build != "optimised")
    out.add("build", host.build, host.build, Mark::warn, "for speed: make, without DEBUG=1 and ASAN=1");
  else
    out.add("build", host.build, host.build, Mark::good);
  if (m.mhz)
    out.add("clock",
            fmt::format("{:.0f} MHz{}{}", *m.mhz, m.max_mhz ? fmt::format(" of {:.0f}", *m.max_mhz) : "",
                        m.governor.empty() ? "" : ", governor " + escaped(m.governor)),
            {{"mhz", *m.mhz}, {"max_mhz", m.max_mhz.value_or(0)}, {"governor", m.governor}});
  if (m.cache_bytes > 0)
    out.add("last_cache", fmt::format("{:.0f} MiB", static_cast<double>(m.cache_bytes) / 1048576.0), m.cache_bytes);
  if (m.load) {
    const bool busy = *m.load > 0.5 * std::max(1, m.n_cores);
    out.add("load", fmt::format("{:.2f} processes computing over the last minute", *m.load), *m.load,
            busy ? Mark::warn : Mark::good, busy ? "others compute too: figures will be low, and vary" : "");
  }
  return out;
}

Section judge_memory(const MachineFacts& m, const HostInfo& host) {
  Section out{"memory", "Memory", {}};
  const size_t available = std::min(host.available_bytes, m.memory_bytes ? m.memory_bytes : host.available_bytes);
  const bool little = available < size_t{1} << 30;
  out.add("available", fmt::format("{} of {}", gibibytes(available), gibibytes(m.memory_bytes)),
          {{"available_bytes", available}, {"total_bytes", m.memory_bytes}, {"free_bytes", m.free_bytes}},
          little ? Mark::warn : Mark::good,
          little ? "too little for most models: end other programs, or raise the limit" : "");
  if (host.available_bytes < m.available_bytes / 10 * 8)
    out.add("limit", fmt::format("a control group leaves {}", gibibytes(host.available_bytes)), host.available_bytes,
            Mark::warn, "raise the container's memory limit to use the whole machine");
  if (m.swap_used_bytes > size_t{256} << 20)
    out.add("swap", fmt::format("{} in use", gibibytes(m.swap_used_bytes)), m.swap_used_bytes, Mark::warn,
            "memory was short: what is swapped out comes back slowly");
  const bool never = m.huge_pages == "never";
  out.add("huge_pages",
          fmt::format("transparent: {}; {} reserved", m.huge_pages.empty() ? "unknown" : escaped(m.huge_pages),
                      m.reserved_huge_pages),
          {{"transparent", m.huge_pages}, {"reserved", m.reserved_huge_pages}}, never ? Mark::warn : Mark::good,
          never ? "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled makes reading weights quicker" : "");
  return out;
}

std::vector<Section> check_host(const DoctorFlags& flags, Measured& measured) {
  const MachineFacts machine = read_machine();
  const HostInfo host = host_info();
  const int n_threads = flags.n_threads() > 0 ? flags.n_threads() : host.n_threads;
  std::vector<Section> out = {judge_cpu(machine, host, n_threads), judge_memory(machine, host)};
  measured.cpu_cache_bytes = machine.cache_bytes;
  if (!flags.measure) return out;
  note("measuring the CPU\n");
  measured.cpu_gops = measure_int8_peak(n_threads);
  out[0].add("int8_peak",
             fmt::format("{:.0f} GOP/s with {} thread{}", measured.cpu_gops, n_threads, n_threads == 1 ? "" : "s"),
             measured.cpu_gops, Mark::good);
  if (host.available_bytes < size_t{1} << 30) {
    out[1].add("read_bandwidth", "not measured: that takes half a gigabyte", nullptr);
    return out;
  }
  measured.cpu_gbps = measure_read_bandwidth(n_threads);
  out[1].add("read_bandwidth", fmt::format("{:.1f} GB/s", measured.cpu_gbps), measured.cpu_gbps, Mark::good);
  return out;
}

Section check_storage(const DoctorFlags& flags) {
  Section out{"storage", "Storage", {}};
  if (flags.measure) {
    const double cache = measure_page_cache();
    out.add("page_cache", fmt::format("{:.1f} GB/s with one thread", cache), cache,
            cache > 0 ? Mark::good : Mark::plain);
  }
  if (flags.model.path.empty()) return out;
  for (const std::string& file : model_files(flags.model.path)) {
    if (const auto share = cached_share(file))
      out.add("cached", fmt::format("{:.0f} % of {} in memory", 100 * *share, escaped(file, 100)), *share);
    if (!flags.measure) break;
    if (const auto disk = measure_disk(file))
      out.add("disk", fmt::format("{:.2f} GB/s past the page cache", *disk), *disk,
              *disk < 0.2 ? Mark::warn : Mark::good,
              *disk < 0.2 ? "the first start will take long: a local SSD holds models better" : "");
    else
      out.add("disk", "this file system does not read past the page cache", nullptr);
    break;  // the other parts lie beside it
  }
  return out;
}

}  // namespace infer::tools
