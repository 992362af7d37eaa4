// ★ The tables of what a tokenizer.json may say about text. Each "type" is one function; a sequence is its parts in
// turn.
#include <algorithm>

#include "infer/error.h"
#include "runtime/hf_tokenizer.h"

namespace infer {
namespace {

struct Handler {
  const char* type;
  void (*read)(const JsonObject&, TextRules&);
};

/// What a part is called in the file, and where the parts of a sequence stand.
struct Kind {
  const char* name;
  const char* sequence_key;
};

template <size_t N>
void read_part(const JsonObject& part, const Kind& kind, const Handler (&handlers)[N], TextRules& rules) {
  const std::string type = part.get_string("type");
  std::string known = "Sequence";
  if (type == "Sequence") {  // the depth of the file is bounded, and so is this
    const Json::array_t* parts = part.find_array(kind.sequence_key);
    if (!parts) part.refuse(kind.sequence_key, "required key is missing");
    for (const Json& one : *parts) read_part(JsonObject(one, part.where(kind.sequence_key)), kind, handlers, rules);
    return;
  }
  for (const Handler& handler : handlers) {
    if (type == handler.type) return handler.read(part, rules);
    known += ", " + std::string(handler.type);
  }
  part.refuse("type", "unsupported " + std::string(kind.name), '"' + escaped(type) + '"', known);
}

/// A pattern: {"String": ...} or {"Regex": ...}.
std::pair<std::string, bool> read_pattern(const JsonObject& part) {
  const auto pattern = part.find_object("pattern");
  if (!pattern) part.refuse("pattern", "required key is missing");
  if (const auto text = pattern->find_string("String")) return {*text, false};
  if (const auto regex = pattern->find_string("Regex")) return {*regex, true};
  part.refuse("pattern", "unusable", json_text(pattern->json()), "String or Regex");
}

template <TextStep::Kind kind>
void normal_form(const JsonObject&, TextRules& rules) {
  rules.normalizer.push_back({.kind = kind});
}

void strip(const JsonObject& part, TextRules& rules) {
  rules.normalizer.push_back({.kind = TextStep::strip,
                              .left = part.find_bool("strip_left").value_or(true),
                              .right = part.find_bool("strip_right").value_or(true)});
}

void strip_accents(const JsonObject&, TextRules& rules) {
  rules.normalizer.push_back({.kind = TextStep::replace_regex, .pattern = "\\p{M}+"});
}

void prepend(const JsonObject& part, TextRules& rules) {
  rules.normalizer.push_back({.kind = TextStep::prepend, .content = part.get_string("prepend")});
}

void replace(const JsonObject& part, TextRules& rules) {
  const auto [pattern, is_regex] = read_pattern(part);
  if (pattern.empty()) part.refuse("pattern", "is empty");
  rules.normalizer.push_back({.kind = is_regex ? TextStep::replace_regex : TextStep::replace,
                              .pattern = pattern,
                              .content = part.get_string("content")});
}

constexpr Handler kNormalizers[] = {
    {"NFC", normal_form<TextStep::nfc>},
    {"NFD", normal_form<TextStep::nfd>},
    {"NFKC", normal_form<TextStep::nfkc>},
    {"NFKD", normal_form<TextStep::nfkd>},
    {"Lowercase", normal_form<TextStep::lowercase>},
    {"Strip", strip},
    {"StripAccents", strip_accents},
    {"Prepend", prepend},
    {"Replace", replace},
};

struct Behavior {
  const char* name;
  Cut cut;
};
constexpr Behavior kBehaviors[] = {
    {"Isolated", Cut::around},          {"Removed", Cut::removed},
    {"Contiguous", Cut::together},      {"MergedWithPrevious", Cut::with_previous},
    {"MergedWithNext", Cut::with_next},
};

Cut read_behavior(const JsonObject& part) {
  const std::string name = part.get_string("behavior");
  std::string known;
  for (const Behavior& behavior : kBehaviors) {
    std::string lower = behavior.name;
    for (char& c : lower) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    if (name == behavior.name || name == lower) return behavior.cut;
    known += (known.empty() ? "" : ", ") + std::string(behavior.name);
  }
  part.refuse("behavior", "unknown behavior", '"' + escaped(name) + '"', known);
}

// Text in the alphabet of bytes is not what a pattern behind it would have been written for here: words stay in UTF-8.
void add_cut(const JsonObject& part, TextRules& rules, CutRule rule) {
  if (rules.byte_level) part.refuse("type", "a pre-tokenizer behind ByteLevel is not supported");
  rules.cuts.push_back(std::move(rule));
}

void split(const JsonObject& part, TextRules& rules) {
  const auto [pattern, is_regex] = read_pattern(part);
  if (pattern.empty()) part.refuse("pattern", "is empty");
  add_cut(part, rules,
          {is_regex ? pattern : Regex::quoted(pattern), read_behavior(part), part.find_bool("invert").value_or(false)});
}

void digits(const JsonObject& part, TextRules& rules) {
  const bool each = part.find_bool("individual_digits").value_or(false);
  add_cut(part, rules, {each ? "\\p{N}" : "\\p{N}+"});
}

void punctuation(const JsonObject& part, TextRules& rules) {
  add_cut(part, rules, {R"([\p{P}!-/:-@\[-`{-~])", part.has("behavior") ? read_behavior(part) : Cut::around});
}

void white_space_split(const JsonObject& part, TextRules& rules) { add_cut(part, rules, {"\\s", Cut::removed}); }

void white_space(const JsonObject& part, TextRules& rules) {
  add_cut(part, rules, {"\\w+|[^\\w\\s]+", Cut::removed, true});
}

/// A step that changes text; behind a cut it would change every word.
void add_step(const JsonObject& part, TextRules& rules, TextStep step) {
  if (!rules.cuts.empty() || rules.byte_level)
    part.refuse("type", "not supported behind another pre-tokenizer", json_text(*part.find("type")));
  rules.pretokenizer.push_back(std::move(step));
}

// Where the words are cut like GPT-2's, see pretokenizer_table.cpp.
void byte_level(const JsonObject& part, TextRules& rules) {
  if (part.find_bool("add_prefix_space").value_or(true))
    add_step(part, rules, {.kind = TextStep::begin_with, .content = " "});
  if (part.find_bool("use_regex").value_or(true)) add_cut(part, rules, pretokenizer_spec("gpt-2", "").rules[0]);
  rules.byte_level = true;
}

/// The mark that stands for a space, one character.
std::string read_mark(const JsonObject& part) {
  std::string mark = part.find_string("replacement").value_or("\xE2\x96\x81");
  if (mark.empty() || utf8_length(mark, 0) != mark.size())
    part.refuse("replacement", "not one character", '"' + escaped(mark) + '"');
  return mark;
}

/// Older files say add_prefix_space instead.
std::string read_prepend_scheme(const JsonObject& part) {
  const char* standard = part.find_bool("add_prefix_space").value_or(true) ? "always" : "never";
  std::string scheme = part.find_string("prepend_scheme").value_or(standard);
  if (scheme != "always" && scheme != "never" && scheme != "first")
    part.refuse("prepend_scheme", "unknown", '"' + escaped(scheme) + '"', "always, never, first");
  return scheme;
}

void metaspace(const JsonObject& part, TextRules& rules) {
  const std::string mark = read_mark(part), scheme = read_prepend_scheme(part);
  add_step(part, rules, {.kind = TextStep::replace, .pattern = " ", .content = mark});
  if (scheme != "never")
    add_step(part, rules, {.kind = TextStep::begin_with, .content = mark, .only_first = scheme == "first"});
  if (part.find_bool("split").value_or(true)) add_cut(part, rules, {Regex::quoted(mark), Cut::with_next});
}

constexpr Handler kPretokenizers[] = {
    {"ByteLevel", byte_level},
    {"Split", split},
    {"Digits", digits},
    {"Metaspace", metaspace},
    {"Punctuation", punctuation},
    {"Whitespace", white_space},
    {"WhitespaceSplit", white_space_split},
};

void nothing(const JsonObject&, TextRules&) {}

void decode_replace(const JsonObject& part, TextRules& rules) {
  const auto [pattern, is_regex] = read_pattern(part);
  if (is_regex || pattern.empty()) part.refuse("pattern", "unsupported in a decoder", json_text(part.json()), "String");
  rules.decoded.emplace_back(pattern, part.get_string("content"));
}

void decode_strip(const JsonObject& part, TextRules& rules) {
  const int64_t start = part.get_int("start", 0, INT32_MAX), stop = part.get_int("stop", 0, INT32_MAX);
  if (part.get_string("content") != " " || start > 1 || stop != 0)
    part.refuse("type", "only one space in front can be stripped", json_text(part.json()));
  rules.strips_space = start == 1;
}

void decode_metaspace(const JsonObject& part, TextRules& rules) {
  rules.decoded.emplace_back(read_mark(part), " ");
  rules.strips_space = read_prepend_scheme(part) != "never";
}

void decode_byte_level(const JsonObject& part, TextRules& rules) {
  if (!rules.byte_level) part.refuse("type", "a decoder that does not fit the pre-tokenizer", "ByteLevel");
}

constexpr Handler kDecoders[] = {
    {"ByteLevel", decode_byte_level}, {"Metaspace", decode_metaspace}, {"Replace", decode_replace},
    {"Strip", decode_strip},          {"ByteFallback", nothing},       {"Fuse", nothing},
};

/// The ids that a template's special token stands for.
void append_ids(const JsonObject& processor, const JsonObject& piece, std::vector<int32_t>& ids) {
  const auto tokens = processor.find_object("special_tokens");
  const std::string name = piece.get_string("id");
  const auto token = tokens ? tokens->find_object(name) : std::nullopt;
  const Json::array_t* list = token ? token->find_array("ids") : nullptr;
  if (!list) processor.refuse("special_tokens", "a token of the template is missing", '"' + escaped(name) + '"');
  for (const Json& id : *list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX || ids.size() == 64)
      processor.refuse("special_tokens", "unusable ids", json_text(id));
    ids.push_back(id.get<int32_t>());
  }
}

void template_processing(const JsonObject& part, TextRules& rules) {
  const Json::array_t* single = part.find_array("single");
  if (!single) part.refuse("single", "required key is missing");
  bool behind = false;
  for (const Json& one : *single) {
    const JsonObject piece(one, part.where("single"));
    if (const auto token = piece.find_object("SpecialToken")) {
      append_ids(part, *token, behind ? rules.after : rules.before);
    } else if (piece.has("Sequence") && !behind) {
      behind = true;
    } else {
      part.refuse("single", "unusable template", json_text(one), "special tokens around one sequence");
    }
  }
  if (!behind) part.refuse("single", "unusable template", "no sequence", "special tokens around one sequence");
}

constexpr Handler kProcessors[] = {{"ByteLevel", nothing}, {"TemplateProcessing", template_processing}};

}  // namespace

TextRules read_text_rules(const JsonObject& root) {
  TextRules rules;
  if (const auto part = root.find_object("normalizer"))
    read_part(*part, {"normalizer", "normalizers"}, kNormalizers, rules);
  if (const auto part = root.find_object("pre_tokenizer"))
    read_part(*part, {"pre-tokenizer", "pretokenizers"}, kPretokenizers, rules);
  if (const auto part = root.find_object("post_processor"))
    read_part(*part, {"post-processor", "processors"}, kProcessors, rules);
  const auto decoder = root.find_object("decoder");
  if (decoder) read_part(*decoder, {"decoder", "decoders"}, kDecoders, rules);
  if (!decoder && !rules.byte_level) root.refuse("decoder", "a tokenizer without a decoder is not supported");
  return rules;
}

}  // namespace infer
