// Merging looks pairs up by their two token ids. A word that is itself a token usually needs no merging at all: whether
// the merges do rebuild it is worked out once per token.
#include "runtime/bpe.h"

#include <bit>

#include "runtime/utf8.h"

namespace infer {
namespace {

// The printable alphabet: bytes that print in Latin-1 stand for themselves, the other 68 take the code points from 256
// up.
struct Alphabet {
  std::array<uint32_t, 256> code_point{};
  std::array<int16_t, 324> byte{};
};

constexpr Alphabet make_alphabet() {
  Alphabet a;
  for (int16_t& b : a.byte) b = -1;
  uint32_t next = 256;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool prints = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    a.code_point[b] = prints ? b : next++;
    a.byte[a.code_point[b]] = static_cast<int16_t>(b);
  }
  return a;
}
constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::optional<std::string> bytes_of_printable(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t n = utf8_length(text, i);
    if (n == 0) return std::nullopt;
    const uint32_t c = utf8_decode(text, i, n);
    if (c >= kAlphabet.byte.size() || kAlphabet.byte[c] < 0) return std::nullopt;
    out += static_cast<char>(kAlphabet.byte[c]);
    i += n;
  }
  return out;
}

std::string printable_of_bytes(std::string_view bytes) {
  std::string out;
  for (const char b : bytes) utf8_append(out, kAlphabet.code_point[static_cast<uint8_t>(b)]);
  return out;
}

Bpe::Bpe(const Vocabulary& v, const PretokenizerSpec& spec)
    : pretokenizer_(spec.rules, escaped(v.source)),
      ignore_merges_(spec.ignore_merges),
      index_(v.tokens.size(), v.n_bytes()),
      whole_(v.tokens.size()),
      seed_(fresh_hash_seed()) {
  if (v.rules) {
    byte_level_ = v.rules->byte_level;
    byte_fallback_ = v.rules->byte_fallback;
    fuse_unknown_ = v.rules->fuse_unknown;
    unk_ = v.unk;
  }
  byte_ids_.fill(-1);
  for (int32_t id = 0; id < v.size(); ++id) {
    const std::string& token = v.tokens[static_cast<size_t>(id)];
    if (!byte_level_ && v.type(id) == TokenType::byte) byte_ids_[*byte_of(token)] = id;
    if (!v.reachable(id)) continue;
    if (const auto text = text_of(token)) index_.insert(*text, id);
  }
  for (size_t b = 0; byte_level_ && b < byte_ids_.size(); ++b) {
    const char byte = static_cast<char>(b);
    byte_ids_[b] = index_.find({&byte, 1});
  }
  read_merges(v);
}

std::optional<std::string> Bpe::text_of(const std::string& token) const {
  return byte_level_ ? bytes_of_printable(token) : token;
}

void Bpe::read_merges(const Vocabulary& v) {
  pairs_.resize(std::bit_ceil(2 * v.merges.size() + 2));
  for (size_t rank = 0; rank < v.merges.size(); ++rank) {
    const std::string& merge = v.merges[rank];
    const size_t space = merge.find(v.merge_separator);
    if (space == std::string::npos || space == 0 || space + 1 == merge.size() ||
        merge.find(v.merge_separator, space + 1) != std::string::npos) {
      throw Error(ErrorKind::bad_file, escaped(v.source) + ": tokenizer.ggml.merges " + std::to_string(rank),
                  "malformed merge", '"' + escaped(merge) + '"', "two parts with one space between them");
    }
    const auto left = text_of(merge.substr(0, space));
    const auto right = text_of(merge.substr(space + 1));
    const int32_t left_id = left ? index_.find(*left) : -1, right_id = right ? index_.find(*right) : -1;
    const int32_t id = left_id < 0 || right_id < 0 ? -1 : index_.find(*left + *right);
    if (id < 0) {
      ++n_skipped_;
      continue;
    }
    const uint64_t pair = uint64_t{static_cast<uint32_t>(left_id)} << 32 | static_cast<uint32_t>(right_id);
    PairSlot& slot = pairs_[slot_of(pair)];
    if (slot.pair != pair) slot = {pair, {static_cast<uint32_t>(rank), id}};  // of two equal merges the first counts
  }
}

size_t Bpe::slot_of(uint64_t pair) const {
  const size_t mask = pairs_.size() - 1;
  size_t at = hash_mix(pair, seed_) & mask;
  while (pairs_[at].pair != pair && pairs_[at].pair != UINT64_MAX) at = (at + 1) & mask;
  return at;
}

Merge Bpe::merge_of(int32_t left, int32_t right) const {
  if (left < 0 || right < 0) return {};
  return pairs_[slot_of(uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right))].merge;
}

void Bpe::encode(std::string_view text, bool, std::vector<int32_t>& ids) const {
  std::string repaired;
  if (utf8_first_bad(text) != text.size()) text = repaired = utf8_repaired(text);
  MergeScratch scratch;
  for (const Span word : pretokenizer_.split(text))
    encode_word(text.substr(word.begin, word.end - word.begin), scratch, ids);
}

// A character is one symbol, or one for each of its bytes where the vocabulary has no other way to write it.
void Bpe::add_character(std::string_view word, size_t at, MergeScratch& scratch) const {
  const size_t n = utf8_length(word, at);
  const std::string_view character = word.substr(at, n);
  const auto byte_id = [&](char c) { return byte_ids_[static_cast<uint8_t>(c)]; };
  const int32_t id = index_.find(character);
  const bool in_bytes = id < 0 && byte_fallback_ &&
                        std::all_of(character.begin(), character.end(), [&](char c) { return byte_id(c) >= 0; });
  if (!in_bytes) return scratch.add(static_cast<uint32_t>(at), static_cast<uint32_t>(n), id);
  for (size_t i = 0; i < n; ++i) scratch.add(static_cast<uint32_t>(at + i), 1, byte_id(character[i]));
}

void Bpe::encode_word(std::string_view word, MergeScratch& scratch, std::vector<int32_t>& ids) const {
  const int32_t token = index_.find(word);
  if (token >= 0 && (ignore_merges_ || whole_.is_whole(token))) {
    ids.push_back(token);
    return;
  }
  scratch.symbols.clear();
  scratch.symbols.reserve(word.size());
  for (size_t i = 0; i < word.size(); i += byte_level_ ? 1 : utf8_length(word, i)) {
    if (byte_level_) {
      scratch.add(static_cast<uint32_t>(i), 1, byte_ids_[static_cast<uint8_t>(word[i])]);
    } else {
      add_character(word, i, scratch);
    }
  }
  merge_symbols(scratch, [this](const Symbol& left, const Symbol& right) { return merge_of(left.id, right.id); });
  if (token >= 0 && !whole_.is_known(token)) whole_.set(token, scratch.symbols[0].next < 0);
  for (int32_t at = 0; at >= 0; at = scratch.symbols[static_cast<size_t>(at)].next) {
    const Symbol& symbol = scratch.symbols[static_cast<size_t>(at)];
    const bool fused = fuse_unknown_ && symbol.prev >= 0 && scratch.symbols[static_cast<size_t>(symbol.prev)].id < 0;
    if (symbol.id >= 0) ids.push_back(symbol.id);
    if (symbol.id < 0 && unk_ >= 0 && !fused) ids.push_back(unk_);
  }
}

}  // namespace infer
