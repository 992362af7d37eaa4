// The expression half of the parser. Operators of one rank become one flat node, so only real nesting is deep; every
// node knows its depth and none exceeds kMaxTreeDepth.
#include <cctype>

#include "runtime/jinja/parser_base.h"

namespace infer::jinja {

void ExpressionParser::fail(Position at, const std::string& message) const { throw SyntaxFailure(at, message); }

void ExpressionParser::fail_expected(const char* what) const {
  const bool sign = !std::isalpha(static_cast<unsigned char>(what[0])) && what[0] != '\'';
  fail(current().at, "expected " + (sign ? "'" + std::string(what) + "'" : what) + ", found " + describe(current()));
}

void ExpressionParser::fail_depth() const {
  fail(current().at, "nested deeper than " + std::to_string(kMaxTreeDepth) + " levels");
}

size_t ExpressionParser::name_id(const std::string& name) {
  const auto [entry, is_new] = name_ids_.try_emplace(name, tree_.names.size());
  if (is_new) tree_.names.push_back(name);
  return entry->second;
}

ExpressionPtr ExpressionParser::make(ExpressionKind kind, Position at) const {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->at = at;
  return expression;
}

void ExpressionParser::adopt(Expression& parent, ExpressionPtr child) const {
  if (child) {
    parent.depth = std::max(parent.depth, child->depth + 1);
    if (parent.depth > kMaxTreeDepth) fail_depth();
  }
  parent.children.push_back(std::move(child));
}

void ExpressionParser::adopt_argument(Expression& parent, Argument argument) const {
  parent.depth = std::max(parent.depth, argument.value->depth + 1);
  if (parent.depth > kMaxTreeDepth) fail_depth();
  parent.arguments.push_back(std::move(argument));
}

ExpressionPtr ExpressionParser::parse_expression() {
  ExpressionPtr value = parse_ranked(1);
  while (current().is_name("if")) {
    auto chosen = make(ExpressionKind::conditional, take().at);
    adopt(*chosen, parse_ranked(1));
    adopt(*chosen, std::move(value));
    adopt(*chosen, skip_name("else") ? parse_conditional_rest() : nullptr);
    value = std::move(chosen);
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_conditional_rest() {
  const Level level(*this);
  return parse_expression();
}

constexpr int kNotRank = 3;

ExpressionParser::Sign ExpressionParser::current_sign() const {
  struct Row {
    std::string_view text;
    Sign sign;
  };
  static constexpr auto kCompare = [](Comparison c) {
    return Sign{4, ExpressionKind::comparison, static_cast<uint8_t>(c)};
  };
  static constexpr auto kCompute = [](int rank, Operator o) {
    return Sign{rank, ExpressionKind::arithmetic, static_cast<uint8_t>(o)};
  };
  static constexpr Row kRows[] = {
      {"==", kCompare(Comparison::equal)},       {"!=", kCompare(Comparison::not_equal)},
      {"<", kCompare(Comparison::less)},         {"<=", kCompare(Comparison::less_equal)},
      {">", kCompare(Comparison::greater)},      {">=", kCompare(Comparison::greater_equal)},
      {"+", kCompute(5, Operator::add)},         {"-", kCompute(5, Operator::subtract)},
      {"~", Sign{6, ExpressionKind::concat, 0}}, {"*", kCompute(7, Operator::multiply)},
      {"/", kCompute(7, Operator::divide)},      {"//", kCompute(7, Operator::floor_divide)},
      {"%", kCompute(7, Operator::modulo)},      {"**", kCompute(8, Operator::power)}};
  const Token& token = current();
  if (token.kind == TokenKind::op) {
    for (const Row& row : kRows) {
      if (token.text == row.text) return row.sign;
    }
  } else if (token.kind == TokenKind::name) {
    if (token.text == "or") return {1, ExpressionKind::any_of, 0};
    if (token.text == "and") return {2, ExpressionKind::all_of, 0};
    if (token.text == "in") return kCompare(Comparison::in);
    if (token.text == "not" && following().is_name("in")) return kCompare(Comparison::not_in);
  }
  return {};
}

void ExpressionParser::skip_sign() {
  if (take().is_name("not")) take();
}

ExpressionPtr ExpressionParser::parse_ranked(int least) {
  const Level level(*this);
  ExpressionPtr value = least <= kNotRank && current().is_name("not") ? parse_not() : parse_unary(true);
  for (Sign sign = current_sign(); sign.rank >= least && sign.rank > 0; sign = current_sign()) {
    const int rank = sign.rank;
    auto chain = make(sign.kind, current().at);
    adopt(*chain, std::move(value));
    for (; sign.rank == rank; sign = current_sign()) {
      chain->operators.push_back(sign.code);
      skip_sign();
      adopt(*chain, parse_ranked(rank + 1));
    }
    value = std::move(chain);
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_not() {
  auto inverted = make(ExpressionKind::invert, take().at);
  adopt(*inverted, parse_ranked(kNotRank));
  return inverted;
}

ExpressionPtr ExpressionParser::parse_signed() {
  const Level level(*this);
  const bool minus = current().is_op("-");
  auto value = make(minus ? ExpressionKind::negate : ExpressionKind::positive, take().at);
  adopt(*value, parse_unary(false));
  return value;
}

ExpressionPtr ExpressionParser::parse_unary(bool with_filters) {
  ExpressionPtr value = current().is_op("-") || current().is_op("+") ? parse_signed() : parse_primary();
  value = parse_postfix(std::move(value));
  while (with_filters) {
    if (current().is_op("|")) {
      value = parse_filters(std::move(value), false);
    } else if (current().is_name("is")) {
      value = parse_test(std::move(value));
    } else if (current().is_op("(")) {
      value = parse_call(std::move(value));
    } else {
      break;
    }
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_constant(const Token& token) {
  auto constant = make(ExpressionKind::constant, token.at);
  constant->id = tree_.constants.size();
  tree_.constants.push_back(token);
  return constant;
}

ExpressionPtr ExpressionParser::parse_primary() {
  const Token& token = current();
  if (token.is_op("[")) return parse_list();
  if (token.is_op("{")) return parse_dict();
  if (token.is_op("(")) return parse_brackets();
  if (token.kind == TokenKind::integer || token.kind == TokenKind::number) return parse_constant(take());
  if (token.kind == TokenKind::string) return parse_string();
  if (token.kind != TokenKind::name) fail_expected("an expression");
  for (const char* word : {"true", "True", "false", "False", "none", "None"}) {
    if (token.text == word) return parse_constant(take());
  }
  auto name = make(ExpressionKind::name, token.at);
  uses_caller_ |= token.text == "caller";
  uses_kwargs_ |= token.text == "kwargs";
  uses_varargs_ |= token.text == "varargs";
  name->id = name_id(token.text);
  take();
  return name;
}

ExpressionPtr ExpressionParser::parse_string() {
  Token joined = take();
  while (current().kind == TokenKind::string) joined.text += take().text;
  return parse_constant(joined);
}

ExpressionPtr ExpressionParser::parse_brackets() {
  take();
  ExpressionPtr value = parse_tuple(true, {}, true);
  expect_op(")");
  return value;
}

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr value) {
  for (;;) {
    if (current().is_op(".") || current().is_op("[")) {
      value = parse_subscript(std::move(value));
    } else if (current().is_op("(")) {
      value = parse_call(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr value) {
  const Token& sign = take();
  if (sign.text == ".") {
    const bool is_name = current().kind == TokenKind::name;
    if (!is_name && current().kind != TokenKind::integer) fail_expected("a name or number after '.'");
    auto result = make(is_name ? ExpressionKind::attribute : ExpressionKind::item, current().at);
    adopt(*result, std::move(value));
    if (is_name) {
      result->text = take().text;
    } else {
      adopt(*result, parse_constant(take()));
    }
    return result;
  }
  auto result = make(ExpressionKind::item, sign.at);
  adopt(*result, std::move(value));
  if (!current().is_op(":")) adopt(*result, parse_tuple());
  if (current().is_op(":")) {
    result->kind = ExpressionKind::slice;
    if (result->children.size() == 1) adopt(*result, nullptr);
    while (result->children.size() < 4) {
      const bool given = skip_op(":") && !current().is_op(":") && !current().is_op("]");
      adopt(*result, given ? parse_expression() : nullptr);
    }
  }
  expect_op("]");
  return result;
}

void ExpressionParser::parse_arguments(Expression& call) {
  const Position at = current().at;
  expect_op("(");
  Argument::Form latest = Argument::Form::positional;
  while (!current().is_op(")")) {
    if (!call.arguments.empty()) {
      expect_op(",");
      if (current().is_op(")")) break;
    }
    Argument argument;
    if (skip_op("*")) {
      argument.form = Argument::Form::all_positional;
      if (latest >= Argument::Form::all_positional) fail(at, "invalid order of arguments in a call");
    } else if (skip_op("**")) {
      argument.form = Argument::Form::all_named;
    } else if (current().kind == TokenKind::name && following().is_op("=")) {
      argument.form = Argument::Form::named;
      argument.name = take().text;
      take();
    } else if (latest != Argument::Form::positional) {
      fail(at, "invalid order of arguments in a call");
    }
    if (latest == Argument::Form::all_named) fail(at, "invalid order of arguments in a call");
    latest = std::max(latest, argument.form);
    argument.value = parse_expression();
    adopt_argument(call, std::move(argument));
  }
  expect_op(")");
}

ExpressionPtr ExpressionParser::parse_call(ExpressionPtr value) {
  auto call = make(ExpressionKind::call, value->at);
  adopt(*call, std::move(value));
  parse_arguments(*call);
  return call;
}

ExpressionPtr ExpressionParser::parse_filters(ExpressionPtr value, bool inline_first) {
  while (inline_first || current().is_op("|")) {
    if (!inline_first) take();
    inline_first = false;
    auto filter = make(ExpressionKind::filter, current().at);
    filter->text = expect_name("the name of a filter");
    while (skip_op(".")) filter->text += "." + expect_name("the name of a filter");
    adopt(*filter, std::move(value));
    if (current().is_op("(")) parse_arguments(*filter);
    value = std::move(filter);
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr value) {
  take();  // is
  const bool negated = skip_name("not");
  auto test = make(ExpressionKind::test, current().at);
  test->text = expect_name("the name of a test");
  while (skip_op(".")) test->text += "." + expect_name("the name of a test");
  adopt(*test, std::move(value));
  const Token& next = current();
  static const std::string_view kEnds[] = {"else", "or", "and", "if", "is", "in", "not", "recursive"};
  const bool word =
      next.kind == TokenKind::name && std::find(std::begin(kEnds), std::end(kEnds), next.text) == std::end(kEnds);
  const bool literal =
      next.kind == TokenKind::string || next.kind == TokenKind::integer || next.kind == TokenKind::number;
  if (next.is_op("(")) {
    parse_arguments(*test);
  } else if (word || literal || next.is_op("[") || next.is_op("{")) {
    const Level level(*this);
    Argument argument;
    argument.value = parse_postfix(parse_primary());
    adopt_argument(*test, std::move(argument));
  } else if (next.is_name("is")) {
    fail(next.at, "tests with 'is' cannot be chained");
  }
  if (!negated) return test;
  auto inverted = make(ExpressionKind::invert, test->at);
  adopt(*inverted, std::move(test));
  return inverted;
}

ExpressionPtr ExpressionParser::parse_list() {
  auto list = make(ExpressionKind::list, take().at);
  while (!current().is_op("]")) {
    if (!list->children.empty()) expect_op(",");
    if (current().is_op("]")) break;
    adopt(*list, parse_expression());
  }
  expect_op("]");
  return list;
}

ExpressionPtr ExpressionParser::parse_dict() {
  auto dict = make(ExpressionKind::dict, take().at);
  while (!current().is_op("}")) {
    if (!dict->children.empty()) expect_op(",");
    if (current().is_op("}")) break;
    adopt(*dict, parse_expression());
    expect_op(":");
    adopt(*dict, parse_expression());
  }
  expect_op("}");
  return dict;
}

bool ExpressionParser::ends_tuple(std::string_view end_name) const {
  const Token& token = current();
  return token.kind == TokenKind::variable_end || token.kind == TokenKind::block_end || token.is_op(")") ||
         (!end_name.empty() && token.is_name(end_name));
}

ExpressionPtr ExpressionParser::parse_tuple(bool with_condition, std::string_view end_name, bool in_brackets) {
  const Position at = current().at;
  ExpressionPtr tuple;
  ExpressionPtr first;
  if (!ends_tuple(end_name)) first = with_condition ? parse_expression() : parse_ranked(1);
  if (first && !current().is_op(",")) return first;
  if (!first && !in_brackets) fail_expected("an expression");
  tuple = make(ExpressionKind::tuple, at);
  if (first) adopt(*tuple, std::move(first));
  while (skip_op(",") && !ends_tuple(end_name) && !current().is_op("]")) {
    adopt(*tuple, with_condition ? parse_expression() : parse_ranked(1));
  }
  return tuple;
}

}  // namespace infer::jinja
