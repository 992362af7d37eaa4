// BPE by merges, the model of GPT-2 and its many heirs: text is cut into words, each word is a row of symbols, and
// pairs merge in the order in which training found them. Symbols are bytes, or (tokenizer.json of SentencePiece models)
// characters. Tokens are compared as the bytes they stand for, not in the printable alphabet in which files of the
// first kind write them.
#pragma once

#include <array>
#include <optional>

#include "runtime/pretokenizer.h"
#include "runtime/subword.h"
#include "runtime/text_index.h"
#include "runtime/vocabulary.h"

namespace infer {

/// The bytes behind a token's text: files write each byte as one printable character. Nothing when the text has a
/// character outside that alphabet.
std::optional<std::string> bytes_of_printable(const std::string& text);
/// The reverse.
std::string printable_of_bytes(std::string_view bytes);

class Bpe final : public SubwordModel {
 public:
  /// Throws Error(bad_file) for malformed merges and for an unknown pre-tokenizer.
  Bpe(const Vocabulary& vocabulary, const PretokenizerSpec& spec);
  void encode(std::string_view text, bool at_start, std::vector<int32_t>& ids) const override;
  /// Merges that name something that is not a token. They are never applied.
  size_t n_skipped_merges() const { return n_skipped_; }

 private:
  struct PairSlot {
    uint64_t pair = UINT64_MAX;  ///< left << 32 | right
    Merge merge;
  };
  void read_merges(const Vocabulary& vocabulary);
  size_t slot_of(uint64_t pair) const;
  Merge merge_of(int32_t left, int32_t right) const;
  std::optional<std::string> text_of(const std::string& token) const;
  void add_character(std::string_view word, size_t at, MergeScratch& scratch) const;
  void encode_word(std::string_view word, MergeScratch& scratch, std::vector<int32_t>& ids) const;

  Pretokenizer pretokenizer_;
  bool ignore_merges_;
  bool byte_level_ = true, byte_fallback_ = false, fuse_unknown_ = false;
  int32_t unk_ = -1;  ///< -1: what is no token vanishes
  TextIndex index_;   ///< bytes to id
  WholeWords whole_;
  std::array<int32_t, 256> byte_ids_{};  ///< -1: this byte has no token, and vanishes
  uint64_t seed_;
  std::vector<PairSlot> pairs_;  ///< open addressing, at most half full
  size_t n_skipped_ = 0;
};

}  // namespace infer
