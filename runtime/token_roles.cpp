// The lists are what the model families use; the same text may end an answer in one family and be plain text in
// another, but no family has it as an ordinary word.
#include "runtime/token_roles.h"

#include <algorithm>
#include <span>
#include <string_view>

namespace infer {
namespace {

constexpr std::string_view kEndOfTurn[] = {"<|eot_id|>",
                                           "<|im_end|>",
                                           "<|end|>",
                                           "<end_of_turn>",
                                           "<|endoftext|>",
                                           "<|end_of_text|>",
                                           "<EOT>",
                                           "_<EOT>",
                                           "[EOT]",
                                           "<\xEF\xBD\x9C"
                                           "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
                                           "<end_of_utterance>"};
constexpr std::string_view kEndOfMessage[] = {"<|eom_id|>"};
constexpr std::string_view kOtherEnds[] = {"<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>",
                                           "<|eom_id|>", "[EOS]",    "<eos>",     "[e~["};
constexpr std::string_view kFimPrefix[] = {"<|fim_prefix|>",
                                           "<fim-prefix>",
                                           "<fim_prefix>",
                                           "<\xEF\xBD\x9C"
                                           "fim\xE2\x96\x81"
                                           "begin\xEF\xBD\x9C>",
                                           "<PRE>",
                                           "\xE2\x96\x81<PRE>",
                                           "<|code_prefix|>",
                                           "<|prefix|>"};
constexpr std::string_view kFimSuffix[] = {"<|fim_suffix|>",
                                           "<fim-suffix>",
                                           "<fim_suffix>",
                                           "<\xEF\xBD\x9C"
                                           "fim\xE2\x96\x81hole\xEF\xBD\x9C>",
                                           "<SUF>",
                                           "\xE2\x96\x81<SUF>",
                                           "<|code_suffix|>",
                                           "<|suffix|>"};
constexpr std::string_view kFimMiddle[] = {"<|fim_middle|>",
                                           "<fim-middle>",
                                           "<fim_middle>",
                                           "<\xEF\xBD\x9C"
                                           "fim\xE2\x96\x81"
                                           "end\xEF\xBD\x9C>",
                                           "<MID>",
                                           "\xE2\x96\x81<MID>",
                                           "<|code_middle|>",
                                           "<|middle|>"};
constexpr std::string_view kFimPad[] = {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"};
constexpr std::string_view kFimRepository[] = {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"};
constexpr std::string_view kFimFile[] = {"<|file_sep|>"};

class Assigner {
 public:
  Assigner(Vocabulary& v, const TextIndex& names) : v_(v), names_(names), roles_(v.tokens.size(), 0) {
    if (v_.types.empty()) v_.types.assign(v_.tokens.size(), TokenType::normal);
  }

  std::vector<uint8_t> run() {
    complete(v_.eot, kEndOfTurn);
    complete(v_.eom, kEndOfMessage);
    complete(v_.fim_pad, kFimPad);
    complete(v_.fim_rep, kFimRepository);
    complete(v_.fim_sep, kFimFile);
    for (const auto texts : {std::span<const std::string_view>(kFimPrefix), {kFimSuffix}, {kFimMiddle}}) {
      int32_t unused = -1;
      complete(unused, texts);
    }
    for (const auto texts : {std::span<const std::string_view>(kEndOfTurn), {kOtherEnds}}) {
      for (const std::string_view text : texts) {
        const int32_t id = names_.find(text);
        if (id < 0 || !make_control(id)) continue;
        add(id, kEndsAnswer);
      }
    }
    for (const int32_t id : {v_.eos, v_.eot, v_.eom, v_.fim_pad, v_.fim_rep, v_.fim_sep}) add(id, kEndsAnswer);
    spare_channel_ends();
    for (const int32_t id : v_.ends) add(id, kEndsAnswer);
    for (const auto& [id, role] : v_.roles) add(id, role);
    assign_stripping();
    return std::move(roles_);
  }

 private:
  // The first of `texts` that the vocabulary has, when the file did not say.
  void complete(int32_t& id, std::span<const std::string_view> texts) {
    for (size_t i = 0; i < texts.size() && id < 0; ++i) {
      const int32_t found = names_.find(texts[i]);
      if (found >= 0 && make_control(found)) id = found;
    }
  }

  // False when the token is plain text for certain.
  bool make_control(int32_t id) {
    TokenType& type = v_.types[static_cast<size_t>(id)];
    if (type == TokenType::control) return true;
    if (v_.types_are_final) return type == TokenType::user_defined;
    type = TokenType::control;
    v_.warnings.push_back("token " + std::to_string(id) + " \"" + escaped(v_.tokens[static_cast<size_t>(id)]) +
                          "\" is not marked as a control token; it is one");
    return true;
  }

  void add(int32_t id, uint8_t role) {
    if (id >= 0) roles_[static_cast<size_t>(id)] |= role;
  }

  // In families with channels <|end|> closes one message of several, and the answer goes on.
  void spare_channel_ends() {
    const auto has = [&](const char* text) { return names_.find(text) >= 0; };
    const bool channels = (has("<|return|>") && has("<|call|>")) || (has("<|flush|>") && has("<|calls|>"));
    const int32_t end = names_.find("<|end|>");
    if (channels && end >= 0 && end != v_.eos) roles_[static_cast<size_t>(end)] &= static_cast<uint8_t>(~kEndsAnswer);
  }

  // Phi-3's special tokens swallow the white space behind them. Files do not say so; the model's name does.
  void assign_stripping() {
    std::string name = v_.name;
    std::transform(name.begin(), name.end(), name.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    if (name.find("phi-3") == std::string::npos && name.find("phi3") == std::string::npos) return;
    for (int32_t id = 0; id < v_.size(); ++id) {
      const TokenType type = v_.type(id);
      const bool special = type == TokenType::control || type == TokenType::user_defined || type == TokenType::unknown;
      const std::string& text = v_.tokens[static_cast<size_t>(id)];
      if (special && text != "<unk>" && text != "<s>" && text != "<|endoftext|>") add(id, kStripsRight);
    }
  }

  Vocabulary& v_;
  const TextIndex& names_;
  std::vector<uint8_t> roles_;
};

}  // namespace

std::vector<uint8_t> assign_roles(Vocabulary& vocabulary, const TextIndex& names) {
  return Assigner(vocabulary, names).run();
}

}  // namespace infer
