// In sorted order all tokens that share a beginning lie side by side, and the shortest of them comes first: each
// further byte of the text narrows the range, and a token ends where the first of the range is as long as the
// beginning.
#include "runtime/special_tokens.h"

#include <algorithm>

namespace infer {

void SpecialTokens::add(std::string_view text, int32_t id, bool user_defined) {
  if (!text.empty()) entries_.push_back({std::string(text), id, user_defined});
}

void SpecialTokens::finish() {
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.text < b.text; });
  for (uint32_t i = 0; i < entries_.size(); ++i) {
    Range& range = first_[static_cast<uint8_t>(entries_[i].text[0])];
    if (range.end == 0) range.begin = i;
    range.end = i + 1;
  }
}

SpecialTokens::Hit SpecialTokens::match(std::string_view text, size_t at, size_t control_end) const {
  Hit best;
  const Range range = first_[static_cast<uint8_t>(text[at])];
  auto begin = entries_.begin() + range.begin;
  auto end = entries_.begin() + range.end;
  for (size_t depth = 1; begin != end; ++depth) {
    if (begin->text.size() == depth) {
      if (begin->user_defined || at + depth <= control_end) best = {at, at + depth, begin->id};
      ++begin;
    }
    if (at + depth == text.size()) break;
    const auto byte = static_cast<uint8_t>(text[at + depth]);
    const auto key = [depth](const Entry& e) { return static_cast<uint8_t>(e.text[depth]); };
    begin = std::partition_point(begin, end, [&](const Entry& e) { return key(e) < byte; });
    end = std::partition_point(begin, end, [&](const Entry& e) { return key(e) == byte; });
  }
  return best;
}

}  // namespace infer
