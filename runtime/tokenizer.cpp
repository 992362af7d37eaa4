// Encoding is: find special tokens, encode what lies between, put BOS and EOS around. Decoding is a table of pieces.
#include "runtime/tokenizer.h"

#include "runtime/bpe.h"
#include "runtime/spm.h"
#include "runtime/unigram.h"
#include "runtime/utf8.h"

namespace infer {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 31;
const std::string kNothing;

bool is_special(TokenType type) { return type == TokenType::control || type == TokenType::unknown; }

std::string replaced(const std::string& text, std::string_view from, std::string_view to) {
  std::string out;
  size_t done = 0;
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, done)) {
    out.append(text, done, at - done).append(to);
    done = at + from.size();
  }
  return out.append(text, done);
}

TextIndex index_of(const Vocabulary& v) {
  validate(v);
  TextIndex names(v.tokens.size(), v.n_bytes());
  for (int32_t id = 0; id < v.size(); ++id) {
    const std::string& text = v.tokens[static_cast<size_t>(id)];
    if (names.insert(text, id)) continue;
    throw Error(ErrorKind::bad_file, escaped(v.source) + ": tokenizer.ggml.tokens " + std::to_string(id),
                "duplicate token, also at " + std::to_string(names.find(text)), '"' + escaped(text) + '"');
  }
  return names;
}

}  // namespace

Tokenizer::Tokenizer(Vocabulary vocabulary)
    : vocabulary_(std::move(vocabulary)), names_(index_of(vocabulary_)), roles_(assign_roles(vocabulary_, names_)) {
  build_model();
  if (adds_bos_ && bos() < 0) {
    if (vocabulary_.add_bos) {
      throw Error(ErrorKind::bad_file, escaped(vocabulary_.source) + ": tokenizer.ggml.add_bos_token",
                  "BOS is wanted, but there is no tokenizer.ggml.bos_token_id");
    }
    adds_bos_ = false;
  }
  if (adds_eos_ && eos() < 0) {
    throw Error(ErrorKind::bad_file, escaped(vocabulary_.source) + ": tokenizer.ggml.add_eos_token",
                "EOS is wanted, but there is no tokenizer.ggml.eos_token_id");
  }
  pieces_.reserve(vocabulary_.tokens.size());
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    pieces_.push_back(piece_of(id));
    add_special(id);
  }
  special_.finish();
  normalized_.finish();
  if (vocabulary_.rules) return;
  if (adds_bos_) before_ = {bos()};
  if (adds_eos_) after_ = {eos()};
}

// Control tokens are searched for in the text as it came, whatever normalising would make of them: only there is it
// known which parts a user wrote.
void Tokenizer::add_special(int32_t id) {
  const TokenType t = vocabulary_.type(id);
  const bool user_defined = t == TokenType::user_defined;
  if (!is_special(t) && !user_defined) return;
  if (user_defined && has(id, kNormalized) && !normalizer_.empty()) {
    normalized_.add(normalizer_.apply(text_of(id), {}), id, true);
  } else {
    special_.add(text_of(id), id, user_defined);
  }
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

void Tokenizer::apply_rules(const TextRules& rules) {
  normalizer_ = Normalizer(rules.normalizer, escaped(vocabulary_.source));
  pretokenizer_ = Normalizer(rules.pretokenizer, escaped(vocabulary_.source));
  before_ = rules.before;
  after_ = rules.after;
  space_prefix_ = rules.strips_space;
  adds_bos_ = bos() >= 0 && !before_.empty() && before_[0] == bos();
  adds_eos_ = eos() >= 0 && !after_.empty() && after_.back() == eos();
}

void Tokenizer::build_model() {
  if (vocabulary_.rules) {
    apply_rules(*vocabulary_.rules);
    if (vocabulary_.model == "unigram") {
      model_ = std::make_unique<Unigram>(vocabulary_);
    } else {
      model_ = std::make_unique<Bpe>(
          vocabulary_, PretokenizerSpec{vocabulary_.rules->cuts, vocabulary_.rules->ignore_merges, false});
    }
    return;
  }
  if (vocabulary_.nfc) normalizer_ = Normalizer(std::vector<TextStep>{{.kind = TextStep::nfc}});
  if (vocabulary_.model == "llama") {
    space_prefix_ = vocabulary_.add_space_prefix.value_or(true);
    adds_bos_ = vocabulary_.add_bos.value_or(true);
    model_ = std::make_unique<Spm>(vocabulary_, space_prefix_);
  } else if (vocabulary_.model == "gpt2") {
    const PretokenizerSpec spec =
        pretokenizer_spec(vocabulary_.pre, escaped(vocabulary_.source) + ": tokenizer.ggml.pre");
    adds_bos_ = vocabulary_.add_bos.value_or(spec.adds_bos);
    auto bpe = std::make_unique<Bpe>(vocabulary_, spec);
    if (bpe->n_skipped_merges() > 0) {
      vocabulary_.warnings.push_back(std::to_string(bpe->n_skipped_merges()) +
                                     " merges name something that is not a token; they are skipped");
    }
    model_ = std::move(bpe);
  } else {
    throw Error(ErrorKind::bad_file, escaped(vocabulary_.source) + ": tokenizer.ggml.model",
                "tokenizer model is not supported", '"' + escaped(vocabulary_.model) + '"', "\"llama\", \"gpt2\"");
  }
  adds_eos_ = vocabulary_.add_eos.value_or(false);
}

std::string Tokenizer::piece_of(int32_t id) const {
  const std::string& text = text_of(id);
  switch (vocabulary_.type(id)) {
    case TokenType::control:
    case TokenType::unknown:
    case TokenType::user_defined:
      return text;
    case TokenType::byte:
      return {static_cast<char>(*byte_of(text))};
    case TokenType::normal:
      if (vocabulary_.rules) return decoded(text);
      if (vocabulary_.model == "llama") return replaced(text, kSpaceMark, " ");
      return bytes_of_printable(text).value_or(text);
    case TokenType::undefined:
    case TokenType::unused:
      break;
  }
  return {};
}

std::string Tokenizer::decoded(std::string text) const {
  if (vocabulary_.rules->byte_level) return bytes_of_printable(text).value_or(text);
  for (const auto& [from, to] : vocabulary_.rules->decoded) text = replaced(text, from, to);
  return text;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
  const Region region{text.size(), parse_special};
  return encode(text, std::span(&region, 1), add_special);
}

std::vector<int32_t> Tokenizer::encode(std::span<const TextPiece> pieces, bool add_special) const {
  std::string text;
  std::vector<Region> regions;
  for (const TextPiece& piece : pieces) {
    text += piece.text;
    if (!regions.empty() && regions.back().parse_special == piece.parse_special) {
      regions.back().end = text.size();
    } else {
      regions.push_back({text.size(), piece.parse_special});
    }
  }
  return encode(text, regions, add_special);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, std::span<const Region> regions, bool add_special) const {
  if (text.size() >= kMaxTextBytes) {
    throw Error(ErrorKind::usage, "tokenizer", "text too long", std::to_string(text.size()) + " bytes", "below 2 GiB");
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 2);
  if (add_special) ids.insert(ids.end(), before_.begin(), before_.end());
  encode_fragments(text, regions, ids);
  if (add_special) ids.insert(ids.end(), after_.begin(), after_.end());
  return ids;
}

void Tokenizer::encode_fragments(std::string_view text, std::span<const Region> regions,
                                 std::vector<int32_t>& ids) const {
  size_t begin = 0;  // of the text that waits to be encoded
  size_t region = 0;
  for (size_t at = 0; at < text.size();) {
    if (!special_.may_begin(text[at])) {
      ++at;
      continue;
    }
    while (regions[region].end <= at) ++region;
    const SpecialTokens::Hit hit = special_.match(text, at, regions[region].parse_special ? regions[region].end : 0);
    if (hit.id < 0 || !stands_alone(hit, text)) {
      ++at;
      continue;
    }
    size_t end = at;
    if (has(hit.id, kStripsLeft))
      while (end > begin && blank_length_before(text, end) > 0) end -= blank_length_before(text, end);
    encode_between(text.substr(begin, end - begin), {begin == 0, false}, ids);
    ids.push_back(hit.id);
    at = hit.end;
    if (has(hit.id, kStripsRight))
      while (blank_length(text, at) > 0) at += blank_length(text, at);
    begin = at;
  }
  encode_between(text.substr(begin), {begin == 0, true}, ids);
}

bool Tokenizer::stands_alone(const SpecialTokens::Hit& hit, std::string_view text) const {
  return !has(hit.id, kSingleWord) || !(word_ends(text, hit.begin) || word_begins(text, hit.end));
}

// What stands between special tokens, as the file says it is to be prepared.
void Tokenizer::encode_between(std::string_view text, Place place, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  if (!vocabulary_.rules && normalizer_.empty()) return model_->encode(text, true, ids);
  std::string prepared = utf8_first_bad(text) == text.size() ? std::string(text) : utf8_repaired(text);
  if (!normalizer_.empty()) prepared = normalizer_.apply(prepared, place);
  const std::string_view all = prepared;
  const auto encode_piece = [&](size_t begin, size_t end) {
    const std::string_view piece = all.substr(begin, end - begin);
    if (piece.empty()) return;
    if (pretokenizer_.empty()) return model_->encode(piece, true, ids);
    model_->encode(pretokenizer_.apply(piece, {place.first && begin == 0, place.last && end == all.size()}), true, ids);
  };
  size_t begin = 0;
  for (size_t at = 0; at < all.size();) {
    const SpecialTokens::Hit hit =
        normalized_.may_begin(all[at]) ? normalized_.match(all, at, 0) : SpecialTokens::Hit{};
    if (hit.id < 0 || !stands_alone(hit, all)) {
      ++at;
      continue;
    }
    encode_piece(begin, at);
    ids.push_back(hit.id);
    at = begin = hit.end;
  }
  encode_piece(begin, all.size());
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string out;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!inside(ids[i])) continue;
    std::string_view piece = pieces_[static_cast<size_t>(ids[i])];
    if (i == 0 && space_prefix_ && piece.starts_with(' ')) piece.remove_prefix(1);
    out += piece;
  }
  return out;
}

const std::string& Tokenizer::piece(int32_t id) const {
  return inside(id) && !is_special(vocabulary_.type(id)) ? pieces_[static_cast<size_t>(id)] : kNothing;
}

const std::string& Tokenizer::text_of(int32_t id) const {
  return inside(id) ? vocabulary_.tokens[static_cast<size_t>(id)] : kNothing;
}

std::optional<int32_t> Tokenizer::find(std::string_view text) const {
  const int32_t id = names_.find(text);
  return id < 0 ? std::nullopt : std::optional(id);
}

bool Tokenizer::is_control(int32_t id) const { return inside(id) && vocabulary_.type(id) == TokenType::control; }

TokenType Tokenizer::type(int32_t id) const { return inside(id) ? vocabulary_.type(id) : TokenType::undefined; }

std::vector<int32_t> Tokenizer::eog_ids() const {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    if (is_eog(id)) ids.push_back(id);
  }
  return ids;
}

}  // namespace infer
