// Best paths from the front: at every character, all tokens that begin there. Unknown characters cost more than any
// token, so they are taken only where nothing else will do.
#include "runtime/unigram.h"

#include <algorithm>

#include "infer/error.h"
#include "runtime/utf8.h"

namespace infer {
namespace {

constexpr double kUnknownPenalty = 10;  // below the lowest score, as the models were trained
constexpr size_t kMaxTokenBytes = 1024;

}  // namespace

Unigram::Unigram(const Vocabulary& v)
    : pretokenizer_(v.rules->cuts, escaped(v.source)),
      index_(v.tokens.size(), v.n_bytes()),
      scores_(v.scores),
      byte_fallback_(v.rules->byte_fallback),
      fuse_unknown_(v.rules->fuse_unknown),
      unk_(v.unk) {
  if (scores_.size() != v.tokens.size())
    throw Error(ErrorKind::bad_file, escaped(v.source) + ": unigram vocabulary", "the scores are missing");
  if (unk_ < 0 && !byte_fallback_)
    throw Error(ErrorKind::bad_file, escaped(v.source) + ": unigram vocabulary", "the unknown token is missing");
  byte_ids_.fill(-1);
  float lowest = 0;
  for (int32_t id = 0; id < v.size(); ++id) {
    const std::string& token = v.tokens[static_cast<size_t>(id)];
    if (v.type(id) == TokenType::byte) byte_ids_[*byte_of(token)] = id;
    if (!v.reachable(id) || id == unk_) continue;
    index_.insert(token, id);
    lowest = std::min(lowest, scores_[static_cast<size_t>(id)]);
  }
  unknown_score_ = double{lowest} - kUnknownPenalty;
  if (index_.longest() > kMaxTokenBytes)
    throw Error(ErrorKind::bad_file, escaped(v.source) + ": unigram vocabulary", "a token is too long",
                std::to_string(index_.longest()) + " bytes", "up to " + std::to_string(kMaxTokenBytes));
}

void Unigram::encode(std::string_view text, bool, std::vector<int32_t>& ids) const {
  std::string repaired;
  if (utf8_first_bad(text) != text.size()) text = repaired = utf8_repaired(text);
  std::vector<Best> best;
  for (const Span word : pretokenizer_.split(text))
    encode_word(text.substr(word.begin, word.end - word.begin), best, ids);
}

void Unigram::encode_word(std::string_view word, std::vector<Best>& best, std::vector<int32_t>& ids) const {
  best.assign(word.size() + 1, {});
  best[0].begin = 0;
  const auto offer = [&](size_t begin, size_t end, double score, int32_t id) {
    Best& at = best[end];
    const double sum = best[begin].score + score;
    if (at.begin == UINT32_MAX || sum > at.score) at = {sum, static_cast<uint32_t>(begin), id};
  };
  for (size_t begin = 0; begin < word.size(); begin += utf8_length(word, begin)) {
    const size_t limit = std::min(word.size(), begin + index_.longest()), first = begin + utf8_length(word, begin);
    bool has_first = false;
    for (size_t end = first; end <= limit; end += end < word.size() ? utf8_length(word, end) : 1) {
      const int32_t id = index_.find(word.substr(begin, end - begin));
      if (id < 0) continue;
      offer(begin, end, scores_[static_cast<size_t>(id)], id);
      has_first = has_first || end == first;
    }
    if (!has_first) offer(begin, first, unknown_score_, -1);
  }
  std::vector<std::pair<uint32_t, uint32_t>> path;
  for (size_t end = word.size(); end > 0; end = best[end].begin)
    path.emplace_back(best[end].begin, static_cast<uint32_t>(end));
  std::reverse(path.begin(), path.end());
  for (size_t i = 0; i < path.size(); ++i) {
    if (best[path[i].second].id >= 0) {
      ids.push_back(best[path[i].second].id);
      continue;
    }
    const size_t begin = path[i].first;
    while (fuse_unknown_ && i + 1 < path.size() && best[path[i + 1].second].id < 0) ++i;
    append_unknown(word.substr(begin, path[i].second - begin), ids);
  }
}

void Unigram::append_unknown(std::string_view text, std::vector<int32_t>& ids) const {
  const auto has_id = [&](char c) { return byte_ids_[static_cast<uint8_t>(c)] >= 0; };
  if (byte_fallback_ && std::all_of(text.begin(), text.end(), has_id)) {
    for (const char c : text) ids.push_back(byte_ids_[static_cast<uint8_t>(c)]);
  } else if (unk_ >= 0) {
    ids.push_back(unk_);
  }
}

}  // namespace infer
