// Well-formedness against the table of the standard, and the stream against every way of cutting a text into pieces.
#include "runtime/utf8.h"

#include "tests/catch.h"

using namespace infer;
using namespace std::string_literals;

TEST_CASE("utf8: a character is as long as the standard says") {
  CHECK(utf8_length("a", 0) == 1);
  CHECK(utf8_length("\xC3\xA9", 0) == 2);
  CHECK(utf8_length("\xE4\xB8\xAD", 0) == 3);
  CHECK(utf8_length("\xF0\x9F\x98\x80", 0) == 4);
  CHECK(utf8_length("\xF4\x8F\xBF\xBF", 0) == 4);
  CHECK(utf8_length("\0"s, 0) == 1);
}

TEST_CASE("utf8: overlong forms, surrogates, strays and what lies past U+10FFFF are no characters") {
  for (const std::string bad :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x80\x80\x80",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xC3", "\xE4\xB8", "\xF0\x9F\x98", "\xC3("}) {
    CAPTURE(bad);
    CHECK(utf8_length(bad, 0) == 0);
    CHECK(utf8_first_bad("ascii, ascii" + bad) == 12);
  }
}

TEST_CASE("utf8: every code point survives append and decode") {
  for (uint32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    utf8_append(text, c);
    if (utf8_length(text, 0) != text.size() || utf8_decode(text, 0, text.size()) != c) FAIL("code point " << c);
  }
  SUCCEED();
}

TEST_CASE("utf8: repair replaces bad bytes and nothing else") {
  CHECK(utf8_repaired("a\xFFz \xC3\xA9") == "a\xEF\xBF\xBDz \xC3\xA9");
  CHECK(utf8_repaired("\xE4\xB8") == "\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(utf8_repaired("") == "");
  CHECK(utf8_repaired("0123456789\xF0\x9F\x98\x80") == "0123456789\xF0\x9F\x98\x80");
}

TEST_CASE("utf8: a stream gives whole characters however its text is cut") {
  const std::string text = "a\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80z";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    for (size_t next = cut; next <= text.size(); ++next) {
      Utf8Stream stream;
      std::string out;
      for (const std::string& part : {text.substr(0, cut), text.substr(cut, next - cut), text.substr(next)}) {
        const std::string whole = stream.feed(part);
        CHECK(utf8_first_bad(whole) == whole.size());
        out += whole;
      }
      CHECK(out == text);
      CHECK(stream.flush().empty());
    }
  }
}

TEST_CASE("utf8: a stream holds back at most three bytes and replaces what can no longer become a character") {
  Utf8Stream stream;
  CHECK(stream.feed("\xF0\x9F\x98") == "");
  CHECK(stream.pending() == 3);
  CHECK(stream.flush() == "\xEF\xBF\xBD");
  CHECK(stream.pending() == 0);
  CHECK(stream.feed("\xE4\xB8") == "");
  CHECK(stream.feed("x") == "\xEF\xBF\xBDx");
  CHECK(stream.feed("\xFF\x80") == "\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(stream.feed("\xED\xA0") == "\xEF\xBF\xBD\xEF\xBF\xBD");  // a surrogate never completes
  CHECK(stream.pending() == 0);
}
