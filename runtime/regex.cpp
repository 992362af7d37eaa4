// Runs patterns with PCRE2's JIT. The text is known to be valid UTF-8, so that PCRE2 need not check the rest of it
// again at every match, which would be quadratic.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "runtime/regex.h"

#include <pcre2.h>

#include <new>

#include "infer/error.h"

namespace infer {
namespace {

std::string message_of(int code) {
  PCRE2_UCHAR text[200];
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

// PCRE2's own \s adds U+180E, which stopped being white space in Unicode 6.3.
std::string with_unicode_blanks(std::string_view pattern) {
  std::string out;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '\\' || i + 1 == pattern.size()) {
      out += pattern[i];
      continue;
    }
    const char next = pattern[++i];
    if (next == 's' || next == 'S') {
      out += next == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
    } else {
      out += {'\\', next};
    }
  }
  return out;
}

struct Freed {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
};

// No pattern of our own comes near these; they bound what a pattern from a file can cost.
constexpr uint32_t kMatchLimit = 50'000'000;
constexpr uint32_t kHeapLimitKib = 256 * 1024;
constexpr size_t kMaxPatternBytes = 64 * 1024;
// \C would cut characters in two.
constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;

}  // namespace

struct Regex::Code {
  std::unique_ptr<pcre2_code, Freed> code;
  bool jit = false;
};

struct Regex::Run::Data {
  std::unique_ptr<pcre2_match_data, Freed> match;
  std::unique_ptr<pcre2_match_context, Freed> limits;
};

Regex::Regex(std::string_view pattern, const std::string& where) : code_(std::make_unique<Code>()) {
  if (pattern.size() > kMaxPatternBytes)
    throw Error(ErrorKind::bad_file, where, "pattern too long", std::to_string(pattern.size()) + " bytes",
                std::to_string(kMaxPatternBytes));
  const std::string source = with_unicode_blanks(pattern);
  int code = 0;
  PCRE2_SIZE offset = 0;
  code_->code.reset(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(), kOptions, &code, &offset, nullptr));
  if (!code_->code) throw Error(ErrorKind::bad_file, where, "pattern: " + message_of(code), escaped(source));
  // Without it everything works, more slowly.
  code_->jit = pcre2_jit_compile(code_->code.get(), PCRE2_JIT_COMPLETE) == 0;
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;

Regex::Run::Run(const Regex& regex) : data_(std::make_unique<Data>()) {
  data_->match.reset(pcre2_match_data_create_from_pattern(regex.code_->code.get(), nullptr));
  data_->limits.reset(pcre2_match_context_create(nullptr));
  if (!data_->match || !data_->limits) throw std::bad_alloc();
  pcre2_set_match_limit(data_->limits.get(), kMatchLimit);
  pcre2_set_heap_limit(data_->limits.get(), kHeapLimitKib);
}

Regex::Run::~Run() = default;

std::optional<std::pair<size_t, size_t>> Regex::find(std::string_view text, size_t from, Run& run) const {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  pcre2_match_data* data = run.data_->match.get();
  pcre2_match_context* limits = run.data_->limits.get();
  const pcre2_code* code = code_->code.get();
  int found = PCRE2_ERROR_JIT_STACKLIMIT;
  if (code_->jit) found = pcre2_jit_match(code, subject, text.size(), from, 0, data, limits);
  if (found == PCRE2_ERROR_JIT_STACKLIMIT)  // the interpreter keeps its state on the heap
    found = pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, limits);
  if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (found < 0) throw Error(ErrorKind::run, "tokenizer", "a pattern failed: " + message_of(found));
  const PCRE2_SIZE* at = pcre2_get_ovector_pointer(data);
  if (at[0] < from || at[1] < at[0])  // \K can do that
    throw Error(ErrorKind::run, "tokenizer", "a pattern matched outside the text that it was given");
  return std::pair{static_cast<size_t>(at[0]), static_cast<size_t>(at[1])};
}

std::string Regex::quoted(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c & 0x80) != 0;
    if (!plain) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace infer
