// Where each family cuts, checked on texts that tell the rules apart; and that no rule is slow on any long run.
#include "runtime/pretokenizer.h"

#include <ctime>

#include "infer/error.h"
#include "tests/catch.h"

using namespace infer;

namespace {

using Words = std::vector<std::string>;

Words words(const std::string& name, const std::string& text) {
  const Pretokenizer pretokenizer(pretokenizer_spec(name, "test").rules);
  Words out;
  size_t begin = 0;
  for (const Span word : pretokenizer.split(text)) {
    CHECK(word.begin == begin);
    out.push_back(text.substr(begin, word.end - begin));
    begin = word.end;
  }
  CHECK(begin == text.size());
  return out;
}

std::string repeated(const std::string& unit, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += unit;
  return text;
}

}  // namespace

TEST_CASE("pretokenizer: gpt-2 keeps numbers whole and one space before a word") {
  CHECK(words("gpt-2", "I'll  pay 1234 now") == Words{"I", "'ll", " ", " pay", " 1234", " now"});
  CHECK(words("gpt-2", "x\n\n y") == Words{"x", "\n\n", " y"});
  CHECK(words("gpt-2", "DON'T") == Words{"DON", "'", "T"});
  CHECK(words("gpt-2", "").empty());
}

TEST_CASE("pretokenizer: llama-bpe cuts numbers in threes and joins a sign to the word behind it") {
  CHECK(words("llama-bpe", "DON'T (pay) 12345!\n\n") ==
        Words{"DON", "'T", " (", "pay", ")", " ", "123", "45", "!\n\n"});
  CHECK(words("llama-bpe", "a\n \n  b") == Words{"a", "\n \n", " ", " b"});
}

TEST_CASE("pretokenizer: qwen2, smollm and starcoder cut every digit, each in its own way") {
  CHECK(words("qwen2", "a 12") == Words{"a", " ", "1", "2"});
  CHECK(words("smollm", "a 12b") == Words{"a", " ", "1", "2", "b"});
  CHECK(words("starcoder", "\xD9\xA1\xD9\xA2") == Words{"\xD9\xA1", "\xD9\xA2"});
  CHECK(words("qwen2",
              "e\xCC\x81"
              "a") == Words{"e",
                            "\xCC\x81"
                            "a"});
  CHECK(words("qwen35",
              "e\xCC\x81"
              "a") == Words{"e\xCC\x81"
                            "a"});
}

TEST_CASE("pretokenizer: deepseek rules apply one after the other to what the ones before them left") {
  CHECK(words("deepseek-llm", "ab 12\n\xE4\xB8\xAD\xE6\x96\x87 x") ==
        Words{"ab", " ", "12", "\n", "\xE4\xB8\xAD\xE6\x96\x87", " x"});
  CHECK(words("deepseek-llm", "a  b  ") == Words{"a", " ", " b", "  "});
  CHECK(words("deepseek-v3", "1234x_foo") == Words{"123", "4", "x", "_foo"});
  CHECK(words("deepseek-coder", "a12") == Words{"a", "1", "2"});
}

TEST_CASE("pretokenizer: tekken and gpt-4o cut words where lower case turns to upper case") {
  CHECK(words("tekken", "helloWorld HTTPServer") == Words{"hello", "World", " HTTPServer"});
  CHECK(words("gpt-4o", "don't aB") == Words{"don't", " a", "B"});
  CHECK(words("gpt-4o", "1234//\n") == Words{"123", "4", "//\n"});
  CHECK(words("kimi-k2",
              "ab\xE4\xB8\xAD\xE6\x96\x87"
              "cD") == Words{"ab", "\xE4\xB8\xAD\xE6\x96\x87", "c", "D"});
}

TEST_CASE("pretokenizer: numbers counted from the right") {
  CHECK(words("superbpe", "1234567") == Words{"1", "234", "567"});
  CHECK(words("superbpe", "123") == Words{"123"});
  CHECK(words("tiny_aya", "12345 ") == Words{"12", "345", " "});
  CHECK(words("tiny_aya", "12345a") == Words{"123", "45", "a"});  // not at the end of a word: from the left
  CHECK(words("afmoe", "\xD9\xA1\xD9\xA2\xD9\xA3\xD9\xA4") == Words{"\xD9\xA1", "\xD9\xA2\xD9\xA3\xD9\xA4"});
}

TEST_CASE("pretokenizer: the rest of the table") {
  CHECK(words("falcon", "a==12345") == Words{"a", "==", "123", "45"});
  CHECK(words("default", "a==12345") == Words{"a", "==", "123", "45"});
  CHECK(words("bloom", "a, b (c)") == Words{"a", ",", " b", " (", "c", ")"});
  CHECK(words("exaone-moe", "a b c1 dd") == Words{"a b c", "1", " dd"});
  CHECK(words("laguna", "a\n\nb") == Words{"a", "\n\n", "b"});
  CHECK(words("jais-2", "a       b") == Words{"a", "    ", "  ", " b"});
  CHECK(words("jais-2", std::string(518, ' ')) == Words{std::string(512, ' '), "    ", "  "});
  CHECK(words("jais-2", "a   \n   1") == Words{"a", "   \n", "  ", " ", "1"});
  CHECK(words("chameleon", "IMGIMGABZ x1") == Words{"IMGIMGABZ", " x", "1"});
}

TEST_CASE("pretokenizer: white space is what Unicode says, not what PCRE2 adds") {
  // U+180E left White_Space in Unicode 6.3; U+0085 and U+2028 belong to it.
  CHECK(words("gpt-2", "a \xE1\xA0\x8E") == Words{"a", " \xE1\xA0\x8E"});
  CHECK(words("gpt-2", "a\xC2\x85\xE2\x80\xA8") == Words{"a", "\xC2\x85\xE2\x80\xA8"});
}

TEST_CASE("pretokenizer: every name of the table compiles, an unknown one is refused by name") {
  const auto names = pretokenizer_names();
  CHECK(names.size() > 60);
  for (const std::string& name : names) {
    CAPTURE(name);
    CHECK(words(name, "Hello, world! 123\n").size() >= 1);
  }
  CHECK_THROWS_WITH(pretokenizer_spec("gpt-9\x1B[2J", "m.gguf: tokenizer.ggml.pre"),
                    Catch::Contains("m.gguf: tokenizer.ggml.pre") && Catch::Contains("\"gpt-9\\x1b[2J\""));
  CHECK_THROWS_AS(pretokenizer_spec("", "test"), Error);
  CHECK_THROWS_AS(pretokenizer_spec("gpt-2 phi-2", "test"), Error);
}

TEST_CASE("pretokenizer: a pattern that is not valid is refused, a match of nothing ends") {
  CHECK_THROWS_AS(Pretokenizer({{"(", Cut::around}}), Error);
  CHECK(Pretokenizer({{"x*", Cut::around}}).split("axxb") == std::vector<Span>{{0, 1}, {1, 3}, {3, 4}});
}

TEST_CASE("pretokenizer: eight times the text takes about eight times as long, whatever it repeats") {
  std::vector<std::string> seen;
  for (const std::string& name : pretokenizer_names()) {
    std::string key;
    const PretokenizerSpec spec = pretokenizer_spec(name, "test");
    for (const CutRule& rule : spec.rules) key += rule.pattern + '\n';
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) continue;
    seen.push_back(key);
    const Pretokenizer pretokenizer(spec.rules);
    const auto clocks = [&](const std::string& text) {
      const std::clock_t start = std::clock();
      const auto words = pretokenizer.split(text);
      CHECK(words.back().end == text.size());
      return static_cast<double>(std::clock() - start);
    };
    for (const std::string unit : {"A", " ", "\n", ".", "\xE4\xB8\xAD", "1", " \n", "aB1 .\n'", "\xCC\x81"}) {
      CAPTURE(name, unit);
      const std::string tail = "1x";  // the run is not at the end, where many rules look
      double ratio = 1e9;
      for (int attempt = 0; attempt < 3 && ratio > 30; ++attempt) {
        const double small = clocks(repeated(unit, 16 << 10) + tail);
        ratio = clocks(repeated(unit, 128 << 10) + tail) / std::max(small, 300.0);
      }
      CHECK(ratio < 30);
    }
  }
}
