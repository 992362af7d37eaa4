// Runs the steps of text_rules.h that change text. Immutable once made; const calls are safe from any number of
// threads.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/text_rules.h"

namespace infer {

/// Where a piece of text stands: no special token before it, none behind it.
struct Place {
  bool first = true, last = true;
};

class Normalizer {
 public:
  /// Compiles the patterns. Throws Error(bad_file), which begins with `where`, for one that is not valid.
  explicit Normalizer(std::vector<TextStep> steps = {}, const std::string& where = "tokenizer");
  /// `text` must be valid UTF-8, and so is the result.
  std::string apply(std::string_view text, Place place) const;
  bool empty() const { return steps_.empty(); }

 private:
  std::string step(const TextStep& step, size_t number, std::string text, size_t limit) const;

  std::vector<TextStep> steps_;
  std::vector<std::vector<Regex>> patterns_;  ///< of each step, none or one
};

}  // namespace infer
