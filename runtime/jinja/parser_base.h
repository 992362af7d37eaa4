// What the two halves of the parser (expressions, statements) share: the token stream, the tables of names and
// constants, and the count of how deep the parser is. Private to the parser.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <unordered_map>

#include "infer/error.h"
#include "runtime/jinja/parser.h"

namespace infer::jinja {

class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  /// Alive while one level of nesting is parsed.
  struct Level {
    explicit Level(ExpressionParser& parser) : parser(parser) {
      if (++parser.depth_ > kMaxTreeDepth) parser.fail_depth();
    }
    ~Level() { --parser.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;
    ExpressionParser& parser;
  };

  // --- the stream
  const Token& current() const { return tokens_[next_]; }
  const Token& following() const { return tokens_[std::min(next_ + 1, tokens_.size() - 1)]; }
  const Token& take() {
    const Token& token = tokens_[next_];
    if (next_ + 1 < tokens_.size()) ++next_;
    return token;
  }
  bool skip_op(std::string_view op) { return current().is_op(op) && (take(), true); }
  bool skip_name(std::string_view name) { return current().is_name(name) && (take(), true); }
  void expect_op(const char* op) {
    if (!skip_op(op)) fail_expected(op);
  }
  const std::string& expect_name(const char* what) {
    if (current().kind != TokenKind::name) fail_expected(what);
    return take().text;
  }
  // Out of line, like everything that builds messages: the frames of the parser are to stay small.
  [[noreturn]] void fail(Position at, const std::string& message) const;
  [[noreturn]] void fail_expected(const char* what) const;
  [[noreturn]] void fail_depth() const;

  // --- the tree
  size_t name_id(const std::string& name);
  ExpressionPtr make(ExpressionKind kind, Position at) const;
  /// Adds a child and keeps the depth of the parent.
  void adopt(Expression& parent, ExpressionPtr child) const;
  void adopt_argument(Expression& parent, Argument argument) const;

  // --- expressions
  ExpressionPtr parse_expression();
  /// A tuple without brackets, or one expression. `end_name` is a word that ends the tuple.
  ExpressionPtr parse_tuple(bool with_condition = true, std::string_view end_name = {}, bool in_brackets = false);
  ExpressionPtr parse_primary();
  ExpressionPtr parse_postfix(ExpressionPtr value);
  /// Filters after a value; a null value starts the filters of a block, where `inline_first` leaves out the first '|'.
  ExpressionPtr parse_filters(ExpressionPtr value, bool inline_first);

  Tree tree_;
  bool uses_caller_ = false, uses_kwargs_ = false, uses_varargs_ = false;

 private:
  /// An operator between two values, and how tightly it binds.
  struct Sign {
    int rank = 0;  ///< 0: not an operator
    ExpressionKind kind = ExpressionKind::arithmetic;
    uint8_t code = 0;  ///< Operator or Comparison
  };
  Sign current_sign() const;
  void skip_sign();
  /// Operators of at least this rank with their operands.
  ExpressionPtr parse_ranked(int least);
  ExpressionPtr parse_not();
  ExpressionPtr parse_signed();
  ExpressionPtr parse_brackets();
  ExpressionPtr parse_string();
  ExpressionPtr parse_conditional_rest();
  ExpressionPtr parse_unary(bool with_filters);
  ExpressionPtr parse_subscript(ExpressionPtr value);
  ExpressionPtr parse_call(ExpressionPtr value);
  ExpressionPtr parse_test(ExpressionPtr value);
  ExpressionPtr parse_list();
  ExpressionPtr parse_dict();
  ExpressionPtr parse_constant(const Token& token);
  void parse_arguments(Expression& call);
  bool ends_tuple(std::string_view end_name) const;

  std::vector<Token> tokens_;
  size_t next_ = 0;
  int depth_ = 0;
  std::unordered_map<std::string, size_t> name_ids_;
};

}  // namespace infer::jinja
