// The statement half of the parser.
#include "runtime/jinja/parser.h"

#include "runtime/jinja/parser_base.h"

namespace infer::jinja {

namespace {

using Words = std::initializer_list<std::string_view>;

class Parser : private ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Tree run() {
    tree_.body = parse_body({});
    return std::move(tree_);
  }

 private:
  /// Statements up to a tag of one of these words, which is left as the current token; up to the end without words.
  Body parse_body(Words ends) {
    const Level level(*this);
    const Position begin = current().at;
    Body body;
    while (current().kind != TokenKind::end) {
      const Token& token = take();
      if (token.kind == TokenKind::data) {
        start(body, StatementKind::text, token.at).text = token.text;
      } else if (token.kind == TokenKind::variable_begin) {
        parse_output(start(body, StatementKind::output, token.at));
      } else {
        if (current().kind != TokenKind::name) fail_expected("the name of a tag");
        if (std::find(ends.begin(), ends.end(), current().text) != ends.end()) return body;
        parse_statement(body);
        expect_block_end();
      }
    }
    if (ends.size() > 0) fail_end(begin, *(ends.end() - 1));
    return body;
  }

  [[noreturn]] INFER_JINJA_FRAME void fail_end(Position begin, std::string_view end) {
    fail(begin, "the block has no '" + std::string(end) + "'");
  }

  INFER_JINJA_FRAME void parse_output(Statement& output) {
    output.value = parse_tuple();
    if (current().kind != TokenKind::variable_end) fail_expected("'}}'");
    take();
  }

  void expect_block_end() {
    if (current().kind != TokenKind::block_end) fail_expected("'%}'");
    take();
  }

  /// The statements below are parsed in place: their functions recurse, and a Statement is too large for the stack.
  INFER_JINJA_FRAME static Statement& start(Body& body, StatementKind kind, Position at) {
    body.emplace_back();
    body.back().kind = kind;
    body.back().at = at;
    return body.back();
  }

  /// The body of a block, from behind the words of its opening tag to behind its closing word.
  INFER_JINJA_FRAME Body parse_block(std::string_view end) {
    Body body = parse_block_until({end});
    take();
    return body;
  }

  INFER_JINJA_FRAME Body parse_block_until(Words ends) {
    skip_op(":");
    expect_block_end();
    return parse_body(ends);
  }

  void parse_statement(Body& body) {
    const Position at = current().at;
    const std::string& word = take().text;
    if (word == "set") return parse_set(start(body, StatementKind::assign, at));
    if (word == "if") return parse_if(start(body, StatementKind::conditional, at));
    if (word == "for") return parse_for(start(body, StatementKind::loop, at));
    if (word == "macro") return parse_macro(start(body, StatementKind::macro, at));
    if (word == "call") return parse_call_block(start(body, StatementKind::call, at));
    if (word == "filter") return parse_filter_block(start(body, StatementKind::filter, at));
    if (word == "with") return parse_with(start(body, StatementKind::with, at));
    if (word == "block") return parse_named_block(start(body, StatementKind::scope, at));
    if (word == "print") return parse_print(at, body);
    if (word == "generation") {
      Statement& generation = start(body, StatementKind::scope, at);
      generation.body = parse_block("endgeneration");
      return;
    }
    if ((word == "break" || word == "continue") && loops_ > 0) {
      start(body, word == "break" ? StatementKind::loop_break : StatementKind::loop_continue, at);
      return;
    }
    fail_tag(at, word);
  }

  [[noreturn]] INFER_JINJA_FRAME void fail_tag(Position at, const std::string& word) {
    if (word == "break" || word == "continue") fail(at, "'" + word + "' outside of a loop");
    for (const char* refused : {"include", "import", "from", "extends"}) {
      if (word == refused) fail(at, "'" + word + "' is refused: a template may not load other files");
    }
    if (word == "autoescape") fail(at, "'autoescape' is not supported: chat templates never escape");
    fail(at, "unknown tag '" + escaped(word, 40) + "'");
  }

  Target parse_target(bool with_attributes) {
    const Level level(*this);
    Target tuple;
    tuple.form = Target::Form::tuple;
    tuple.at = current().at;
    bool comma = false;
    while (current().kind == TokenKind::name || current().is_op("(")) {
      if (current().is_name("in")) break;
      Target part;
      part.at = current().at;
      if (skip_op("(")) {
        part = parse_target(with_attributes);
        expect_op(")");
      } else {
        const std::string name = take().text;
        for (const char* word : {"true", "True", "false", "False", "none", "None"}) {
          if (name == word) fail(part.at, "cannot assign to '" + name + "'");
        }
        part.id = name_id(name);
        if (with_attributes && skip_op(".")) {
          part.form = Target::Form::attribute;
          part.attribute = expect_name("the name of an attribute");
        }
      }
      tuple.parts.push_back(std::move(part));
      if (!skip_op(",")) break;
      comma = true;
    }
    if (tuple.parts.empty()) fail_expected("a name to assign to");
    return tuple.parts.size() == 1 && !comma ? Target(tuple.parts[0]) : tuple;
  }

  INFER_JINJA_FRAME void parse_set(Statement& set) {
    set.target = parse_target(true);
    if (skip_op("=")) {
      set.value = parse_tuple();
      return;
    }
    set.kind = StatementKind::assign_block;
    if (current().is_op("|")) set.value = parse_filters(nullptr, false);
    set.body = parse_block("endset");
  }

  INFER_JINJA_FRAME void parse_if(Statement& statement) {
    for (;;) {
      statement.branches.emplace_back();
      statement.branches.back().condition = parse_tuple(false);
      statement.branches.back().body = parse_block_until({"elif", "else", "endif"});
      if (skip_name("endif")) return;
      if (skip_name("elif")) continue;
      take();
      statement.branches.emplace_back();
      statement.branches.back().body = parse_block("endif");
      return;
    }
  }

  INFER_JINJA_FRAME void parse_for(Statement& loop) {
    loop.target = parse_target(false);
    if (!skip_name("in")) fail_expected("'in'");
    loop.value = parse_tuple(false, "recursive");
    if (skip_name("if")) loop.condition = parse_expression();
    loop.recursive = skip_name("recursive");
    ++loops_;
    loop.body = parse_block_until({"else", "endfor"});
    --loops_;
    if (skip_name("else")) {
      loop.otherwise = parse_block("endfor");
    } else {
      take();
    }
  }

  void parse_parameters(Statement& owner) {
    expect_op("(");
    while (!current().is_op(")")) {
      if (!owner.parameters.empty()) expect_op(",");
      if (current().is_op(")")) break;
      Parameter parameter;
      parameter.name = expect_name("the name of a parameter");
      parameter.target.id = name_id(parameter.name);
      if (skip_op("=")) {
        parameter.value = parse_expression();
      } else if (!owner.parameters.empty() && owner.parameters.back().value) {
        fail(current().at, "a parameter without default follows one with a default");
      }
      owner.parameters.push_back(std::move(parameter));
    }
    expect_op(")");
  }

  /// The body of a macro or call block, and which of the special names it mentions.
  void parse_macro_body(Statement& macro, std::string_view end) {
    const bool outer_caller = uses_caller_, outer_kwargs = uses_kwargs_, outer_varargs = uses_varargs_;
    const int outer_loops = std::exchange(loops_, 0);
    uses_caller_ = uses_kwargs_ = uses_varargs_ = false;
    macro.body = parse_block(end);
    macro.uses_caller = std::exchange(uses_caller_, uses_caller_ || outer_caller);
    macro.uses_kwargs = std::exchange(uses_kwargs_, uses_kwargs_ || outer_kwargs);
    macro.uses_varargs = std::exchange(uses_varargs_, uses_varargs_ || outer_varargs);
    loops_ = outer_loops;
  }

  INFER_JINJA_FRAME void parse_macro(Statement& macro) {
    macro.text = expect_name("the name of the macro");
    macro.id = name_id(macro.text);
    parse_parameters(macro);
    parse_macro_body(macro, "endmacro");
  }

  INFER_JINJA_FRAME void parse_call_block(Statement& call) {
    call.text = "caller";
    if (current().is_op("(")) parse_parameters(call);
    call.value = parse_expression();
    if (call.value->kind != ExpressionKind::call) fail(call.value->at, "a call block needs a call");
    parse_macro_body(call, "endcall");
  }

  INFER_JINJA_FRAME void parse_filter_block(Statement& filter) {
    filter.value = parse_filters(nullptr, true);
    filter.body = parse_block("endfilter");
  }

  INFER_JINJA_FRAME void parse_with(Statement& with) {
    while (current().kind != TokenKind::block_end) {
      if (!with.parameters.empty()) expect_op(",");
      with.parameters.emplace_back();
      with.parameters.back().target = parse_target(false);
      expect_op("=");
      with.parameters.back().value = parse_expression();
    }
    with.body = parse_block("endwith");
  }

  INFER_JINJA_FRAME void parse_print(Position at, Body& body) {
    for (bool first = true; current().kind != TokenKind::block_end; first = false) {
      if (!first) expect_op(",");
      start(body, StatementKind::output, at).value = parse_expression();
    }
  }

  INFER_JINJA_FRAME void parse_named_block(Statement& block) {
    const std::string name = expect_name("the name of the block");
    skip_name("scoped");
    block.body = parse_block("endblock");
    skip_name(name);
  }

  int loops_ = 0;
};

}  // namespace

Tree parse(std::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    throw SyntaxFailure({1, 1}, "a template may have at most " + std::to_string(kMaxSourceBytes >> 10) + " KiB");
  }
  return Parser(tokenize(source)).run();
}

}  // namespace infer::jinja
