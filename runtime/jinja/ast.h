// The tree of a template. Names and constants are numbers into tables of the template, so that renders share nothing
// that changes. No node is deeper than kMaxTreeDepth: whoever walks the tree may recurse.
#pragma once

#include "runtime/jinja/lexer.h"
#include "runtime/jinja/operators.h"

/// Functions on the path of a recursion keep stack frames of their own, so that the common ones stay small.
#define INFER_JINJA_FRAME __attribute__((noinline))

namespace infer::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Body = std::vector<Statement>;

enum class ExpressionKind : uint8_t {
  constant,
  name,
  list,
  tuple,
  dict,       ///< children: key, value, key, value, ...
  attribute,  ///< children[0].text
  item,       ///< children[0][children[1]]
  slice,      ///< children[0][children[1]:children[2]:children[3]], the last three may be null
  call,       ///< children[0](arguments)
  filter,     ///< children[0] | text(arguments); children[0] is null in a filter block
  test,       ///< children[0] is text(arguments)
  negate,
  positive,
  invert,       ///< not
  all_of,       ///< a and b and c
  any_of,       ///< a or b or c
  concat,       ///< a ~ b ~ c
  arithmetic,   ///< children[0] operators[0] children[1] operators[1] ..., from the left
  comparison,   ///< a < b <= c: every neighbouring pair
  conditional,  ///< children[1] if children[0] else children[2], which may be null
};

struct Argument {
  enum class Form : uint8_t { positional, named, all_positional, all_named };  // x, name=x, *x, **x
  Form form = Form::positional;
  std::string name;
  ExpressionPtr value;
};

struct Expression {
  ExpressionKind kind = ExpressionKind::constant;
  Position at;
  int depth = 1;
  size_t id = 0;  ///< of a constant or name
  std::string text;
  std::vector<ExpressionPtr> children;
  std::vector<uint8_t> operators;  ///< Operator or Comparison
  std::vector<Argument> arguments;
};

enum class StatementKind : uint8_t {
  text,
  output,        ///< {{ value }}
  assign,        ///< {% set target = value %}
  assign_block,  ///< {% set target | filters %} body {% endset %}
  conditional,   ///< branches
  loop,          ///< {% for target in value if condition recursive %} body {% else %} otherwise
  macro,         ///< name(parameters): body
  call,          ///< {% call(parameters) value %} body
  filter,        ///< {% filter value %} body
  with,          ///< targets and values in `parameters`
  scope,         ///< {% generation %}, {% block %}: body in a scope of its own
  loop_break,
  loop_continue,
};

/// What can stand on the left of an assignment: a name, ns.attribute, or a tuple of those.
struct Target {
  enum class Form : uint8_t { name, attribute, tuple };
  Form form = Form::name;
  Position at;
  size_t id = 0;
  std::string attribute;
  std::vector<Target> parts;
};

struct Parameter {
  Target target;        ///< a name for macros
  std::string name;     ///< of a macro's parameter
  ExpressionPtr value;  ///< default or assigned value; null for none
};

struct Branch {
  ExpressionPtr condition;  ///< null: else
  Body body;
};

struct Statement {
  StatementKind kind = StatementKind::text;
  Position at;
  std::string text;  ///< the text, or the name of a macro
  size_t id = 0;     ///< the macro's name
  Target target;
  ExpressionPtr value, condition;
  std::vector<Parameter> parameters;
  std::vector<Branch> branches;
  Body body, otherwise;
  bool recursive = false;
  bool uses_caller = false, uses_kwargs = false, uses_varargs = false;  ///< names that the body of a macro mentions
};

/// A parsed template. Immutable: any number of renders may use it at the same time.
struct Tree {
  Body body;
  std::vector<std::string> names;
  std::vector<Token> constants;  ///< string, integer, number, or the names true, false, none
};

}  // namespace infer::jinja
