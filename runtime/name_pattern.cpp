// PCRE2 without JIT: names are short and patterns few.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "runtime/name_pattern.h"

#include <pcre2.h>

#include "infer/error.h"

namespace infer {

struct NamePattern::Code {
  pcre2_code* code = nullptr;
  pcre2_match_data* match = nullptr;
  ~Code() {
    pcre2_match_data_free(match);
    pcre2_code_free(code);
  }
};

NamePattern::NamePattern(const std::string& pattern, const char* option) {
  auto made = std::make_shared<Code>();
  int error = 0;
  PCRE2_SIZE offset = 0;
  made->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), 0, &error, &offset, nullptr);
  if (!made->code) {
    PCRE2_UCHAR text[200];
    pcre2_get_error_message(error, text, sizeof text);
    throw Error(ErrorKind::usage, option, "malformed pattern: " + std::string(reinterpret_cast<const char*>(text)),
                "'" + escaped(pattern) + "'");
  }
  made->match = pcre2_match_data_create(1, nullptr);
  if (!made->match) throw std::bad_alloc();
  code_ = std::move(made);
}

bool NamePattern::found_in(const std::string& name) const {
  return pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(name.data()), name.size(), 0, 0, code_->match,
                     nullptr) >= 0;
}

}  // namespace infer
