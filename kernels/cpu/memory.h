// Memory straight from the system: zeroed, given only where it is touched, in huge pages when it is large, so that a
// stream of weights misses the TLB a thousand times less often.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace infer::cpu {

/// At least `bytes`, aligned to 64 or more. `live` counts the bytes and lives as long as the memory. Throws
/// Error(does_not_fit).
std::shared_ptr<void> map_memory(size_t bytes, const std::shared_ptr<std::atomic<int64_t>>& live);

}  // namespace infer::cpu
