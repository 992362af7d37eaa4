// SentencePiece-style BPE, the model of Llama 2, Phi-3 and Gemma: spaces become U+2581, characters merge to tokens in
// the order of the tokens' scores, and what is no token falls back to one token for each byte.
#pragma once

#include <array>

#include "runtime/subword.h"
#include "runtime/text_index.h"
#include "runtime/vocabulary.h"

namespace infer {

inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  ///< U+2581

class Spm final : public SubwordModel {
 public:
  /// `space_prefix`: text at the start, or behind a special token, is read with a space in front.
  Spm(const Vocabulary& vocabulary, bool space_prefix);
  void encode(std::string_view text, bool at_start, std::vector<int32_t>& ids) const override;

 private:
  bool can_cut_before_mark(std::string_view text, size_t mark) const;
  void encode_word(std::string_view word, MergeScratch& scratch, std::vector<int32_t>& ids) const;
  void append_bytes(std::string_view character, std::vector<int32_t>& ids) const;

  bool space_prefix_;
  TextIndex index_;  ///< text (with marks) to id
  WholeWords whole_;
  std::vector<uint32_t> rank_;  ///< by id: place of its score, 0 for the highest; equal scores share a rank
  std::array<int32_t, 256> byte_ids_{};
  int32_t unk_;
  std::vector<uint32_t> before_mark_;  ///< sorted: characters that some token has right before a mark
};

}  // namespace infer
