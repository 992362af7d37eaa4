// Only the fields that matter are read; the others are stepped over by their wire types. No message is nested more than
// two levels deep here.
#include "runtime/sentencepiece_model.h"

#include <bit>
#include <cstring>
#include <span>

#include "infer/error.h"
#include "models/config.h"
#include "runtime/json_file.h"
#include "runtime/mapped_file.h"
#include "runtime/normalizer.h"
#include "runtime/spm.h"

namespace infer {
namespace {

/// One field of a message.
struct Field {
  uint64_t number = 0;
  uint64_t value = 0;           ///< of varints and fixed-width numbers
  std::string_view bytes = {};  ///< of length-delimited fields
  int wire = 0;                 ///< 0: varint, 1: 64 bits, 2: length-delimited, 5: 32 bits
};

/// Walks over the fields of one message.
class Message {
 public:
  Message(std::string_view bytes, const std::string& where) : left_(bytes), where_(where) {}

  bool next(Field& field) {
    if (left_.empty()) return false;
    const uint64_t tag = varint();
    field = {.number = tag >> 3, .wire = static_cast<int>(tag & 7)};
    if (field.wire == 0) {
      field.value = varint();
    } else if (field.wire == 1 || field.wire == 5) {
      const std::string_view bytes = take(field.wire == 1 ? 8 : 4);
      std::memcpy(&field.value, bytes.data(), bytes.size());
    } else if (field.wire == 2) {
      field.bytes = take(varint());
    } else {
      refuse("wire type " + std::to_string(field.wire));
    }
    if (field.number == 0) refuse("field number 0");
    return true;
  }

 private:
  [[noreturn]] void refuse(const std::string& found) const {
    throw Error(ErrorKind::bad_file, where_, "not a SentencePiece model", found);
  }
  std::string_view take(uint64_t n) {
    if (n > left_.size()) refuse("a field that runs past the end");
    const std::string_view bytes = left_.substr(0, static_cast<size_t>(n));
    left_.remove_prefix(bytes.size());
    return bytes;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    refuse("a number of more than 64 bits");
  }

  std::string_view left_;
  std::string where_;
};

/// Numbers of fields in sentencepiece_model.proto.
enum ModelField : uint64_t { kPieces = 1, kTrainer = 2, kNormalizer = 3 };
enum PieceField : uint64_t { kPiece = 1, kScore = 2, kType = 3 };
enum TrainerField : uint64_t { kModelType = 3, kSuffix = 24, kByteFallback = 35, kUnk = 40, kBos = 41, kEos = 42 };
enum NormalizerField : uint64_t { kName = 1, kCharsMap = 2, kDummyPrefix = 3, kExtraSpaces = 4, kEscape = 5 };
enum ModelType : uint64_t { kUnigram = 1, kBpe = 2 };

struct Settings {
  uint64_t model_type = kUnigram;
  bool byte_fallback = false, suffix = false, has_chars_map = false;
  bool dummy_prefix = true, strips_spaces = true, escapes = true;
  std::string normalizer;
  int64_t unk = 0, bos = 1, eos = 2;
};

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), where_(shown_path(path)) {}

  Vocabulary read() {
    const std::string bytes = read_small_file(path_, kMaxTokenizerBytes);
    Message message(bytes, where_);
    for (Field field; message.next(field);) {
      if (field.wire != 2) continue;
      if (field.number == kPieces) add_piece(field.bytes);
      if (field.number == kTrainer) read_trainer(field.bytes);
      if (field.number == kNormalizer) read_normalizer(field.bytes);
    }
    if (v_.tokens.empty()) refuse("pieces", "no token", guess_contents(std::as_bytes(std::span(bytes))), "");
    finish();
    return std::move(v_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what, const std::string& message, const std::string& found,
                           const std::string& allowed) const {
    throw Error(ErrorKind::bad_file, where_ + ": " + what, message, found, allowed);
  }

  void add_piece(std::string_view bytes) {
    std::string text;
    float score = 0;
    uint64_t type = 1;
    Message message(bytes, where_);
    for (Field field; message.next(field);) {
      if (field.number == kPiece && field.wire == 2) text = field.bytes;
      if (field.number == kScore && field.wire == 5) score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
      if (field.number == kType && field.wire == 0) type = field.value;
    }
    const std::string where = "piece " + std::to_string(v_.tokens.size());
    if (type < 1 || type > 6) refuse(where, "unknown type", std::to_string(type), "1 to 6");
    if (v_.tokens.size() == static_cast<size_t>(kMaxVocab)) refuse(where, "too many tokens", "", "");
    if (text.empty()) text = "[EMPTY_" + std::to_string(v_.tokens.size()) + "]";
    v_.tokens.push_back(std::move(text));
    v_.scores.push_back(score);
    v_.types.push_back(static_cast<TokenType>(type));  // the numbers are GGUF's
  }

  void read_trainer(std::string_view bytes) {
    Message message(bytes, where_);
    for (Field field; message.next(field);) {
      if (field.wire != 0) continue;
      const auto id = static_cast<int64_t>(static_cast<int32_t>(field.value));
      if (field.number == kModelType) settings_.model_type = field.value;
      if (field.number == kSuffix) settings_.suffix = field.value != 0;
      if (field.number == kByteFallback) settings_.byte_fallback = field.value != 0;
      if (field.number == kUnk) settings_.unk = id;
      if (field.number == kBos) settings_.bos = id;
      if (field.number == kEos) settings_.eos = id;
    }
  }

  void read_normalizer(std::string_view bytes) {
    Message message(bytes, where_);
    for (Field field; message.next(field);) {
      if (field.number == kName && field.wire == 2) settings_.normalizer = field.bytes;
      if (field.number == kCharsMap && field.wire == 2) settings_.has_chars_map = !field.bytes.empty();
      if (field.wire != 0) continue;
      if (field.number == kDummyPrefix) settings_.dummy_prefix = field.value != 0;
      if (field.number == kExtraSpaces) settings_.strips_spaces = field.value != 0;
      if (field.number == kEscape) settings_.escapes = field.value != 0;
    }
  }

  void finish() {
    if (settings_.has_chars_map)
      refuse("normalizer", "a normaliser table is not supported", '"' + escaped(settings_.normalizer) + '"',
             "identity");
    if (settings_.suffix) refuse("treat_whitespace_as_suffix", "not supported", "true", "false");
    if (!settings_.escapes) refuse("escape_whitespaces", "not supported", "false", "true");
    const bool is_bpe = settings_.model_type == kBpe;
    if (!is_bpe && settings_.model_type != kUnigram)
      refuse("model_type", "unsupported", std::to_string(settings_.model_type), "1 (unigram), 2 (BPE)");
    if (is_bpe && settings_.strips_spaces) refuse("remove_extra_whitespaces", "not supported for BPE", "true", "false");
    const auto id = [&](int64_t wanted) {
      return wanted >= 0 && wanted < v_.size() ? static_cast<int32_t>(wanted) : -1;
    };
    v_.unk = id(settings_.unk), v_.bos = id(settings_.bos), v_.eos = id(settings_.eos);
    v_.source = path_;
    v_.types_are_final = true;
    // Where SentencePiece looks for these tokens spaces are still spaces.
    for (size_t i = 0; i < v_.tokens.size(); ++i)
      if (v_.types[i] == TokenType::user_defined) use_spaces(v_.tokens[i]);
    v_.model = is_bpe ? "llama" : "unigram";
    v_.add_space_prefix = settings_.dummy_prefix;
    if (!is_bpe) v_.rules = unigram_rules({settings_.strips_spaces, settings_.dummy_prefix, settings_.byte_fallback});
  }

  static void use_spaces(std::string& token) {
    for (size_t at = token.find(kSpaceMark); at != std::string::npos; at = token.find(kSpaceMark, at + 1))
      token.replace(at, kSpaceMark.size(), " ");
  }

  std::string path_, where_;
  Settings settings_;
  Vocabulary v_;
};

}  // namespace

TextRules unigram_rules(const UnigramSettings& settings) {
  const std::string mark(kSpaceMark);
  TextRules rules;
  const auto replace_spaces = [&](const char* pattern, const char* content, Place only) {
    rules.pretokenizer.push_back({.kind = TextStep::replace_regex,
                                  .pattern = pattern,
                                  .content = content,
                                  .only_first = only.first,
                                  .only_last = only.last});
  };
  if (settings.strips_spaces) {
    replace_spaces("\\A +", "", {true, false});
    replace_spaces(" +\\z", "", {false, true});
    replace_spaces(" +", " ", {false, false});
  }
  if (settings.dummy_prefix)
    rules.pretokenizer.push_back({.kind = TextStep::prepend, .content = mark, .only_first = true});
  rules.pretokenizer.push_back({.kind = TextStep::replace, .pattern = " ", .content = mark});
  rules.byte_fallback = settings.byte_fallback;
  rules.fuse_unknown = true;
  rules.decoded.emplace_back(mark, " ");
  rules.strips_space = settings.dummy_prefix;
  return rules;
}

Vocabulary read_sentencepiece_model(const std::string& path) { return Reader(path).read(); }

}  // namespace infer
