// The lines of deterministic_cost.h.
#include "tools/deterministic_cost.h"

#include <fmt/format.h>

namespace infer::tools {

std::string DeterministicCost::text() const {
  if (!wanted_) return {};
  if (pairs_.empty()) return "deterministic: always so on this device, at no cost\n";
  std::string out = "cost of --deterministic:\n";
  for (const SpeedPair& p : pairs_) {
    out += fmt::format("  {}: {:.2f} t/s, without it {:.2f}", p.what, p.with, p.without);
    if (p.with > 0 && p.without > 0) out += fmt::format(" ({:.2f} times the time)", p.without / p.with);
    out += '\n';
  }
  return out;
}

}  // namespace infer::tools
