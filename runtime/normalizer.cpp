// Normal forms come from utf8proc; text in ASCII has only one, and is left alone.
#include "runtime/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "infer/error.h"
#include "runtime/utf8.h"

namespace infer {
namespace {

constexpr size_t kMaxGrowth = 64;  // times its own length, plus the same in KiB, that all steps may make of a text

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
}

utf8proc_option_t options_of(TextStep::Kind kind) {
  int options = UTF8PROC_STABLE;
  options |= kind == TextStep::nfc || kind == TextStep::nfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (kind == TextStep::nfkc || kind == TextStep::nfkd) options |= UTF8PROC_COMPAT;
  return static_cast<utf8proc_option_t>(options);
}

std::string normal_form(TextStep::Kind kind, const std::string& text) {
  if (is_ascii(text)) return text;
  utf8proc_uint8_t* out = nullptr;
  const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                   static_cast<utf8proc_ssize_t>(text.size()), &out, options_of(kind));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> freed(out, &std::free);
  if (length < 0) throw Error(ErrorKind::run, "tokenizer", std::string("normalising: ") + utf8proc_errmsg(length));
  return {reinterpret_cast<const char*>(out), static_cast<size_t>(length)};
}

std::string lowercase(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t n = utf8_length(text, i);
    const uint32_t c = utf8_decode(text, i, n);
    if (c == 0x130) {  // the one letter whose small form is two characters
      out += "i\xCC\x87";
    } else {
      utf8_append(out, static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
    }
    i += n;
  }
  return out;
}

std::string stripped(const std::string& text, bool left, bool right) {
  size_t begin = 0, end = text.size();
  if (left)
    while (begin < end && blank_length(text, begin) > 0) begin += blank_length(text, begin);
  if (right)
    while (end > begin && blank_length_before(text, end) > 0) end -= blank_length_before(text, end);
  return text.substr(begin, std::max(begin, end) - begin);
}

void require_length(size_t found, size_t limit) {
  if (found > limit)
    throw Error(ErrorKind::run, "tokenizer", "normalising makes the text too long", std::to_string(found) + " bytes",
                "up to " + std::to_string(limit));
}

std::string replaced(const std::string& text, const std::string& pattern, const std::string& content, size_t limit) {
  std::string out;
  size_t from = 0;
  for (size_t at = text.find(pattern); at != std::string::npos; at = text.find(pattern, from)) {
    out.append(text, from, at - from).append(content);
    require_length(out.size(), limit);
    from = at + pattern.size();
  }
  return from == 0 ? text : out.append(text, from);
}

std::string replaced(const std::string& text, const Regex& pattern, const std::string& content, size_t limit) {
  std::string out;
  size_t done = 0;
  Regex::Run run(pattern);
  for_each_match(pattern, text, run, [&](size_t begin, size_t end) {
    out.append(text, done, begin - done).append(content);
    require_length(out.size(), limit);
    done = end;
  });
  return out.append(text, done);
}

}  // namespace

Normalizer::Normalizer(std::vector<TextStep> steps, const std::string& where) : steps_(std::move(steps)) {
  for (const TextStep& step : steps_) {
    patterns_.emplace_back();
    if (step.kind == TextStep::replace_regex) patterns_.back().emplace_back(step.pattern, where + ": normalizer");
  }
}

std::string Normalizer::apply(std::string_view text, Place place) const {
  const size_t limit = kMaxGrowth * (text.size() + 1024);
  std::string out(text);
  for (size_t i = 0; i < steps_.size(); ++i) {
    if ((steps_[i].only_first && !place.first) || (steps_[i].only_last && !place.last)) continue;
    out = step(steps_[i], i, std::move(out), limit);
    require_length(out.size(), limit);
  }
  return out;
}

std::string Normalizer::step(const TextStep& step, size_t number, std::string text, size_t limit) const {
  switch (step.kind) {
    case TextStep::nfc:
    case TextStep::nfd:
    case TextStep::nfkc:
    case TextStep::nfkd:
      return normal_form(step.kind, text);
    case TextStep::lowercase:
      return lowercase(text);
    case TextStep::strip:
      return stripped(text, step.left, step.right);
    case TextStep::prepend:
      return text.empty() ? text : step.content + text;
    case TextStep::replace:
      return replaced(text, step.pattern, step.content, limit);
    case TextStep::replace_regex:
      return replaced(text, patterns_[number][0], step.content, limit);
    case TextStep::begin_with:
      return text.empty() || text.starts_with(step.content) ? text : step.content + text;
  }
  return text;
}

}  // namespace infer
