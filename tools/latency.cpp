// Quantiles and targets; see latency.h.
#include "tools/latency.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "infer/error.h"
#include "tools/units.h"

namespace infer::tools {
namespace {

[[noreturn]] void refuse(const char* why, const std::string& found, const char* allowed) {
  throw Error(ErrorKind::usage, "--sla", why, "'" + escaped(found) + "'", allowed);
}

Target parse_target(const std::string& text) {
  const size_t dot = text.find('.'), less = text.find('<');
  if (dot == text.npos || less == text.npos || less < dot) refuse("bad target", text, "itl.p99<50ms and the like");
  const std::string name = text.substr(0, dot), quantile = text.substr(dot + 1, less - dot - 1);
  const auto latency = std::find_if(kLatencies.begin(), kLatencies.end(), [&](auto& l) { return name == l.name; });
  if (latency == kLatencies.end()) refuse("unknown latency", name, "ttft, itl, e2e");
  const auto percent =
      std::find_if(kPercentiles.begin(), kPercentiles.end(), [&](int p) { return quantile == fmt::format("p{}", p); });
  if (percent == kPercentiles.end()) refuse("unknown quantile", quantile, "p50, p90, p99");
  return {*latency, *percent, parse_duration("--sla", text.substr(less + 1))};
}

}  // namespace

double percentile(std::vector<double> values, int percent) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  // Integers: of 100 values the 99th is p99, whatever 0.99 * 100 rounds to.
  const size_t rank = (values.size() * static_cast<size_t>(percent) + 99) / 100;
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(std::max<size_t>(rank, 1) - 1);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

std::string Target::name() const { return fmt::format("{}.p{}", latency.name, percent); }

std::vector<Target> parse_targets(const std::string& text) {
  std::vector<Target> targets;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    targets.push_back(parse_target(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return targets;
}

}  // namespace infer::tools
