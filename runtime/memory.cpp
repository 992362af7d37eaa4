// Available memory from /proc/meminfo and the control groups.
#include "runtime/memory.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <iterator>

namespace infer {
namespace {

std::string read_small(const std::string& path) {
  std::ifstream file(path);
  std::string text(std::istreambuf_iterator<char>(file), {});
  return text;
}

std::optional<size_t> number(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  return value;
}

// The number after `key` at the beginning of a line.
std::optional<size_t> value_of(std::string_view text, std::string_view key) {
  for (size_t at = 0; at < text.size(); at = text.find('\n', at), at += at < text.size())
    if (text.substr(at).starts_with(key)) return number(text.substr(at + key.size()));
  return std::nullopt;
}

void take_least(std::optional<size_t>& least, std::optional<size_t> value) {
  if (value && (!least || *value < *least)) least = value;
}

// limit - usage of one group; file pages it holds can be dropped, so they are not usage.
std::optional<size_t> group_available(const std::string& folder, const char* limit_name, const char* usage_name,
                                      const char* prefix) {
  const auto limit = number(read_small(folder + "/" + limit_name));  // v2 says "max" for none: no number
  const auto usage = number(read_small(folder + "/" + usage_name));
  if (!limit || !usage || *limit >= size_t{1} << 60) return std::nullopt;  // v1 says a huge number for none
  const std::string stat = read_small(folder + "/memory.stat");
  const size_t files = value_of(stat, std::string(prefix) + "inactive_file ").value_or(0) +
                       value_of(stat, std::string(prefix) + "active_file ").value_or(0);
  const size_t held = *usage - std::min(*usage, files);
  return *limit - std::min(*limit, held);
}

}  // namespace

std::optional<size_t> meminfo_available(std::string_view text) {
  const auto kib = value_of(text, "MemAvailable:");
  if (!kib || *kib > SIZE_MAX / 1024) return std::nullopt;
  return *kib * 1024;
}

std::optional<size_t> cgroup_available(std::string_view membership, const std::string& mount) {
  std::optional<size_t> least;
  while (!membership.empty()) {
    const size_t end = std::min(membership.find('\n'), membership.size());
    const std::string_view line = membership.substr(0, end);
    membership.remove_prefix(std::min(end + 1, membership.size()));
    // id:controllers:path; v2 has no controllers there.
    const size_t first = line.find(':'), second = line.find(':', first == line.npos ? first : first + 1);
    if (second == line.npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && controllers != "memory") continue;
    std::string path(line.substr(second + 1));
    if (path == "/") path.clear();
    const std::string root = v2 ? mount : mount + "/memory";
    // Every group above counts. In a container the path may not exist below the mount; its top then is the group.
    for (;;) {
      take_least(least, v2 ? group_available(root + path, "memory.max", "memory.current", "")
                           : group_available(root + path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"));
      if (path.empty()) break;
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
  return least;
}

size_t available_memory() {
  std::optional<size_t> least = size_t{1} << 60;
  take_least(least, meminfo_available(read_small("/proc/meminfo")));
  take_least(least, cgroup_available(read_small("/proc/self/cgroup"), "/sys/fs/cgroup"));
  return *least;
}

}  // namespace infer
