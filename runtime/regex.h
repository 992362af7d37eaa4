// A compiled PCRE2 pattern for tokenizers: Unicode throughout, \s as Unicode defines white space, and limits on what a
// pattern from a file can cost. Code and tables are immutable once compiled and shared by all threads; what a match
// writes belongs to a Run.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/utf8.h"

namespace infer {

class Regex {
 public:
  /// Throws Error(bad_file) when the pattern is not valid; `where` begins the message.
  Regex(std::string_view pattern, const std::string& where);
  ~Regex();
  Regex(Regex&&) noexcept;

  /// The memory of one search after another.
  class Run {
   public:
    explicit Run(const Regex& regex);
    ~Run();

   private:
    friend class Regex;
    struct Data;
    std::unique_ptr<Data> data_;
  };

  /// Begin and end of the first match at or behind `from`; `text` must be valid UTF-8. Throws Error(run) when a limit
  /// is reached.
  std::optional<std::pair<size_t, size_t>> find(std::string_view text, size_t from, Run& run) const;

  /// A pattern that matches exactly this text.
  static std::string quoted(std::string_view text);

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

/// Calls visit(begin, end) for every match in turn; matches of nothing are included, but none right behind a match.
template <class Visit>
void for_each_match(const Regex& regex, std::string_view text, Regex::Run& run, const Visit& visit) {
  size_t done = 0;
  for (size_t from = 0; from < text.size();) {
    const auto match = regex.find(text, from, run);
    if (!match) return;
    const auto [begin, end] = *match;
    if (end > begin) {
      visit(begin, end);
      done = from = end;
      continue;
    }
    if (begin > done) visit(begin, begin);
    if (begin >= text.size()) return;
    from = begin + (utf8_length(text, begin) > 0 ? utf8_length(text, begin) : 1);
  }
}

}  // namespace infer
