// Finds stop strings in text that arrives in pieces, and holds text back as long as it could be the beginning of one.
// Knows no tokens: a stop string may begin in one token and end in the next.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace infer {

class StopMatcher {
 public:
  /// Throws Error(usage) for an empty stop string, one longer than 4096 bytes, or more than 64 of them.
  explicit StopMatcher(std::vector<std::string> stops);

  /// Adds text; returns what may be shown. After a match everything from the stop string on is swallowed.
  std::string push(std::string_view text);
  /// What was held back, once no more text will come.
  std::string finish();
  /// The stop string that was met, nullptr before that. Of several, the one that begins first; of those, the longest.
  const std::string* matched() const { return matched_ < stops_.size() ? &stops_[matched_] : nullptr; }

 private:
  size_t held_length() const;

  std::vector<std::string> stops_;
  std::string pending_;
  size_t matched_ = std::string::npos;  ///< index into stops_
};

}  // namespace infer
