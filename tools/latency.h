// What requests felt: time to the first token (TTFT), time between tokens (ITL), time to the end (E2E), as quantiles.
// Knows lists of seconds and the names people give to them; who measured them is no concern of it.
#pragma once

#include <array>
#include <string>
#include <vector>

namespace infer::tools {

/// Seconds of all requests of a run.
struct Latencies {
  std::vector<double> ttft;  ///< from arrival to the first token, waiting included
  std::vector<double> itl;   ///< between one token of a request and the next
  std::vector<double> e2e;   ///< from arrival to the end
};

/// The names and lists, in the order of the columns.
struct Latency {
  const char* name;
  std::vector<double> Latencies::*seconds;
};
inline constexpr std::array<Latency, 3> kLatencies = {
    {{"ttft", &Latencies::ttft}, {"itl", &Latencies::itl}, {"e2e", &Latencies::e2e}}};
inline constexpr std::array<int, 3> kPercentiles = {50, 90, 99};

/// The smallest of the values that so many per cent of them do not exceed; NaN when there are none.
double percentile(std::vector<double> values, int percent);

/// One condition of --sla: "itl.p99<50ms".
struct Target {
  Latency latency;
  int percent;
  double limit;  ///< seconds; kept when below
  std::string name() const;
  double value(const Latencies& l) const { return percentile(l.*latency.seconds, percent); }
  /// Without a single measurement nothing is known to be kept.
  bool kept(const Latencies& l) const { return value(l) < limit; }
};
/// "itl.p99<50ms,ttft.p99<500ms". Throws Error(usage) naming what is unknown.
std::vector<Target> parse_targets(const std::string& text);

}  // namespace infer::tools
