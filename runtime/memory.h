// How much memory this process may still take: what the system calls available, and the limits of the control groups it
// runs in. Reads /proc and /sys; plans nothing.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace infer {

/// Bytes; page cache counts as available. Far more than any machine has where the system does not say.
size_t available_memory();

/// MemAvailable of the text of /proc/meminfo.
std::optional<size_t> meminfo_available(std::string_view text);

/// What the limits above one control group leave. `membership` is the text of /proc/self/cgroup, `mount` normally
/// /sys/fs/cgroup; both hierarchies (v2, and v1's memory controller) are read. Nothing when there is no limit.
std::optional<size_t> cgroup_available(std::string_view membership, const std::string& mount);

}  // namespace infer
