// Requests that come to an engine while others are under way, and what each of them felt: by a process of arrivals
// (open loop: they come whether or not the engine keeps up), or so many at once always (closed loop). Knows an engine
// and a clock; what is asked, and tables, are others' business.
#pragma once

#include <functional>

#include "infer.h"
#include "tools/arrival.h"
#include "tools/latency.h"

namespace infer::tools {

/// Time as a load sees it; tests have one of their own.
struct LoadClock {
  std::function<double()> now;             ///< seconds
  std::function<void(double)> wait_until;  ///< may return earlier
  std::function<bool()> stopped;           ///< asked between steps: an end before the end
};
/// The machine's, and Ctrl-C.
LoadClock real_clock();

/// The i-th request of a run.
using RequestSource = std::function<Request(int64_t i)>;

struct LoadResult {
  Latencies felt;
  int64_t n_arrived = 0, n_finished = 0;
  int64_t n_unfinished = 0;               ///< arrived and not served to the end when the run was over
  int64_t tokens_in = 0, tokens_out = 0;  ///< prompts that were computed and tokens that came in `seconds`
  double seconds = 0;
  int64_t max_running = 0;
  int64_t n_preempted = 0;
  double in_rate() const { return static_cast<double>(tokens_in) / seconds; }
  double out_rate() const { return static_cast<double>(tokens_out) / seconds; }
};

/// Requests arrive for `duration` seconds (0: until the process ends); tokens are counted in that time, or until all is
/// done where no more can come. What has
/// arrived by then is served, for as long again at most. What still waits after that counts with the time it has waited
/// wherever that is longer than all that were served had to.
LoadResult run_arrivals(Engine& engine, const RequestSource& source, ArrivalTimes arrivals, double duration,
                        const LoadClock& clock);

/// `n` requests always under way. The first ones end one after another, so that they do not all go in step; when they
/// are gone the measurement begins, and it lasts `duration` seconds, or up to three times that until as many as are
/// under way have had their first token.
LoadResult run_at_once(Engine& engine, const RequestSource& source, int64_t n, double duration, const LoadClock& clock);

}  // namespace infer::tools
