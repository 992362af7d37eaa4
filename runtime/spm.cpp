// Merging is defined on the whole text. Because hardly any token has a mark behind another character, the text falls
// apart into words that cannot influence each other; where a token does span such a place, no cut is made. Each word is
// then looked up whole before it is merged.
#include "runtime/spm.h"

#include <algorithm>
#include <numeric>

#include "runtime/utf8.h"

namespace infer {
namespace {

std::vector<uint32_t> ranks_of(const Vocabulary& v) {
  std::vector<uint32_t> rank(v.tokens.size(), 0);
  if (v.scores.empty()) return rank;
  std::vector<int32_t> order(v.tokens.size());
  std::iota(order.begin(), order.end(), 0);
  const auto score = [&](int32_t id) { return v.scores[static_cast<size_t>(id)]; };
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return score(a) > score(b); });
  for (size_t i = 1; i < order.size(); ++i) {
    rank[static_cast<size_t>(order[i])] =
        rank[static_cast<size_t>(order[i - 1])] + (score(order[i]) < score(order[i - 1]) ? 1 : 0);
  }
  return rank;
}

// The character that ends at text[end], as a number; bytes that are no character count as themselves.
uint32_t character_before(std::string_view text, size_t end) {
  for (size_t n = 1; n <= 4 && n <= end; ++n) {
    if (utf8_length(text, end - n) == n) return utf8_decode(text, end - n, n);
  }
  return static_cast<uint8_t>(text[end - 1]);
}

constexpr uint32_t kMarkCodePoint = 0x2581;

std::vector<uint32_t> characters_before_marks(const Vocabulary& v) {
  std::vector<uint32_t> found;
  for (int32_t id = 0; id < v.size(); ++id) {
    if (!v.reachable(id)) continue;
    const std::string& token = v.tokens[static_cast<size_t>(id)];
    for (size_t at = token.find(kSpaceMark); at != std::string::npos; at = token.find(kSpaceMark, at + 1)) {
      if (at > 0) found.push_back(character_before(token, at));
    }
  }
  found.push_back(kMarkCodePoint);
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

}  // namespace

Spm::Spm(const Vocabulary& v, bool space_prefix)
    : space_prefix_(space_prefix),
      index_(v.tokens.size(), v.n_bytes()),
      whole_(v.tokens.size()),
      rank_(ranks_of(v)),
      unk_(v.unk),
      before_mark_(characters_before_marks(v)) {
  byte_ids_.fill(-1);
  for (int32_t id = 0; id < v.size(); ++id) {
    const std::string& token = v.tokens[static_cast<size_t>(id)];
    if (v.reachable(id)) index_.insert(token, id);
    if (const auto byte = byte_of(token)) {
      int32_t& slot = byte_ids_[*byte];
      if (slot < 0 || v.type(id) == TokenType::byte) slot = id;
    }
  }
}

void Spm::encode(std::string_view text, bool at_start, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  std::string marked;
  marked.reserve(text.size() + text.size() / 2);
  if (space_prefix_ && at_start) marked += kSpaceMark;
  for (size_t i = 0; i < text.size();) {
    const size_t space = std::min(text.find(' ', i), text.size());
    marked += text.substr(i, space - i);
    if (space < text.size()) marked += kSpaceMark;
    i = space + 1;
  }
  MergeScratch scratch;
  const std::string_view all = marked;
  size_t begin = 0;
  for (size_t mark = all.find(kSpaceMark, 1); mark != std::string_view::npos; mark = all.find(kSpaceMark, mark + 1)) {
    if (!can_cut_before_mark(all, mark)) continue;
    encode_word(all.substr(begin, mark - begin), scratch, ids);
    begin = mark;
  }
  encode_word(all.substr(begin), scratch, ids);
}

bool Spm::can_cut_before_mark(std::string_view text, size_t mark) const {
  return !std::binary_search(before_mark_.begin(), before_mark_.end(), character_before(text, mark));
}

void Spm::encode_word(std::string_view word, MergeScratch& scratch, std::vector<int32_t>& ids) const {
  const int32_t token = index_.find(word);
  if (token >= 0 && whole_.is_whole(token)) {
    ids.push_back(token);
    return;
  }
  scratch.symbols.clear();
  scratch.symbols.reserve(word.size());
  for (size_t i = 0; i < word.size();) {
    const size_t n = std::max<size_t>(1, utf8_length(word, i));
    scratch.add(static_cast<uint32_t>(i), static_cast<uint32_t>(n), index_.find(word.substr(i, n)));
    i += n;
  }
  merge_symbols(scratch, [&](const Symbol& left, const Symbol& right) -> Merge {
    const int32_t id = index_.find(word.substr(left.begin, size_t{left.length} + right.length));
    return id < 0 ? Merge{} : Merge{rank_[static_cast<size_t>(id)], id};
  });
  if (token >= 0 && !whole_.is_known(token)) whole_.set(token, scratch.symbols[0].next < 0);
  for (int32_t at = 0; at >= 0; at = scratch.symbols[static_cast<size_t>(at)].next) {
    const Symbol& symbol = scratch.symbols[static_cast<size_t>(at)];
    if (symbol.id >= 0) {
      ids.push_back(symbol.id);
      continue;
    }
    append_bytes(word.substr(symbol.begin, symbol.length), ids);
  }
}

// One unknown token for a character when the vocabulary lacks one of its bytes.
void Spm::append_bytes(std::string_view character, std::vector<int32_t>& ids) const {
  const size_t begin = ids.size();
  for (const char c : character) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    if (id < 0) {
      ids.resize(begin);
      if (unk_ >= 0) ids.push_back(unk_);
      return;
    }
    ids.push_back(id);
  }
}

}  // namespace infer
