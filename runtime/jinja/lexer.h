// Cuts the source of a template into tokens, with white space control done as Jinja2 does it under trim_blocks and
// lstrip_blocks: the newline after a block goes, and so do blanks between the start of a line and a block.
// Knows no grammar.
#pragma once

#include "runtime/jinja/value.h"

namespace infer::jinja {

/// Where something stands in the source; both from 1, columns in code points.
struct Position {
  int line = 1, column = 1;
};

/// The template does not parse.
struct SyntaxFailure : Failure {
  SyntaxFailure(Position at, const std::string& message) : Failure(message), at(at) {}
  Position at;
};

enum class TokenKind : uint8_t {
  data,  ///< text between tags
  variable_begin,
  variable_end,
  block_begin,
  block_end,
  name,
  string,   ///< text without quotes, escapes resolved
  integer,  ///< integer
  number,   ///< number
  op,       ///< text: the operator
  end
};

struct Token {
  TokenKind kind = TokenKind::end;
  Position at;
  std::string text;
  Integer integer = 0;
  double number = 0;

  bool is_op(std::string_view op) const { return kind == TokenKind::op && text == op; }
  bool is_name(std::string_view name) const { return kind == TokenKind::name && text == name; }
};

/// The tokens of a template, the last of kind `end`.
std::vector<Token> tokenize(std::string_view source);

/// What a token is called in messages.
std::string describe(const Token& token);

}  // namespace infer::jinja
