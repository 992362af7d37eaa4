// Tokens against recorded answers of llama.cpp and Hugging Face tokenizers, and the promises that recorded answers do
// not show: what a user writes never becomes a control token, text survives the round trip, long runs stay cheap.
#include "runtime/tokenizer.h"

#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <thread>

#include <unistd.h>

#include "runtime/bpe.h"
#include "runtime/gguf.h"
#include "runtime/utf8.h"
#include "tests/catch.h"

using namespace infer;
using Ids = std::vector<int32_t>;
using nlohmann::json;

namespace {

const std::string kData = std::string(TEST_DATA) + "/tokenizers/";
const std::string kShared = std::string(SHARED_DATA) + "/tokenizers/";

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream all;
  all << file.rdbuf();
  return all.str();
}

// The contents of an .xz, through the program of that name; empty when there is none.
std::string unpacked(const std::string& path) {
  std::string out;
  std::FILE* pipe = popen(("xz -dc '" + path + "' 2>/dev/null").c_str(), "r");
  if (pipe == nullptr) return out;
  char block[1 << 16];
  for (size_t n = 0; (n = std::fread(block, 1, sizeof block, pipe)) > 0;) out.append(block, n);
  pclose(pipe);
  return out;
}

std::vector<json> rows(const std::string& jsonl) {
  std::vector<json> out;
  std::istringstream lines(jsonl);
  for (std::string line; std::getline(lines, line);) out.push_back(json::parse(line));
  return out;
}

Tokenizer load(const std::string& path) { return Tokenizer(*vocabulary_from(read_gguf(path))); }

void check_row(const Tokenizer& t, const json& row, const std::string& text) {
  struct Mode {
    const char* key;
    bool add_special, parse_special;
  };
  for (const Mode mode : {Mode{"ids_special", true, true}, {"ids_plain", false, true}, {"ids_raw", false, false}}) {
    const Ids got = t.encode(text, mode.add_special, mode.parse_special);
    bool right = got == row[mode.key].get<Ids>();
    if (row.contains("alt") && row["alt"].contains(mode.key)) {
      for (const json& other : row["alt"][mode.key]) right = right || got == other.get<Ids>();
    }
    CAPTURE(text, mode.key, got, row[mode.key].dump());
    CHECK(right);
  }
  CAPTURE(text);
  for (const auto& [ids, want] : {std::pair{"ids_special", "decoded"}, {"ids_plain", "decoded_plain"}}) {
    if (row[want].is_null()) continue;  // not valid UTF-8, which JSON cannot hold
    CHECK(t.decode(row[ids].get<Ids>()) == row[want].get<std::string>());
  }
}

// llama.cpp's own pairs of files: texts between separator lines, and one line of ids for each.
void check_inp(const Tokenizer& t, const std::string& path) {
  const std::string texts = contents(path + ".inp"), separator = "\n__ggml_vocab_test__\n";
  std::istringstream answers(contents(path + ".out"));
  size_t begin = 0;
  for (std::string line; begin <= texts.size() && std::getline(answers, line);) {
    const size_t end = std::min(texts.find(separator, begin), texts.size());
    std::istringstream numbers(line);
    Ids want;
    for (int32_t id = 0; numbers >> id;) want.push_back(id);
    const std::string text = texts.substr(begin, end - begin);
    CAPTURE(path, text);
    CHECK(t.encode(text, false, false) == want);
    begin = end + separator.size();
  }
  CHECK(begin > separator.size());
}

// All 256 bytes, a few merges, two control tokens and one that is user-defined.
Vocabulary byte_level_vocabulary() {
  Vocabulary v;
  v.model = "gpt2";
  v.pre = "gpt-2";
  for (int b = 0; b < 256; ++b) v.tokens.push_back(printable_of_bytes(std::string(1, static_cast<char>(b))));
  const auto space = printable_of_bytes(" ");
  for (const auto& [left, right] :
       {std::pair<std::string, std::string>{"h", "e"}, {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {space, "hello"}}) {
    v.tokens.push_back(left + right);
    v.merges.push_back(left + " " + right);
  }
  v.tokens.insert(v.tokens.end(), {"<|im_end|>", "<|im_start|>", "\n\n"});
  v.types.assign(v.tokens.size(), TokenType::normal);
  v.types[261] = v.types[262] = TokenType::control;
  v.types[263] = TokenType::user_defined;
  v.eos = 261;
  return v;
}

// The definition of both models: join the neighbours with the best rank, leftmost first, until none may be joined.
template <class RankOf>
void merge_slowly(std::vector<std::string>& parts, const RankOf& rank_of) {
  while (true) {
    size_t best = parts.size();
    double best_rank = std::numeric_limits<double>::infinity();
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const double rank = rank_of(parts[i], parts[i + 1]);
      if (rank < best_rank) best = i, best_rank = rank;
    }
    if (best == parts.size()) return;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

std::vector<std::string> characters(const std::string& text) {
  std::vector<std::string> out;
  for (size_t i = 0; i < text.size(); i += out.back().size()) out.push_back(text.substr(i, utf8_length(text, i)));
  return out;
}

std::map<std::string, int32_t> ids_by_text(const Vocabulary& v) {
  std::map<std::string, int32_t> ids;
  for (int32_t id = 0; id < v.size(); ++id) {
    if (v.reachable(id)) ids[v.tokens[static_cast<size_t>(id)]] = id;
  }
  return ids;
}

Ids slow_sentencepiece(const Vocabulary& v, const std::string& text) {
  static const std::map<std::string, int32_t> ids = ids_by_text(v);
  std::vector<std::string> parts = characters(" " + text);
  for (std::string& part : parts) part = part == " " ? "\xE2\x96\x81" : part;
  merge_slowly(parts, [&](const std::string& left, const std::string& right) -> double {
    const auto found = ids.find(left + right);
    return found == ids.end() ? INFINITY : -v.scores[static_cast<size_t>(found->second)];
  });
  Ids out;
  for (const std::string& part : parts) {
    const auto found = ids.find(part);
    if (found != ids.end()) {
      out.push_back(found->second);
    } else {
      for (const char c : part) out.push_back(3 + static_cast<uint8_t>(c));  // <0x00> is token 3
    }
  }
  return out;
}

void slow_byte_level(const Vocabulary& v, const std::string& word, Ids& out) {
  static const std::map<std::string, int32_t> ids = ids_by_text(v);
  static const std::map<std::string, size_t> ranks = [&] {
    std::map<std::string, size_t> by_pair;
    for (size_t i = 0; i < v.merges.size(); ++i) by_pair.emplace(v.merges[i], i);
    return by_pair;
  }();
  std::vector<std::string> parts = characters(printable_of_bytes(word));
  merge_slowly(parts, [&](const std::string& left, const std::string& right) -> double {
    const auto found = ranks.find(left + " " + right);
    return found == ranks.end() ? INFINITY : static_cast<double>(found->second);
  });
  for (const std::string& part : parts) {
    const auto found = ids.find(part);
    if (found != ids.end()) out.push_back(found->second);
  }
}

// Text in which much merges: beginnings of words, blanks and signs in a row, now and then another script.
std::string likely_text(std::mt19937& random, size_t n) {
  static const std::string kParts[] = {"the",
                                       "in",
                                       "er",
                                       " ",
                                       "  ",
                                       "\n",
                                       "tion",
                                       "a",
                                       "e",
                                       "s",
                                       "S",
                                       "x",
                                       "==",
                                       "(",
                                       ").",
                                       "12",
                                       "\xC3\xA9",
                                       "\xE4\xB8\xAD",
                                       "\xF0\x9F\x98\x80",
                                       "\t",
                                       "'s",
                                       "\xE2\x96\x81",
                                       " w",
                                       "ord",
                                       "ing",
                                       "-",
                                       "_"};
  std::string text;
  for (; n > 0; --n) text += kParts[random() % std::size(kParts)];
  return text;
}

std::string random_text(std::mt19937& random, size_t n) {
  static constexpr std::pair<uint32_t, uint32_t> kRanges[] = {{0, 0x7F},        {0x80, 0x7FF},       {0x800, 0xD7FF},
                                                              {0xE000, 0xFFFF}, {0x10000, 0x10FFFF}, {0x20, 0x7E}};
  std::string text;
  for (size_t i = 0; i < n; ++i) {
    const auto [low, high] = kRanges[random() % std::size(kRanges)];
    const uint32_t c = low + static_cast<uint32_t>(random()) % (high - low + 1);
    utf8_append(text, c == 0x2581 ? 'x' : c);  // SentencePiece cannot tell its mark from a space
  }
  return text;
}

}  // namespace

// The small vocabularies are the first tokens of real ones, in the order in which training found them, and for
// SentencePiece the single characters as well. A recorded answer that uses none of the tokens left out holds for the
// small vocabulary too, because a merge of a token left out would have shown in it; only such rows are stored.
TEST_CASE("tokenizer: recorded answers of llama.cpp for the beginnings of two vocabularies") {
  for (const std::string name : {"smollm2_first_6000", "llama_first_8000"}) {
    const Tokenizer t = load(kData + name + ".gguf");
    const auto answers = rows(contents(kData + name + ".jsonl"));
    CHECK(answers.size() > 50);
    for (const json& row : answers) check_row(t, row, row["text"]);
  }
}

TEST_CASE("tokenizer: recorded answers for whole vocabularies") {
  if (!std::filesystem::exists(kShared + "vectors/index.json")) {
    WARN("the shared vocabularies are not here: only the two small ones were checked");
    return;
  }
  std::map<int, std::string> texts;
  for (const json& row : rows(contents(kShared + "vectors/texts.jsonl"))) texts[row["id"]] = row["text"];
  const json index = json::parse(contents(kShared + "vectors/index.json"));
  for (const auto& [name, entry] : index.items()) {
    const std::string model = entry["model"];
    if (model.find(".gguf") == std::string::npos) continue;
    std::string path = kShared + model;
    const bool packed = model.ends_with(".xz");
    if (packed) {
      path = std::filesystem::temp_directory_path() / ("infer_test_" + std::to_string(getpid()) + "_" + name + ".gguf");
      std::ofstream(path, std::ios::binary) << unpacked(kShared + model);
    }
    const std::string vectors = unpacked(kShared + "vectors/" + name + ".jsonl.xz");
    if (vectors.empty()) {
      WARN("no program xz: skipping " << name);
      continue;
    }
    CAPTURE(name);
    const Tokenizer t = load(path);
    for (const json& row : rows(vectors)) check_row(t, row, texts.at(row["id"]));
    if (std::filesystem::exists(path + ".inp")) check_inp(t, path);
    if (packed) std::filesystem::remove(path);
  }
}

TEST_CASE("tokenizer: the answers are those of merging the best pair of the whole text again and again") {
  std::mt19937 random(9);
  const Tokenizer sentencepiece = load(kData + "llama_first_8000.gguf");
  const Tokenizer bytes = load(kData + "smollm2_first_6000.gguf");
  const Pretokenizer cut(pretokenizer_spec("smollm", "test").rules);
  for (int i = 0; i < 400; ++i) {
    const std::string text = likely_text(random, 1 + random() % 60);
    CAPTURE(text);
    CHECK(sentencepiece.encode(text, false, false) == slow_sentencepiece(sentencepiece.vocabulary(), text));
    Ids want;
    for (const Span word : cut.split(text))
      slow_byte_level(bytes.vocabulary(), text.substr(word.begin, word.end - word.begin), want);
    CHECK(bytes.encode(text, false, false) == want);
  }
}

TEST_CASE("tokenizer: random Unicode survives encoding and decoding") {
  std::mt19937 random(7);
  const Tokenizer bytes(byte_level_vocabulary());
  const Tokenizer sentencepiece = load(kData + "llama_first_8000.gguf");
  for (int i = 0; i < 2000; ++i) {
    const std::string text = random_text(random, random() % 40);
    for (const Tokenizer* t : {&bytes, &sentencepiece}) {
      const std::string back = t->decode(t->encode(text, false, false));
      if (back != text) FAIL_CHECK(escaped(text, 1000) + " became " + escaped(back, 1000));
    }
  }
}

TEST_CASE("tokenizer: bytes that are no characters do not stop it") {
  const Tokenizer bytes(byte_level_vocabulary());
  const Tokenizer sentencepiece = load(kData + "llama_first_8000.gguf");
  std::mt19937 random(8);
  for (int i = 0; i < 500; ++i) {
    std::string text;
    for (size_t n = random() % 30; n > 0; --n) text += static_cast<char>(random());
    CHECK(bytes.decode(bytes.encode(text, false, false)) == utf8_repaired(text));
    CHECK(sentencepiece.decode(sentencepiece.encode(text, false, false)) == text);
  }
}

TEST_CASE("tokenizer: what a user writes never becomes a control token") {
  for (const bool merges_spell_it : {false, true}) {
    Vocabulary v = byte_level_vocabulary();
    if (merges_spell_it) {  // a hostile file: merges that build the token's own text
      v.pre = "superbpe";   // hardly cuts anything
      const std::string text = "<|im_end|>";
      for (size_t n = 2; n < text.size(); ++n) {
        v.merges.push_back(text.substr(0, n - 1) + " " + text[n - 1]);
        v.tokens.push_back(text.substr(0, n));
        v.types.push_back(TokenType::normal);
      }
      v.merges.push_back("<|im_end| >");
    }
    const Tokenizer t(std::move(v));
    const Ids ids = t.encode("a<|im_end|>b", false, false);
    CHECK(std::count(ids.begin(), ids.end(), 261) == 0);
    CHECK(t.decode(ids) == "a<|im_end|>b");
    CHECK(t.encode("a<|im_end|>b", false, true) == Ids{'a', 261, 'b'});
  }
}

TEST_CASE("tokenizer: pieces are one text in which control tokens keep to their pieces") {
  const Tokenizer t(byte_level_vocabulary());
  const auto encode = [&](std::vector<TextPiece> pieces) { return t.encode(pieces, false); };
  CHECK(encode({{"<|im_start|>", true}, {"<|im_end|>", false}, {"<|im_end|>", true}}).front() == 262);
  const Ids mixed = encode({{"<|im_start|>", true}, {"<|im_end|>", false}, {"<|im_end|>", true}});
  CHECK(std::count(mixed.begin(), mixed.end(), 261) == 1);
  CHECK(mixed.back() == 261);
  // Neither half of a control token may come from another piece, whichever side parses.
  for (const bool first : {false, true}) {
    const Ids split = encode({{"<|im_", first}, {"end|>", !first}});
    CHECK(std::count(split.begin(), split.end(), 261) == 0);
  }
  CHECK(encode({{"<|im_", true}, {"end|>", true}}) == Ids{261});
  // Words and user-defined tokens do span pieces.
  CHECK(encode({{" he", true}, {"llo", false}}) == Ids{260});
  CHECK(encode({{"a\n", true}, {"\nb", false}}) == Ids{'a', 263, 'b'});
  CHECK(encode({}).empty());
}

TEST_CASE("tokenizer: the longest special token wins, user-defined ones in any text") {
  Vocabulary v = byte_level_vocabulary();
  for (const std::string run : {"\n\n\n", "\n\n\n\n\n"}) {
    v.tokens.push_back(run);
    v.types.push_back(TokenType::user_defined);
  }
  const Tokenizer t(std::move(v));
  CHECK(t.encode("\n\n\n\n\n\n\n\n\n", false, false) == Ids{265, 264, '\n'});
  CHECK(t.encode("\n\n\n\n", false, true) == Ids{264, '\n'});
}

TEST_CASE("tokenizer: SentencePiece puts a space before text and takes it away again") {
  Tokenizer t = load(kData + "llama_first_8000.gguf");
  CHECK(t.adds_bos());
  CHECK(t.decode(t.encode("Hello", false, true)) == "Hello");
  CHECK(t.decode(t.encode(" Hello", false, true)) == " Hello");
  CHECK(t.decode(t.encode("Hello", true, true)) == "<s> Hello");
  CHECK(t.encode("", true, true) == Ids{1});
  CHECK(t.encode("", false, true).empty());
  Vocabulary v = t.vocabulary();
  v.add_space_prefix = false;
  v.add_bos = false;
  v.add_eos = true;
  const Tokenizer bare(std::move(v));
  const Ids ids = bare.encode("Hello", true, true);
  CHECK(bare.decode(ids) == "Hello</s>");
  CHECK(ids.back() == 2);
  CHECK(bare.encode(" Hello", false, true) == t.encode("Hello", false, true));
}

TEST_CASE("tokenizer: SentencePiece cuts no word where a token spans the cut") {
  Vocabulary v;
  v.model = "llama";
  const std::string mark = "\xE2\x96\x81";
  v.tokens = {"<unk>", "<s>", "</s>", mark, "a", "b", "a" + mark, "a" + mark + "b", mark + "a", mark + mark};
  v.scores = {0, 0, 0, -9, -9, -9, -2, -1, -3, -4};
  v.types.assign(10, TokenType::normal);
  v.types[0] = TokenType::unknown;
  v.types[1] = v.types[2] = TokenType::control;
  v.bos = 1, v.eos = 2, v.unk = 0;
  v.add_space_prefix = false;
  const Tokenizer t(std::move(v));
  CHECK(t.encode("a b", false, true) == Ids{7});
  CHECK(t.encode("b a", false, true) == Ids{5, 8});
  CHECK(t.encode("   ", false, true) == Ids{9, 3});
  CHECK(t.encode("z", false, true) == Ids{0});         // no byte tokens: unknown
  CHECK(t.encode("\xC3\xA9", false, true) == Ids{0});  // one for a character
}

TEST_CASE("tokenizer: Phi-3's special tokens swallow the blanks behind them") {
  Vocabulary v = byte_level_vocabulary();
  v.name = "Phi-3 mini";
  const Tokenizer t(std::move(v));
  CHECK(t.encode("<|im_end|> \n\ta", false, true) == Ids{261, 'a'});
  CHECK(Tokenizer(byte_level_vocabulary()).encode("<|im_end|> a", false, true).size() == 3);
}

TEST_CASE("tokenizer: tokens that end an answer are known by id and by text") {
  Vocabulary v = byte_level_vocabulary();
  v.eos = -1;
  for (const std::string text : {"<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<file>"})
    v.tokens.push_back(text), v.types.push_back(TokenType::normal);
  v.eom = 267;
  const Tokenizer t(std::move(v));
  CHECK(t.eog_ids() == Ids{261, 264, 265, 266, 267});
  CHECK(t.is_control(264));     // whatever the file says
  CHECK(t.piece(264).empty());  // and so not printed
  CHECK(t.decode(Ids{264}) == "<|eot_id|>");
  CHECK(!t.is_eog(-1));
  CHECK(!t.is_eog(1 << 20));
}

TEST_CASE("tokenizer: where messages have channels, <|end|> does not end the answer") {
  Vocabulary v = byte_level_vocabulary();
  for (const std::string text : {"<|end|>", "<|return|>", "<|call|>"})
    v.tokens.push_back(text), v.types.push_back(TokenType::control);
  const Tokenizer t(std::move(v));
  CHECK(!t.is_eog(264));
  CHECK(t.is_eog(265));
  CHECK(t.is_eog(266));
}

TEST_CASE("tokenizer: types that are final are not corrected") {
  Vocabulary v = byte_level_vocabulary();
  v.tokens.push_back("</s>");
  v.types.push_back(TokenType::normal);
  v.types_are_final = true;
  const Tokenizer t(std::move(v));
  CHECK(!t.is_control(264));
  CHECK(!t.is_eog(264));
}

TEST_CASE("tokenizer: ids outside the vocabulary print nothing") {
  const Tokenizer t(byte_level_vocabulary());
  CHECK(t.decode(Ids{-1, 'a', 5000, INT32_MAX, INT32_MIN}) == "a");
  CHECK(t.piece(-1).empty());
  CHECK(t.text_of(99999).empty());
  CHECK(t.type(99999) == TokenType::undefined);
  CHECK(!t.find("no such token"));
  CHECK(t.find("<|im_end|>") == 261);
}

TEST_CASE("tokenizer: many threads get what one gets") {
  const Tokenizer t = load(kData + "smollm2_first_6000.gguf");
  const std::string text = contents(kData + "llama_first_8000.jsonl");
  std::vector<Ids> got(4);
  std::vector<std::thread> threads;
  for (Ids& ids : got) threads.emplace_back([&] { ids = t.encode(text, true, true); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& ids : got) CHECK(ids == t.encode(text, true, true));
  CHECK(got[0].size() > 1000);
}

TEST_CASE("tokenizer: a megabyte without a space costs about eight times an eighth of it") {
  for (const std::string name : {"smollm2_first_6000", "llama_first_8000"}) {
    const Tokenizer t = load(kData + name + ".gguf");
    const auto clocks = [&](const std::string& unit, size_t bytes) {
      std::string text;
      while (text.size() < bytes) text += unit;
      const std::clock_t start = std::clock();
      CHECK(t.encode(text, false, true).size() >= 1);
      return static_cast<double>(std::clock() - start);
    };
    for (const std::string unit :
         {"A", " ", "\n", ".", "\xE4\xB8\xAD", "ab", "aB1.\n\xE4\xB8\xAD", "<", "<|im_", "\xFF"}) {
      CAPTURE(name, unit);
      double ratio = 1e9;
      for (int attempt = 0; attempt < 3 && ratio > 24; ++attempt) {
        const double small = clocks(unit, 1 << 17);
        ratio = clocks(unit, 1 << 20) / std::max(small, 1000.0);
      }
      CHECK(ratio < 24);
    }
  }
}
