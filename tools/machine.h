// What /proc and /sys say of this machine's processors and memory, with the limits of the control groups on the way.
// Reads and measures nothing else; a file that is not there leaves its field empty.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace infer::tools {

struct MachineFacts {
  std::string cpu;                    ///< model name
  std::vector<std::string> features;  ///< those that matter for arithmetic: "avx2", "amx_int8" ...
  int n_cpus = 0;                     ///< that the system has, threads of one core counted apart
  int n_cores = 0;
  int n_nodes = 0;                     ///< of NUMA
  std::optional<double> cpu_quota;     ///< CPUs that the control groups allow
  std::optional<double> load;          ///< processes that want to compute, over the last minute
  std::string governor;                ///< of the first CPU's clock
  std::optional<double> mhz, max_mhz;  ///< of the first CPU
  size_t cache_bytes = 0;              ///< the largest cache of the first CPU
  size_t memory_bytes = 0, free_bytes = 0, available_bytes = 0, swap_used_bytes = 0;
  std::string huge_pages;  ///< transparent ones: "always", "madvise", "never"
  int64_t reserved_huge_pages = 0;
};

/// `root` stands before every path.
MachineFacts read_machine(const std::string& root = "");

/// Of the first package, where the system tells it.
std::optional<double> cpu_celsius(const std::string& root = "");
/// Times that the CPU has slowed down because it was too hot, since the system started.
std::optional<double> cpu_throttle_count(const std::string& root = "");
/// Megahertz of the first CPU at this moment.
std::optional<double> cpu_mhz(const std::string& root = "");

}  // namespace infer::tools
