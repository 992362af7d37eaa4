// Runs the patterns. PCRE2 with its JIT: code and tables of a pattern are immutable once compiled and shared by all
// threads; what a match writes belongs to the call. The text is known to be valid UTF-8, so that PCRE2 need not check
// the rest of it again at every match, which would be quadratic.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "runtime/pretokenizer.h"

#include <pcre2.h>

#include <optional>

#include "infer/error.h"
#include "runtime/utf8.h"

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

// No pattern of the table comes near these; they bound what a pattern from a file can cost.
constexpr uint32_t kMatchLimit = 50'000'000;
constexpr uint32_t kHeapLimitKib = 256 * 1024;

}  // namespace

/// One compiled rule.
class Pretokenizer::Pattern {
 public:
  explicit Pattern(const CutRule& rule) : cut_(rule.cut) {
    const std::string source = with_unicode_blanks(rule.pattern);
    int code = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(), PCRE2_UTF | PCRE2_UCP, &code,
                              &offset, nullptr));
    if (!code_) {
      throw Error(ErrorKind::bad_file, "tokenizer", "pre-tokenizer pattern: " + message_of(code), escaped(source));
    }
    jit_ = pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE) == 0;  // without it everything works, more slowly
  }

  /// What one call of split() owns.
  struct Run {
    std::unique_ptr<pcre2_match_data, Freed> data;
    std::unique_ptr<pcre2_match_context, Freed> limits;
    explicit Run(const Pattern& pattern)
        : data(pcre2_match_data_create_from_pattern(pattern.code_.get(), nullptr)),
          limits(pcre2_match_context_create(nullptr)) {
      if (!data || !limits) throw std::bad_alloc();
      pcre2_set_match_limit(limits.get(), kMatchLimit);
      pcre2_set_heap_limit(limits.get(), kHeapLimitKib);
    }
  };

  /// Calls emit(end) for every piece of `piece` in turn.
  template <class Emit>
  void cut(std::string_view piece, Run& run, const Emit& emit) const {
    size_t done = 0;
    for (size_t from = 0; from < piece.size();) {
      const auto match = find(piece, from, run);
      if (!match) break;
      const auto [begin, end] = *match;
      if (end == begin) {  // of no pattern in the table
        from = begin < piece.size() ? begin + std::max<size_t>(1, utf8_length(piece, begin)) : begin + 1;
        continue;
      }
      if (begin > done) emit(begin);
      if (cut_ == Cut::in_threes) cut_in_threes(piece, begin, end, emit);
      emit(end);
      done = from = end;
    }
    if (done < piece.size()) emit(piece.size());
  }

 private:
  std::optional<std::pair<size_t, size_t>> find(std::string_view piece, size_t from, Run& run) const {
    const auto* text = reinterpret_cast<PCRE2_SPTR>(piece.data());
    pcre2_match_data* data = run.data.get();
    int found = PCRE2_ERROR_JIT_STACKLIMIT;
    if (jit_) found = pcre2_jit_match(code_.get(), text, piece.size(), from, 0, data, run.limits.get());
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its state on the heap
      found =
          pcre2_match(code_.get(), text, piece.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, run.limits.get());
    }
    if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
    if (found < 0) throw Error(ErrorKind::run, "tokenizer", "the pre-tokenizer failed: " + message_of(found));
    const PCRE2_SIZE* at = pcre2_get_ovector_pointer(data);
    return std::pair{static_cast<size_t>(at[0]), static_cast<size_t>(at[1])};
  }

  template <class Emit>
  static void cut_in_threes(std::string_view piece, size_t begin, size_t end, const Emit& emit) {
    size_t n = 0;
    for (size_t at = begin; at < end; at += utf8_length(piece, at)) ++n;
    size_t left = n;
    for (size_t at = begin; at < end; at += utf8_length(piece, at), --left) {
      if (left % 3 == 0 && at > begin) emit(at);
    }
  }

  std::unique_ptr<pcre2_code, Freed> code_;
  Cut cut_;
  bool jit_ = false;
};

Pretokenizer::Pretokenizer(const std::vector<CutRule>& rules) {
  for (const CutRule& rule : rules) patterns_.push_back(std::make_unique<Pattern>(rule));
}

Pretokenizer::~Pretokenizer() = default;

std::vector<uint32_t> Pretokenizer::split(std::string_view text) const {
  std::vector<uint32_t> ends, next;
  if (text.empty()) return ends;
  ends.push_back(static_cast<uint32_t>(text.size()));
  for (const auto& pattern : patterns_) {
    Pattern::Run run(*pattern);
    next.clear();
    size_t begin = 0;
    for (const uint32_t end : ends) {
      pattern->cut(text.substr(begin, end - begin), run,
                   [&](size_t at) { next.push_back(static_cast<uint32_t>(begin + at)); });
      begin = end;
    }
    ends.swap(next);
  }
  return ends;
}

}  // namespace infer
