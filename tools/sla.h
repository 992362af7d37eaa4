// The search for the most requests at once that keep a promise: doubling, then bisection. Pure logic on a probe.
#pragma once

#include <cstdint>
#include <functional>

namespace infer::tools {

struct SlaAnswer {
  int64_t most = 0;        ///< the largest number that was seen to keep it; 0: not even one does
  int64_t first_miss = 0;  ///< the smallest that was seen not to; 0: none up to the limit
};

/// `keeps(n)` is asked for 1, 2, 4 ... up to `limit`, then between the last yes and the first no, until these are next
/// to each other or as close as a sixteenth. `stopped` is asked before each of them.
SlaAnswer search_most(int64_t limit, const std::function<bool(int64_t n)>& keeps, const std::function<bool()>& stopped);

}  // namespace infer::tools
