// Applies the rules one after the other, each to the pieces that the one before it left.
#include "runtime/pretokenizer.h"

#include "infer/error.h"
#include "runtime/utf8.h"

namespace infer {
namespace {

/// The pieces of one rule, inside one piece of the text.
class Cutter {
 public:
  Cutter(Cut cut, bool invert, std::vector<Span>& out) : cut_(cut), invert_(invert), out_(out) {}

  void cut(const Regex& regex, std::string_view text, Span piece, Regex::Run& run) {
    text_ = text;
    base_ = piece.begin;
    first_ = out_.size();
    after_match_ = false;
    size_t done = 0;
    const std::string_view subject = text.substr(piece.begin, piece.end - piece.begin);
    for_each_match(regex, subject, run, [&](size_t begin, size_t end) {
      add(done, begin, invert_);
      add(begin, end, !invert_);
      done = end;
    });
    add(done, subject.size(), invert_);
    if (cut_ == Cut::with_next) join_with_next();
  }

 private:
  void add(size_t begin, size_t end, bool is_match) {
    if (begin == end) return;
    const Span span{static_cast<uint32_t>(base_ + begin), static_cast<uint32_t>(base_ + end)};
    const bool after_match = after_match_, is_first = out_.size() == first_;
    after_match_ = is_match;
    if (is_match && cut_ == Cut::removed) return;
    if (is_match && cut_ == Cut::in_threes) return add_threes(span);
    const bool joins =
        (cut_ == Cut::together && after_match == is_match) || (cut_ == Cut::with_previous && is_match && !after_match);
    if (joins && !is_first) {
      out_.back().end = span.end;
      return;
    }
    out_.push_back(span);
    if (cut_ == Cut::with_next) is_match_.push_back(is_match);
  }

  void add_threes(Span span) {
    size_t n = 0;
    for (size_t at = span.begin; at < span.end; at += utf8_length(text_, at)) ++n;
    uint32_t begin = span.begin;
    for (size_t at = span.begin; at < span.end; at += utf8_length(text_, at), --n) {
      if (n % 3 != 0 || at == span.begin) continue;
      out_.push_back({begin, static_cast<uint32_t>(at)});
      begin = static_cast<uint32_t>(at);
    }
    out_.push_back({begin, span.end});
  }

  // Each match takes the piece behind it, unless that is a match of its own.
  void join_with_next() {
    size_t to = first_;
    for (size_t i = 0; i < is_match_.size(); ++i) {
      const bool joins = i > 0 && is_match_[i - 1] && !is_match_[i];
      if (joins) {
        out_[to - 1].end = out_[first_ + i].end;
      } else {
        out_[to++] = out_[first_ + i];
      }
    }
    out_.resize(to);
    is_match_.clear();
  }

  Cut cut_;
  bool invert_;
  std::vector<Span>& out_;
  std::string_view text_;
  size_t base_ = 0, first_ = 0;
  bool after_match_ = false;
  std::vector<bool> is_match_;
};

}  // namespace

Pretokenizer::Pretokenizer(const std::vector<CutRule>& rules, const std::string& where) {
  for (const CutRule& rule : rules)
    rules_.push_back({Regex(rule.pattern, where + ": pre-tokenizer"), rule.cut, rule.invert});
}

std::vector<Span> Pretokenizer::split(std::string_view text) const {
  std::vector<Span> pieces, next;
  if (text.empty()) return pieces;
  pieces.push_back({0, static_cast<uint32_t>(text.size())});
  for (const Rule& rule : rules_) {
    Regex::Run run(rule.regex);
    next.clear();
    Cutter cutter(rule.cut, rule.invert, next);
    for (const Span piece : pieces) cutter.cut(rule.regex, text, piece, run);
    pieces.swap(next);
  }
  return pieces;
}

}  // namespace infer
