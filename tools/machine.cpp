// See machine.h.
#include "tools/machine.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

namespace infer::tools {
namespace {

namespace fs = std::filesystem;

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::optional<double> number(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return end == text.c_str() ? std::nullopt : std::optional<double>(value);
}

// "key  : value" of /proc/cpuinfo; empty when the line is another one.
std::string value_of(const std::string& line, const std::string& key) {
  const size_t colon = line.find(':');
  if (!line.starts_with(key) || colon == line.npos || line.find_first_not_of(" \t", key.size()) != colon) return {};
  const size_t begin = line.find_first_not_of(" \t", colon + 1);
  return begin == line.npos ? std::string() : line.substr(begin);
}

void read_cpuinfo(const std::string& root, MachineFacts& m) {
  static constexpr const char* kFeatures[] = {"avx2",        "fma",         "f16c",     "avx_vnni", "avx512f",
                                              "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"};
  std::ifstream file(root + "/proc/cpuinfo");
  std::set<std::string> cores;
  std::string package;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("processor")) ++m.n_cpus;
    if (const std::string name = value_of(line, "model name"); !name.empty() && m.cpu.empty()) m.cpu = name;
    if (const std::string id = value_of(line, "physical id"); !id.empty()) package = id;
    if (const std::string id = value_of(line, "core id"); !id.empty()) cores.insert(package + ':' + id);
    const std::string flags = value_of(line, "flags");
    if (flags.empty() || !m.features.empty()) continue;
    const std::string spaced = ' ' + flags + ' ';
    for (const char* f : kFeatures)
      if (spaced.find(' ' + std::string(f) + ' ') != spaced.npos) m.features.emplace_back(f);
  }
  m.n_cores = cores.empty() ? m.n_cpus : static_cast<int>(cores.size());
}

void read_meminfo(const std::string& root, MachineFacts& m) {
  std::ifstream file(root + "/proc/meminfo");
  double swap_total = 0, swap_free = 0;
  for (std::string line; std::getline(file, line);) {
    const auto kib = [&](const char* key) { return number(value_of(line, key)).value_or(0) * 1024; };
    if (line.starts_with("MemTotal")) m.memory_bytes = static_cast<size_t>(kib("MemTotal"));
    if (line.starts_with("MemFree")) m.free_bytes = static_cast<size_t>(kib("MemFree"));
    if (line.starts_with("MemAvailable")) m.available_bytes = static_cast<size_t>(kib("MemAvailable"));
    if (line.starts_with("SwapTotal")) swap_total = kib("SwapTotal");
    if (line.starts_with("SwapFree")) swap_free = kib("SwapFree");
    if (line.starts_with("HugePages_Total"))
      m.reserved_huge_pages = static_cast<int64_t>(number(value_of(line, "HugePages_Total")).value_or(0));
  }
  m.swap_used_bytes = static_cast<size_t>(std::max(0.0, swap_total - swap_free));
}

// CPUs that one group may use: quota over period; v2 says "max" for no quota, v1 a negative one.
std::optional<double> group_quota(const std::string& folder, bool v2) {
  std::string quota, period;
  if (v2) {
    std::istringstream line(read_line(folder + "/cpu.max"));
    line >> quota >> period;
  } else {
    quota = read_line(folder + "/cpu.cfs_quota_us");
    period = read_line(folder + "/cpu.cfs_period_us");
  }
  const auto q = number(quota), p = number(period);
  if (!q || !p || *q <= 0 || *p <= 0) return std::nullopt;
  return *q / *p;
}

// The least quota of this process's groups and those above them, in both hierarchies.
std::optional<double> least_quota(const std::string& root) {
  std::optional<double> least;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first == line.npos ? first : first + 1);
    if (second == line.npos) continue;
    const std::string controllers = ',' + line.substr(first + 1, second - first - 1) + ',';
    const bool v2 = controllers == ",,";
    if (!v2 && controllers.find(",cpu,") == controllers.npos) continue;
    std::string path = line.substr(second + 1);
    for (;;) {
      if (path == "/") path.clear();
      const auto quota = group_quota(root + "/sys/fs/cgroup" + (v2 ? "" : "/cpu") + path, v2);
      if (quota && (!least || *quota < *least)) least = quota;
      if (path.empty()) break;
      const size_t slash = path.rfind('/');
      path.resize(slash == path.npos ? 0 : slash);
    }
  }
  return least;
}

int count_nodes(const std::string& root) {
  int n = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root + "/sys/devices/system/node", error)) {
    const std::string name = entry.path().filename().string();
    n += name.starts_with("node") && name.size() > 4 && name.find_first_not_of("0123456789", 4) == name.npos;
  }
  return std::max(n, 1);
}

// The largest of the caches that the first CPU sees: "32768K", "300M".
size_t largest_cache(const std::string& root) {
  double most = 0;
  for (int i = 0; i < 8; ++i) {
    const std::string text = read_line(root + "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i) + "/size");
    const double unit = text.ends_with('K') ? 1024.0 : text.ends_with('M') ? 1048576.0 : 1;
    most = std::max(most, number(text).value_or(0) * unit);
  }
  return most < 1e15 ? static_cast<size_t>(most) : 0;
}

// "always [madvise] never" to "madvise".
std::string chosen(const std::string& line) {
  const size_t open = line.find('['), close = line.find(']');
  return open == line.npos || close == line.npos || close < open ? "" : line.substr(open + 1, close - open - 1);
}

}  // namespace

std::optional<double> cpu_mhz(const std::string& root) {
  if (const auto khz = number(read_line(root + "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")))
    return *khz / 1e3;
  std::ifstream file(root + "/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (const auto mhz = number(value_of(line, "cpu MHz"))) return mhz;
  return std::nullopt;
}

std::optional<double> cpu_celsius(const std::string& root) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root + "/sys/class/thermal", error))
    if (read_line(entry.path().string() + "/type") == "x86_pkg_temp")
      if (const auto thousandths = number(read_line(entry.path().string() + "/temp"))) return *thousandths / 1e3;
  return std::nullopt;
}

std::optional<double> cpu_throttle_count(const std::string& root) {
  return number(read_line(root + "/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"));
}

MachineFacts read_machine(const std::string& root) {
  MachineFacts m;
  read_cpuinfo(root, m);
  read_meminfo(root, m);
  m.n_nodes = count_nodes(root);
  m.cache_bytes = largest_cache(root);
  m.cpu_quota = least_quota(root);
  m.load = number(read_line(root + "/proc/loadavg"));
  const std::string clock = root + "/sys/devices/system/cpu/cpu0/cpufreq/";
  m.governor = read_line(clock + "scaling_governor");
  m.mhz = cpu_mhz(root);
  if (const auto khz = number(read_line(clock + "cpuinfo_max_freq"))) m.max_mhz = *khz / 1e3;
  m.huge_pages = chosen(read_line(root + "/sys/kernel/mm/transparent_hugepage/enabled"));
  return m;
}

}  // namespace infer::tools
