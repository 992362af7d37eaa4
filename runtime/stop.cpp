// Stop strings across token borders.
#include "runtime/stop.h"

#include <algorithm>
#include <utility>

#include "infer/error.h"

namespace infer {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  if (stops_.size() > 64)
    throw Error(ErrorKind::usage, "stop", "too many stop strings", std::to_string(stops_.size()), "at most 64");
  for (const std::string& stop : stops_)
    if (stop.empty() || stop.size() > 4096)
      throw Error(ErrorKind::usage, "stop", "stop string of wrong length", std::to_string(stop.size()) + " bytes",
                  "1 to 4096");
}

std::string StopMatcher::push(std::string_view text) {
  if (matched()) return {};
  if (stops_.empty()) return std::string(text);
  pending_ += text;
  size_t first = std::string::npos;
  for (size_t i = 0; i < stops_.size(); ++i) {
    const size_t at = pending_.find(stops_[i]);
    if (at == std::string::npos || at > first) continue;
    if (at == first && stops_[matched_].size() >= stops_[i].size()) continue;
    first = at;
    matched_ = i;
  }
  std::string out = pending_.substr(0, matched() ? first : pending_.size() - held_length());
  pending_.erase(0, matched() ? std::string::npos : out.size());
  return out;
}

std::string StopMatcher::finish() { return std::exchange(pending_, {}); }

// Length of the longest end of pending_ that a stop string begins with.
size_t StopMatcher::held_length() const {
  size_t held = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, pending_.size()); n > held; --n)
      if (std::string_view(pending_).substr(pending_.size() - n) == std::string_view(stop).substr(0, n)) held = n;
  }
  return held;
}

}  // namespace infer
