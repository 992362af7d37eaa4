// Unigram, the other model of SentencePiece: of all ways to write a word in tokens the one whose scores sum to most
// (arXiv:1804.10959).
#pragma once

#include <array>

#include "runtime/pretokenizer.h"
#include "runtime/subword.h"
#include "runtime/text_index.h"
#include "runtime/vocabulary.h"

namespace infer {

class Unigram final : public SubwordModel {
 public:
  /// The vocabulary has rules. Throws Error(bad_file) when it has no scores, no unknown token, or tokens too long to
  /// look for at every place of a text.
  explicit Unigram(const Vocabulary& vocabulary);
  void encode(std::string_view text, bool at_start, std::vector<int32_t>& ids) const override;

 private:
  struct Best {
    double score = 0;
    uint32_t begin = UINT32_MAX;  ///< of the last token; UINT32_MAX: not reached
    int32_t id = -1;              ///< -1: unknown
  };
  void encode_word(std::string_view word, std::vector<Best>& best, std::vector<int32_t>& ids) const;
  void append_unknown(std::string_view text, std::vector<int32_t>& ids) const;

  Pretokenizer pretokenizer_;
  TextIndex index_;
  std::vector<float> scores_;
  std::array<int32_t, 256> byte_ids_{};
  bool byte_fallback_, fuse_unknown_;
  int32_t unk_;
  double unknown_score_;
};

}  // namespace infer
