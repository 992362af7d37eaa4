// What a file may say about its tokens and what is refused; the malformed ones stand for files that were found or made.
#include "runtime/vocabulary.h"

#include "runtime/tokenizer.h"
#include "tests/catch.h"

using namespace infer;
using Catch::Contains;

namespace {

Value strings(std::vector<std::string> v) { return {std::move(v), "array of string"}; }
Value ints(std::vector<int64_t> v, const std::string& type = "array of i32") { return {std::move(v), type}; }
Value floats(std::vector<double> v) { return {std::move(v), "array of f32"}; }
Value integer(int64_t v) { return {v, "u32"}; }

// A small SentencePiece-style vocabulary that is in order.
Checkpoint sentencepiece() {
  Checkpoint c;
  c.path = "m.gguf";
  c.metadata["tokenizer.ggml.model"] = {std::string("llama"), "string"};
  c.metadata["tokenizer.ggml.tokens"] = strings({"<unk>", "<s>", "</s>", "<0x0A>", "\xE2\x96\x81", "a", "b", "ab"});
  c.metadata["tokenizer.ggml.scores"] = floats({0, 0, 0, 0, -1, -2, -3, -0.5});
  c.metadata["tokenizer.ggml.token_type"] = ints({2, 3, 3, 6, 1, 1, 1, 1});
  return c;
}

Checkpoint byte_level() {
  Checkpoint c;
  c.path = "m.gguf";
  c.metadata["tokenizer.ggml.model"] = {std::string("gpt2"), "string"};
  c.metadata["tokenizer.ggml.pre"] = {std::string("gpt-2"), "string"};
  c.metadata["tokenizer.ggml.tokens"] = strings({"a", "b", "c", "ab", "abc", "<|endoftext|>"});
  c.metadata["tokenizer.ggml.token_type"] = ints({1, 1, 1, 1, 1, 3});
  c.metadata["tokenizer.ggml.merges"] = strings({"a b", "ab c"});
  c.metadata["tokenizer.ggml.eos_token_id"] = integer(5);
  return c;
}

Tokenizer load(const Checkpoint& c) { return Tokenizer(*vocabulary_from(c)); }

void refused(const Checkpoint& c, const std::string& key) {
  CAPTURE(key);
  try {
    load(c);
    FAIL("was accepted");
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::bad_file);
    CHECK_THAT(e.what(), Contains("m.gguf") && Contains(key));
  }
}

template <class Edit>
void refused(Checkpoint c, const std::string& key, const Edit& edit) {
  edit(c.metadata);
  refused(c, key);
}

using Metadata = std::map<std::string, Value, std::less<>>;
const std::string kT = "tokenizer.ggml.";

}  // namespace

TEST_CASE("vocabulary: the two that are in order load") {
  CHECK(load(sentencepiece()).encode("ab\n", true, true) == std::vector<int32_t>{1, 4, 7, 3});
  CHECK(load(byte_level()).encode("abcab", true, true) == std::vector<int32_t>{4, 3});
}

TEST_CASE("vocabulary: a file may have none") {
  Checkpoint c;
  CHECK(!vocabulary_from(c));
  for (const std::string none : {"none", "no_vocab"}) {
    c.metadata["tokenizer.ggml.model"] = {none, "string"};
    CHECK(!vocabulary_from(c));
  }
}

TEST_CASE("vocabulary: an unknown tokenizer model or pre-tokenizer is refused by name") {
  for (const std::string model : {"bert", "rwkv", "", "LLAMA", "llama\x1B[2J"}) {
    refused(sentencepiece(), kT + "model", [&](Metadata& m) { m[kT + "model"] = {model, "string"}; });
  }
  refused(sentencepiece(), kT + "model", [](Metadata& m) { m[kT + "model"] = integer(1); });
  refused(byte_level(), kT + "pre", [](Metadata& m) { m[kT + "pre"] = {std::string("gpt-7"), "string"}; });
  refused(byte_level(), kT + "pre", [](Metadata& m) { m[kT + "pre"] = integer(1); });
  refused(sentencepiece(), "charsmap", [](Metadata& m) {
    m[kT + "precompiled_charsmap"] = ints({1, 2, 3}, "array of u8");
  });
}

TEST_CASE("vocabulary: a missing pre-tokenizer name takes the default rule and says so") {
  Checkpoint c = byte_level();
  c.metadata.erase(kT + "pre");
  const Tokenizer t = load(c);
  REQUIRE(t.warnings().size() == 1);
  CHECK_THAT(t.warnings()[0], Contains("tokenizer.ggml.pre"));
}

TEST_CASE("vocabulary: no tokens, not strings, twice the same") {
  refused(sentencepiece(), kT + "tokens", [](Metadata& m) { m.erase(kT + "tokens"); });
  refused(sentencepiece(), kT + "tokens", [](Metadata& m) { m[kT + "tokens"] = strings({}); });
  refused(sentencepiece(), kT + "tokens", [](Metadata& m) { m[kT + "tokens"] = ints({1, 2}); });
  refused(byte_level(), "duplicate token", [](Metadata& m) {
    m[kT + "tokens"] = strings({"a", "b", "c", "ab", "a", "x"});
  });
}

TEST_CASE("vocabulary: empty tokens get a name, as everywhere") {
  Checkpoint c = byte_level();
  c.metadata[kT + "tokens"] = strings({"a", "b", "c", "ab", "abc", ""});
  c.metadata[kT + "token_type"] = ints({1, 1, 1, 1, 1, 1});
  CHECK(load(c).text_of(5) == "[EMPTY_5]");
}

TEST_CASE("vocabulary: scores and types have the right element type and one element for each token") {
  const std::vector<int64_t> types{2, 3, 3, 6, 1, 1, 1, 1};
  for (const std::string type : {"array of u8", "array of i8", "array of u16", "array of i16", "array of u64",
                                 "array of i64", "array of bool"}) {
    refused(sentencepiece(), kT + "token_type", [&](Metadata& m) { m[kT + "token_type"] = ints(types, type); });
    refused(sentencepiece(), kT + "scores", [&](Metadata& m) { m[kT + "scores"] = ints(types, type); });
  }
  refused(sentencepiece(), kT + "token_type", [](Metadata& m) { m[kT + "token_type"] = strings({"1"}); });
  refused(sentencepiece(), kT + "scores", [](Metadata& m) { m[kT + "scores"] = strings({"1"}); });
  refused(sentencepiece(), kT + "scores", [](Metadata& m) { m[kT + "scores"] = integer(3); });
  for (const size_t n : {0, 1, 7, 9}) {
    refused(sentencepiece(), kT + "token_type",
            [&](Metadata& m) { m[kT + "token_type"] = ints(std::vector<int64_t>(n, 1)); });
    refused(sentencepiece(), kT + "scores",
            [&](Metadata& m) { m[kT + "scores"] = floats(std::vector<double>(n, 0.)); });
  }
  refused(sentencepiece(), kT + "token_type", [](Metadata& m) {
    m[kT + "token_type"] = ints({2, 3, 3, 6, 1, 1, 1, 7});
  });
  refused(sentencepiece(), kT + "token_type", [](Metadata& m) {
    m[kT + "token_type"] = ints({2, 3, 3, 6, 1, 1, 1, -1});
  });
  refused(sentencepiece(), kT + "scores", [](Metadata& m) { m[kT + "scores"] = floats({0, 0, 0, NAN, 0, 0, 0, 0}); });
}

TEST_CASE("vocabulary: whole numbers may be scores") {
  Checkpoint c = sentencepiece();
  c.metadata[kT + "scores"] = ints({0, 0, 0, 0, -1, -2, -3, -1});
  CHECK(load(c).encode("ab", false, true) == std::vector<int32_t>{4, 7});
}

TEST_CASE("vocabulary: special ids lie inside the vocabulary") {
  for (const std::string key :
       {"bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id", "seperator_token_id",
        "padding_token_id", "fim_pad_token_id", "mask_token_id", "fim_mid_token_id", "prefix_token_id"}) {
    for (const int64_t id : {int64_t{8}, int64_t{-1}, int64_t{0xFFFFFFFF}, int64_t{1} << 40}) {
      refused(sentencepiece(), kT + key, [&](Metadata& m) { m[kT + key] = integer(id); });
    }
    refused(sentencepiece(), kT + key, [&](Metadata& m) { m[kT + key] = {std::string("1"), "string"}; });
    refused(sentencepiece(), kT + key, [&](Metadata& m) { m[kT + key] = {1.0, "f32"}; });
  }
}

TEST_CASE("vocabulary: default ids past a tiny vocabulary are not used") {
  Checkpoint c = sentencepiece();
  c.metadata[kT + "tokens"] = strings({"a"});
  c.metadata[kT + "scores"] = floats({0});
  c.metadata[kT + "token_type"] = ints({1});
  const Tokenizer t = load(c);
  CHECK(t.bos() == -1);
  CHECK(t.eos() == -1);
  CHECK(!t.adds_bos());
  CHECK(t.encode("a", true, true) == std::vector<int32_t>{0, 0});  // the mark is no token: unknown
  c.metadata[kT + "add_bos_token"] = {true, "bool"};
  refused(c, kT + "add_bos_token");
  c.metadata[kT + "add_bos_token"] = {false, "bool"};
  c.metadata[kT + "add_eos_token"] = {true, "bool"};
  refused(c, kT + "add_eos_token");
}

TEST_CASE("vocabulary: byte tokens are exactly <0x and two hexadecimal digits>") {
  CHECK(byte_of("<0x0a>") == uint8_t{10});
  CHECK(byte_of("<0xFF>") == uint8_t{255});
  for (const std::string bad :
       {"<0x-1>", "<0xZZ>", "<0x100>", "<0x1>", "<0x>", "0x10", "<0x 1>", "<0x+1>", "<0X10>", "x"}) {
    CHECK(!byte_of(bad));
    refused(sentencepiece(), kT + "tokens 3", [&](Metadata& m) {
      m[kT + "tokens"] = strings({"<unk>", "<s>", "</s>", bad, "\xE2\x96\x81", "a", "b", "ab"});
    });
  }
}

TEST_CASE("vocabulary: merges are two parts with one space, unknown ones are counted and skipped") {
  for (const std::string bad : {"", " ", "ab", "a ", " b", "a b c", "a  b"}) {
    refused(byte_level(), kT + "merges 1", [&](Metadata& m) { m[kT + "merges"] = strings({"a b", bad}); });
  }
  refused(byte_level(), kT + "merges 0", [](Metadata& m) { m[kT + "merges"] = strings({std::string(4 << 20, 'a')}); });
  refused(byte_level(), kT + "merges", [](Metadata& m) { m.erase(kT + "merges"); });
  refused(byte_level(), kT + "merges", [](Metadata& m) { m[kT + "merges"] = ints({1}); });
  Checkpoint c = byte_level();
  c.metadata[kT + "merges"] = strings({"x y", "b c", "a b", "\xC4\xA0 \xF0\x9F\x98\x80"});
  const Tokenizer t = load(c);
  REQUIRE(t.warnings().size() == 1);
  CHECK_THAT(t.warnings()[0], Contains("3 merges"));
  CHECK(t.encode("abc", false, true) == std::vector<int32_t>{3, 2});
}

TEST_CASE("vocabulary: a special token of unreasonable length is refused") {
  refused(byte_level(), "special token", [](Metadata& m) {
    m[kT + "tokens"] = strings({"a", "b", "c", "ab", "abc", std::string(2000, 'x')});
  });
}

TEST_CASE("vocabulary: one that was put together by hand is checked as well") {
  Vocabulary v;
  v.model = "llama";
  CHECK_THROWS_AS(Tokenizer(v), Error);
  v.tokens = {"a"};
  v.bos = 1;
  CHECK_THROWS_AS(Tokenizer(v), Error);
  v.bos = -1;
  v.scores = {1, 2};
  CHECK_THROWS_AS(Tokenizer(v), Error);
  v.scores.clear();
  v.types = {TokenType::normal, TokenType::normal};
  CHECK_THROWS_AS(Tokenizer(v), Error);
  v.types.clear();
  CHECK_NOTHROW(Tokenizer(v));
  v.model = "wordpiece";
  CHECK_THROWS_AS(Tokenizer(v), Error);
}
