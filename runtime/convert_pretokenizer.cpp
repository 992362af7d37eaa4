// From the cuts that a tokenizer.json writes out to the name that a GGUF file has for them. Both are brought into one
// spelling and compared whole: a name is given only where every rule is the same.
#include <algorithm>

#include "infer/error.h"
#include "runtime/convert.h"
#include "runtime/utf8.h"

namespace infer {
namespace {

/// Ways to write the same, left as tokenizer.json files have it and right as pretokenizer_table.cpp does. Longer ones
/// come first.
constexpr std::pair<std::string_view, std::string_view> kSpellings[] = {
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "(?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?"},
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"},
    {"'(?i:[sdmt]|ll|ve|re)", "'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"},
    {"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])", "'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"},
    {"'(?:[sdmt]|ll|ve|re)", "'s|'t|'re|'ve|'m|'ll|'d"},
};

/// Characters in the place of \x{HHHH}, but for those below 128, which may mean something.
std::string with_characters(const std::string& pattern) {
  std::string out;
  for (size_t at = 0; at < pattern.size();) {
    const size_t end = pattern.compare(at, 3, "\\x{") == 0 ? pattern.find('}', at) : std::string::npos;
    const uint32_t c =
        end == std::string::npos ? 0 : static_cast<uint32_t>(std::strtoul(pattern.c_str() + at + 3, nullptr, 16));
    if (c < 0x80 || c > 0x10FFFF) {
      out += pattern[at++];
      continue;
    }
    utf8_append(out, c);
    at = end + 1;
  }
  return out;
}

std::string in_one_spelling(std::string pattern) {
  if (pattern == "\\s+$") return "(?<!\\s)\\s++$";  // the same matches, found in linear time
  for (const auto& [from, to] : kSpellings)
    for (size_t at = pattern.find(from); at != std::string::npos; at = pattern.find(from, at + to.size()))
      pattern.replace(at, from.size(), to);
  return with_characters(pattern);
}

/// A pattern that matches every character leaves nothing between its matches to be removed.
bool matches_everything(const std::string& pattern) {
  return pattern.find("[^\\s\\p{L}") != std::string::npos && pattern.ends_with("|\\s+(?!\\S)|\\s+");
}

bool same(const CutRule& file, const CutRule& known) {
  const bool around = (file.cut == Cut::around && !file.invert) ||
                      (file.cut == Cut::removed && file.invert && matches_everything(file.pattern));
  return (around ? known.cut == Cut::around : file.cut == known.cut && file.invert == known.invert) &&
         in_one_spelling(file.pattern) == in_one_spelling(known.pattern);
}

std::string patterns_of(const TextRules& rules) {
  std::string out;
  for (const CutRule& rule : rules.cuts) out += (out.empty() ? "" : ", then ") + escaped(rule.pattern, 400);
  return out.empty() ? "none" : out;
}

}  // namespace

std::string pretokenizer_name(const TextRules& rules, const std::string& where) {
  std::string with_other_merges;
  for (const std::string& name : pretokenizer_names()) {
    const PretokenizerSpec spec = pretokenizer_spec(name, where);
    if (!std::equal(rules.cuts.begin(), rules.cuts.end(), spec.rules.begin(), spec.rules.end(), same)) continue;
    if (spec.ignore_merges == rules.ignore_merges) return name;
    if (with_other_merges.empty()) with_other_merges = name;
  }
  // Whether ignoring merges makes a difference at all, the comparison of both forms finds out.
  if (!with_other_merges.empty()) return with_other_merges;
  throw Error(ErrorKind::bad_file, where + ": pre_tokenizer", "no name that GGUF files have means these cuts",
              patterns_of(rules), "those of gpt-2, llama-bpe, qwen2, smollm, gpt-4o, tekken ...");
}

}  // namespace infer
