// Text to token ids and back: splits off special tokens, hands the text between them to the subword model, adds BOS and
// EOS as the file says, and knows which tokens end an answer and what each prints. Immutable after construction; const
// calls are safe from any number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/normalizer.h"
#include "runtime/special_tokens.h"
#include "runtime/subword.h"
#include "runtime/text_index.h"
#include "runtime/token_roles.h"
#include "runtime/vocabulary.h"

namespace infer {

/// A stretch of a prompt. Control tokens are recognised only where `parse_special` is true, so that what a template
/// writes can be told from what a user wrote.
struct TextPiece {
  std::string_view text;
  bool parse_special = true;
};

class Tokenizer {
 public:
  /// Throws Error(bad_file) for a vocabulary that is malformed or needs something that is not supported.
  explicit Tokenizer(Vocabulary vocabulary);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  /// add_special: BOS and EOS when the model wants them. Throws Error(usage) for 2 GiB of text and more.
  std::vector<int32_t> encode(std::string_view text, bool add_special = true, bool parse_special = true) const;
  /// The pieces are one text: words and user-defined tokens may span them, control tokens never leave the pieces that
  /// parse them.
  std::vector<int32_t> encode(std::span<const TextPiece> pieces, bool add_special = true) const;

  /// The exact bytes; special tokens print their text. A vocabulary with a space prefix drops one leading space of the
  /// first token. Ids outside the vocabulary print nothing.
  std::string decode(std::span<const int32_t> ids) const;
  /// What the token adds to a streamed answer: bytes, maybe a part of a character; empty for control tokens.
  const std::string& piece(int32_t id) const;
  /// The token as the file names it; empty for an id outside the vocabulary.
  const std::string& text_of(int32_t id) const;
  /// The token of that name.
  std::optional<int32_t> find(std::string_view text) const;

  int64_t n_tokens() const { return vocabulary_.size(); }
  const Vocabulary& vocabulary() const { return vocabulary_; }
  int32_t bos() const { return vocabulary_.bos; }  ///< -1: none; the same for the others
  int32_t eos() const { return vocabulary_.eos; }
  int32_t eot() const { return vocabulary_.eot; }
  bool adds_bos() const { return adds_bos_; }
  bool adds_eos() const { return adds_eos_; }
  bool is_eog(int32_t id) const { return has(id, kEndsAnswer); }  ///< ends an answer
  bool is_control(int32_t id) const;
  TokenType type(int32_t id) const;  ///< undefined for an id outside the vocabulary
  std::vector<int32_t> eog_ids() const;
  /// What loading found odd but bearable; one line each, escaped.
  const std::vector<std::string>& warnings() const { return vocabulary_.warnings; }

 private:
  struct Region {
    size_t end;
    bool parse_special;
  };
  bool inside(int32_t id) const { return id >= 0 && id < vocabulary_.size(); }
  bool has(int32_t id, uint8_t role) const { return inside(id) && (roles_[static_cast<size_t>(id)] & role) != 0; }
  std::string piece_of(int32_t id) const;
  std::string decoded(std::string text) const;
  void build_model();
  void apply_rules(const TextRules& rules);
  void add_special(int32_t id);
  bool stands_alone(const SpecialTokens::Hit& hit, std::string_view text) const;
  void encode_between(std::string_view text, Place place, std::vector<int32_t>& ids) const;
  std::vector<int32_t> encode(std::string_view text, std::span<const Region> regions, bool add_special) const;
  void encode_fragments(std::string_view text, std::span<const Region> regions, std::vector<int32_t>& ids) const;

  Vocabulary vocabulary_;
  TextIndex names_;             ///< as the file names them
  std::vector<uint8_t> roles_;  ///< by id
  std::vector<std::string> pieces_;
  SpecialTokens special_;
  SpecialTokens normalized_;  ///< searched for behind normalizer_
  Normalizer normalizer_, pretokenizer_;
  std::vector<int32_t> before_, after_;  ///< what add_special adds
  std::unique_ptr<SubwordModel> model_;
  bool space_prefix_ = false, adds_bos_ = false, adds_eos_ = false;
};

}  // namespace infer
