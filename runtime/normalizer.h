// Runs the steps of text_rules.h that change text. Immutable once made; const calls are safe from any number of
// threads.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/text_rules.h"

namespace infer {

class Normalizer {
 public:
  /// Compiles the patterns. Throws Error(bad_file) for one that is not valid.
  explicit Normalizer(std::vector<TextStep> steps = {});
  /// `text` must be valid UTF-8, and so is the result. `is_first`: nothing stands before it, no special token either.
  std::string apply(std::string_view text, bool is_first) const;
  bool empty() const { return steps_.empty(); }

 private:
  std::string step(const TextStep& step, size_t number, std::string text, bool is_first) const;

  std::vector<TextStep> steps_;
  std::vector<std::vector<Regex>> patterns_;  ///< of each step, none or one
};

}  // namespace infer
