// See sustained.h.
#include "tools/sustained.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace infer::tools {

std::optional<double> SustainedInterval::joules_per_token() const {
  if (!watts || tokens <= 0) return std::nullopt;
  return *watts * timed_seconds / tokens;
}

double interval_seconds(double duration) { return std::clamp(duration / 20, 1.0, 10.0); }

std::string sustained_summary(const std::vector<SustainedInterval>& intervals, const std::string& why_no_energy) {
  if (intervals.empty()) return "";
  const double first = intervals.front().rate(), last = intervals.back().rate();
  double slowest = first, tokens = 0, joules = 0;
  bool all_watts = true;
  std::map<std::string, size_t> reasons;
  for (const SustainedInterval& i : intervals) {
    slowest = std::min(slowest, i.rate());
    for (const std::string& r : i.held_back) ++reasons[r];
    all_watts = all_watts && i.watts;
    tokens += i.tokens;
    if (i.watts) joules += *i.watts * i.timed_seconds;
  }
  std::string out =
      fmt::format("first {:.2f} t/s, last {:.2f} ({:+.1f} %), slowest {:.2f} ({:+.1f} %), over {:.0f} s\n", first, last,
                  100 * (last / first - 1), slowest, 100 * (slowest / first - 1), intervals.back().end);
  for (const auto& [reason, n] : reasons)
    out += fmt::format("held back by: {}, in {} of {} intervals\n", reason, n, intervals.size());
  if (reasons.empty()) out += "held back by: nothing that the device tells\n";
  if (all_watts && tokens > 0)
    out += fmt::format("energy: {:.4g} J/token\n", joules / tokens);
  else
    out += "energy: left out, " + (why_no_energy.empty() ? "its counter was silent" : why_no_energy) + '\n';
  return out;
}

}  // namespace infer::tools
