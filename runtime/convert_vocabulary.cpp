// From the text rules of a folder to the tokenizer models of GGUF files, which imply theirs. What a model cannot say is
// refused by name; two things that every converter leaves out, and that matter to few texts, are told instead.
#include <algorithm>
#include <unordered_map>

#include "infer/error.h"
#include "runtime/convert.h"
#include "runtime/convert_check.h"
#include "runtime/regex.h"
#include "runtime/sentencepiece_model.h"
#include "runtime/spm.h"
#include "runtime/token_roles.h"

namespace infer {
namespace {

constexpr float kAddedScore = -1000;  // of tokens that no merge makes

/// Files call tokens special that are, and some that are not; those of these forms are.
bool looks_special(std::string_view text) {
  static constexpr std::string_view kBar = "\xEF\xBD\x9C";
  const auto between = [&](std::string_view before, std::string_view behind) {
    return text.starts_with(before) && text.ends_with(behind) && text.size() >= before.size() + behind.size();
  };
  return text == "<pad>" || text == "<mask>" || text == "<2mass>" || text == "[@BOS@]" || between("<|", "|>") ||
         between("<" + std::string(kBar), std::string(kBar) + ">") || between("<unused", ">");
}

/// As tokenizer.json names it.
const char* name_of(TextStep::Kind kind) {
  constexpr const char* kNames[] = {"NFC",   "NFD",     "NFKC",    "NFKD",    "Lowercase",
                                    "Strip", "Prepend", "Replace", "Replace", "a space in front of the text"};
  return kNames[kind];
}

class VocabularyConverter {
 public:
  VocabularyConverter(const Vocabulary& from, int64_t rows, std::vector<std::string>& notes)
      : from_(from), rows_(rows), notes_(notes), out_(from) {}

  Vocabulary run() {
    if (!from_.rules) {
      out_.pre = "default";  // tokenizer.model alone: said in GGUF's terms already
    } else if (from_.model == "unigram") {
      unigram_form();
    } else if (from_.rules->byte_level) {
      byte_level_form();
    } else {
      sentencepiece_form();
    }
    if (from_.rules) put_additions();
    out_.rules.reset();
    out_.roles.clear();
    out_.ends.clear();
    fit_rows();
    name_tokens();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const char* part, const std::string& message, const std::string& found,
                           const std::string& allowed) const {
    throw Error(ErrorKind::bad_file, escaped(from_.source) + ": " + part, message, found, allowed);
  }

  void byte_level_form() {
    for (const TextStep& step : from_.rules->normalizer)
      if (step.kind != TextStep::nfc) refuse("normalizer", "GGUF files cannot say it", name_of(step.kind), "none, NFC");
    out_.nfc = !from_.rules->normalizer.empty();
    if (out_.nfc)
      notes_.push_back(
          "normalizer NFC: other programs than this one encode text in other forms of Unicode as it comes");
    if (!from_.rules->pretokenizer.empty())
      refuse("pre_tokenizer", "GGUF files cannot say it", "a space in front of the text", "add_prefix_space false");
    out_.model = "gpt2";
    out_.pre = pretokenizer_name(*from_.rules, escaped(from_.source));
    out_.merge_separator = ' ';
    for (std::string& merge : out_.merges) {
      if (merge.find(' ') != std::string::npos)
        refuse("merges", "a space inside a token", '"' + escaped(merge) + '"', "");
      merge[merge.find(from_.merge_separator)] = ' ';
    }
    out_.scores.clear();
  }

  // The steps of SentencePiece models, as converters of tokenizers write them in one of several ways.
  void read_space_steps() {
    const std::string mark(kSpaceMark);
    bool marks = false;
    out_.add_space_prefix = false;
    for (const auto* steps : {&from_.rules->normalizer, &from_.rules->pretokenizer}) {
      for (const TextStep& step : *steps) {
        const bool content = step.content == mark || (step.content == " " && !marks);
        if (step.kind == TextStep::replace && step.pattern == " " && step.content == mark) {
          marks = true;
        } else if ((step.kind == TextStep::prepend || step.kind == TextStep::begin_with) && content) {
          out_.add_space_prefix = true;
          only_first_ = step.only_first;
          soft_ = step.kind == TextStep::begin_with;
        } else {
          refuse("normalizer", "GGUF files cannot say it", name_of(step.kind), "spaces to U+2581, one in front");
        }
      }
    }
    if (!marks) refuse("normalizer", "GGUF files cannot say it", "spaces that stay spaces", "spaces to U+2581");
    for (const CutRule& cut : from_.rules->cuts) {
      const bool none = cut.pattern == Regex::quoted(" ") && cut.cut != Cut::removed;  // none is left
      const bool marked = cut.pattern == Regex::quoted(mark) && cut.cut == Cut::with_next;
      if (!none && !marked)
        refuse("pre_tokenizer", "GGUF files cannot say it", escaped(cut.pattern, 400), "cuts before U+2581, or none");
    }
    if (only_first_)
      notes_.push_back("text behind a special token begins with a space in GGUF files, and not in this folder");
    if (soft_) notes_.push_back("text that begins with a space gets one more in GGUF files, and not in this folder");
  }

  void sentencepiece_form() {
    if (!from_.rules->byte_fallback)
      refuse("model", "GGUF files cannot say it", "BPE of characters without byte_fallback",
             "byte-level BPE, byte_fallback");
    read_space_steps();
    out_.model = "llama";
    out_.pre = "default";
    out_.merges.clear();
    score_by_merges();
  }

  // Scores are the merges in another form: what merges earlier has the higher one.
  void score_by_merges() {
    std::unordered_map<std::string_view, size_t> ids;
    for (size_t i = 0; i < from_.tokens.size(); ++i) ids.emplace(from_.tokens[i], i);
    out_.scores.assign(from_.tokens.size(), kAddedScore);
    std::vector<bool> scored(from_.tokens.size(), false);
    float next = 0;
    for (const std::string& merge : from_.merges) {
      std::string made = merge;
      made.erase(made.find(from_.merge_separator), 1);
      const auto found = ids.find(made);
      if (found == ids.end() || scored[found->second]) continue;
      scored[found->second] = true;
      out_.scores[found->second] = next--;
    }
    for (size_t i = 0; i < scored.size(); ++i) {
      const TokenType type = from_.type(static_cast<int32_t>(i));
      if (!scored[i] && type == TokenType::normal) out_.scores[i] = next--;
      if (type == TokenType::byte) out_.scores[i] = 0;
    }
  }

  void unigram_form() {
    if (from_.rules->byte_fallback)
      refuse("model", "GGUF files cannot say it", "Unigram with byte_fallback", "Unigram without, BPE");
    if (!has_unigram_steps()) {
      out_.remove_extra_spaces = false;
      read_space_steps();
    }
    out_.model = "t5";
    out_.pre = "default";
  }

  /// Whether the steps are those of a tokenizer.model, which GGUF's keys name.
  bool has_unigram_steps() {
    const auto same = [](const TextStep& a, const TextStep& b) {
      return a.kind == b.kind && a.pattern == b.pattern && a.content == b.content && a.only_first == b.only_first &&
             a.only_last == b.only_last;
    };
    for (const bool strips : {false, true}) {
      for (const bool prefix : {false, true}) {
        const std::vector<TextStep> steps = unigram_rules({strips, prefix}).pretokenizer,
                                    &have = from_.rules->pretokenizer;
        if (!std::equal(steps.begin(), steps.end(), have.begin(), have.end(), same)) continue;
        out_.remove_extra_spaces = strips;
        out_.add_space_prefix = prefix;
        return from_.rules->normalizer.empty() && from_.rules->cuts.empty();
      }
    }
    return false;
  }

  void put_additions() {
    const TextRules& rules = *from_.rules;
    const auto only = [&](const std::vector<int32_t>& ids, int32_t& id, const char* what) {
      if (ids.size() == 1 && id < 0) id = ids[0];
      if (!ids.empty() && (ids.size() > 1 || ids[0] != id))
        refuse("post_processor", std::string("GGUF files can put nothing but one ") + what + " there",
               '"' + escaped(from_.tokens[static_cast<size_t>(ids[0])]) + '"' + (ids.size() > 1 ? " and more" : ""),
               id < 0 ? "" : '"' + escaped(from_.tokens[static_cast<size_t>(id)]) + '"');
      return !ids.empty();
    };
    out_.add_bos = only(rules.before, out_.bos, "BOS");
    out_.add_eos = only(rules.after, out_.eos, "EOS");
    const auto bits = kStripsLeft | kStripsRight | kSingleWord;
    const auto strips = std::count_if(from_.roles.begin(), from_.roles.end(),
                                      [&](const auto& role) { return (role.second & bits) != 0; });
    if (strips > 0)
      notes_.push_back(std::to_string(strips) +
                       " special tokens take the white space beside them or stand for whole words only: GGUF files "
                       "cannot say it");
  }

  /// As many tokens as the embedding has rows.
  void fit_rows() {
    const auto n = static_cast<size_t>(rows_), had = out_.tokens.size();
    if (out_.types.empty()) out_.types.assign(had, TokenType::normal);
    for (size_t i = n; i < had; ++i)
      if (out_.types[i] == TokenType::normal || out_.types[i] == TokenType::byte)
        refuse("vocab", "more tokens than rows of the embedding", std::to_string(had), "at most " + std::to_string(n));
    if (had > n) notes_.push_back(std::to_string(had - n) + " added tokens have no row of the embedding: left out");
    out_.tokens.resize(n);
    out_.types.resize(n, TokenType::unused);
    if (!out_.scores.empty()) out_.scores.resize(n, kAddedScore);
    for (int32_t Vocabulary::*id : {&Vocabulary::bos, &Vocabulary::eos, &Vocabulary::eot, &Vocabulary::eom,
                                    &Vocabulary::unk, &Vocabulary::sep, &Vocabulary::pad})
      if (out_.*id >= static_cast<int32_t>(n)) out_.*id = -1;
  }

  void name_tokens() {
    for (size_t i = 0; i < out_.tokens.size(); ++i) {
      std::string& text = out_.tokens[i];
      const bool hole = text.empty() || text.starts_with('\xFF');
      if (hole) text = "[PAD" + std::to_string(i) + "]";
      if (hole) out_.types[i] = TokenType::unused;
      if (out_.types[i] == TokenType::user_defined && looks_special(text)) out_.types[i] = TokenType::control;
    }
  }

  const Vocabulary& from_;
  int64_t rows_;
  std::vector<std::string>& notes_;
  Vocabulary out_;
  bool only_first_ = false, soft_ = false;
};

}  // namespace

Vocabulary convert_vocabulary(const Vocabulary& vocabulary, int64_t rows, std::vector<std::string>& notes) {
  Vocabulary out = VocabularyConverter(vocabulary, rows, notes).run();
  check_converted(vocabulary, out, notes);
  return out;
}

void put_vocabulary(const Vocabulary& v, Checkpoint& checkpoint) {
  const auto put = [&](const char* key, Value value) {
    checkpoint.metadata.insert_or_assign(std::string("tokenizer.ggml.") + key, std::move(value));
  };
  put("model", {v.model, "string"});
  if (!v.pre.empty()) put("pre", {v.pre, "string"});
  put("tokens", {v.tokens, "array of string"});
  std::vector<int64_t> types;
  for (const TokenType type : v.types) types.push_back(static_cast<int64_t>(type));
  put("token_type", {types, "array of i32"});
  if (!v.scores.empty()) put("scores", {std::vector<double>(v.scores.begin(), v.scores.end()), "array of f32"});
  if (!v.merges.empty() || v.model == "gpt2") put("merges", {v.merges, "array of string"});
  for (const auto& [key, id] : {std::pair("bos_token_id", v.bos),
                                {"eos_token_id", v.eos},
                                {"eot_token_id", v.eot},
                                {"eom_token_id", v.eom},
                                {"unknown_token_id", v.unk},
                                {"padding_token_id", v.pad}})
    if (id >= 0) put(key, {int64_t{id}, "u32"});
  if (v.add_bos) put("add_bos_token", {*v.add_bos, "bool"});
  if (v.add_eos) put("add_eos_token", {*v.add_eos, "bool"});
  if (v.types_are_final) checkpoint.metadata.insert_or_assign(kTypesKey, Value{true, "bool"});
  if (v.nfc) checkpoint.metadata.insert_or_assign(kNfcKey, Value{true, "bool"});
  if (v.add_space_prefix) put("add_space_prefix", {*v.add_space_prefix, "bool"});
  if (v.remove_extra_spaces) put("remove_extra_whitespaces", {*v.remove_extra_spaces, "bool"});
}

}  // namespace infer
