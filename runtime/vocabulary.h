// What a model's files say about its tokens, typed and checked, in no particular file format: the input of Tokenizer.
// Nothing here encodes text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/checkpoint.h"
#include "runtime/text_rules.h"

namespace infer {

/// The values are those of GGUF's tokenizer.ggml.token_type.
enum class TokenType : uint8_t {
  undefined = 0,
  normal = 1,
  unknown = 2,
  control = 3,       ///< never printed in an answer, never read from text that a user wrote
  user_defined = 4,  ///< found in any text before anything else is tokenized
  unused = 5,
  byte = 6,  ///< named <0xHH>: stands for one byte
};

struct Vocabulary {
  std::string source;  ///< a path, for messages
  /// "llama": SentencePiece-style; "gpt2": byte-level BPE; and with `rules`: "bpe", "unigram".
  std::string model;
  std::string pre;   ///< name of the pre-tokenizer; only byte-level BPE has one
  std::string name;  ///< of the model: some families have rules of their own
  std::vector<std::string> tokens;
  std::vector<float> scores;        ///< as long as tokens, or empty
  std::vector<TokenType> types;     ///< as long as tokens, or empty: all normal
  std::vector<std::string> merges;  ///< two tokens with merge_separator between them
  char merge_separator = ' ';
  std::optional<TextRules> rules;                  ///< of tokenizer.json
  std::vector<std::pair<int32_t, uint8_t>> roles;  ///< bits of TokenRole that the file gives to a token
  std::vector<int32_t> ends;                       ///< further tokens that end an answer
  int32_t bos = -1, eos = -1, eot = -1, eom = -1, unk = -1, sep = -1, pad = -1;
  int32_t fim_pad = -1, fim_rep = -1, fim_sep = -1;  ///< fill-in-the-middle tokens that end an answer
  std::optional<bool> add_bos, add_eos, add_space_prefix, remove_extra_spaces;
  bool nfc = false;  ///< without `rules`: text is brought into the normal form first
  /// The types are known to be right, as in tokenizer.json. Those of a GGUF are corrected by well-known texts.
  bool types_are_final = false;
  std::vector<std::string> warnings;  ///< one line each, escaped

  int32_t size() const { return static_cast<int32_t>(tokens.size()); }
  TokenType type(int32_t id) const { return types.empty() ? TokenType::normal : types[static_cast<size_t>(id)]; }
  /// Whether text may turn into this token by itself. Control tokens are not reachable: text that a user wrote never
  /// becomes one, even where the merges would allow it.
  bool reachable(int32_t id) const;
  size_t n_bytes() const;  ///< of all tokens together
};

/// Keys of our own, of files made from folders: what else a tokenizer.json says and no other key does.
inline constexpr const char *kNfcKey = "infer.tokenizer.nfc", *kTypesKey = "infer.tokenizer.types_are_final";

/// The vocabulary of a GGUF; nothing when the file has none (tokenizer.ggml.model absent, "none" or "no_vocab").
/// Throws Error(bad_file) for a tokenizer model that is not supported and for every malformed value.
std::optional<Vocabulary> vocabulary_from(const Checkpoint& checkpoint);

/// Checks sizes and ids, whoever filled the vocabulary. Throws Error(bad_file).
void validate(const Vocabulary& vocabulary);

/// The byte that a byte token stands for: exactly <0x, two hexadecimal digits, >.
std::optional<uint8_t> byte_of(const std::string& token);

}  // namespace infer
