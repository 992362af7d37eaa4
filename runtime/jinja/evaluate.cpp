// The expression half of the interpreter. Each kind has its own function and so its own stack frame.
#include "infer/error.h"
#include "runtime/jinja/access.h"
#include "runtime/jinja/interpreter.h"
#include "runtime/jinja/interpreter_guards.h"
#include "runtime/jinja/print.h"

namespace infer::jinja {

void Interpreter::fail_levels() {
  throw Failure("expressions, blocks and calls are nested deeper than " + std::to_string(kMaxLevels) + " levels");
}

void Interpreter::fail_calls() {
  throw Failure("macros and loops call each other deeper than " + std::to_string(kMaxCalls) + " levels");
}

void Interpreter::fail_call(const Value& callee) {
  throw Failure(std::string("'") + type_name(callee) + "' object is not callable");
}

void Interpreter::fail_name(const char* what, std::string_view name) {
  throw Failure(std::string("unknown ") + what + " '" + escaped(std::string(name), 40) + "'");
}

Value Interpreter::evaluate(const Expression& expression) {
  const Level level(*this);
  heap_.step();
  at_ = expression.at;
  switch (expression.kind) {
    case ExpressionKind::constant:
      return constants_[expression.id];
    case ExpressionKind::name:
      return evaluate_name(expression);
    case ExpressionKind::list:
    case ExpressionKind::tuple:
      return evaluate_list(expression);
    case ExpressionKind::dict:
      return evaluate_dict(expression);
    case ExpressionKind::attribute:
      return evaluate_attribute(expression);
    case ExpressionKind::item:
      return evaluate_item(expression);
    case ExpressionKind::slice:
      return evaluate_slice(expression);
    case ExpressionKind::call:
      return evaluate_call(expression);
    case ExpressionKind::filter:
      return evaluate_filter(expression);
    case ExpressionKind::test:
      return evaluate_test(expression);
    case ExpressionKind::negate:
    case ExpressionKind::positive:
    case ExpressionKind::invert:
      return evaluate_unary(expression);
    case ExpressionKind::all_of:
    case ExpressionKind::any_of:
      return evaluate_logical(expression);
    case ExpressionKind::concat:
      return evaluate_concat(expression);
    case ExpressionKind::arithmetic:
      return evaluate_arithmetic(expression);
    case ExpressionKind::comparison:
      return evaluate_comparison(expression);
    case ExpressionKind::conditional:
      return evaluate_conditional(expression);
  }
  return Value();
}

INFER_JINJA_FRAME Value Interpreter::evaluate_name(const Expression& expression) {
  if (const Value* found = find_variable(expression.id)) return *found;
  return heap_.undefined("'" + escaped(tree_.names[expression.id]) + "' is undefined");
}

INFER_JINJA_FRAME Value Interpreter::evaluate_list(const Expression& expression) {
  Values items;
  for (const auto& child : expression.children) items.push_back(evaluate(*child));
  return expression.kind == ExpressionKind::list ? heap_.list(std::move(items)) : heap_.tuple(std::move(items));
}

INFER_JINJA_FRAME Value Interpreter::evaluate_dict(const Expression& expression) {
  Entries entries;
  for (size_t i = 0; i < expression.children.size(); i += 2) {
    Value key = evaluate(*expression.children[i]);
    entries.emplace_back(std::move(key), evaluate(*expression.children[i + 1]));
  }
  return heap_.dict(std::move(entries));
}

INFER_JINJA_FRAME Value Interpreter::evaluate_attribute(const Expression& expression) {
  const Value value = evaluate(*expression.children[0]);
  at_ = expression.at;
  return get_attribute(*this, value, expression.text);
}

INFER_JINJA_FRAME Value Interpreter::evaluate_item(const Expression& expression) {
  const Value value = evaluate(*expression.children[0]);
  const Value key = evaluate(*expression.children[1]);
  at_ = expression.at;
  return get_item(*this, value, key);
}

INFER_JINJA_FRAME Value Interpreter::evaluate_slice(const Expression& expression) {
  Value parts[4];
  for (size_t i = 0; i < 4; ++i) {
    if (expression.children[i]) parts[i] = evaluate(*expression.children[i]);
  }
  at_ = expression.at;
  return get_slice(*this, parts[0], parts[1], parts[2], parts[3]);
}

INFER_JINJA_FRAME void Interpreter::evaluate_arguments(const Expression& expression, Arguments& arguments) {
  const Level level(*this);
  for (const Argument& argument : expression.arguments) {
    Value value = evaluate(*argument.value);
    switch (argument.form) {
      case Argument::Form::positional:
        arguments.positional.push_back(std::move(value));
        break;
      case Argument::Form::named:
        arguments.named.emplace_back(argument.name, std::move(value));
        break;
      case Argument::Form::all_positional:
        for (Value& item : items_of(heap_, value)) arguments.positional.push_back(std::move(item));
        break;
      case Argument::Form::all_named:
        check_defined(value);
        if (!value.is(Kind::dict)) throw Failure("the argument after ** must be a mapping");
        for (const auto& [key, item] : value.dict().entries) {
          if (!key.is_text()) throw Failure("keywords must be strings");
          arguments.named.emplace_back(key.text().bytes, item);
        }
    }
  }
  heap_.step(static_cast<int64_t>(arguments.positional.size() + arguments.named.size()));
}

INFER_JINJA_FRAME Value Interpreter::evaluate_call(const Expression& expression, const Value* caller) {
  const Value callee = evaluate(*expression.children[0]);
  Arguments arguments;
  evaluate_arguments(expression, arguments);
  if (caller) arguments.named.emplace_back("caller", *caller);
  at_ = expression.at;
  return call(callee, arguments);
}

Value Interpreter::call(const Value& callee, Arguments& arguments) {
  check_defined(callee);
  if (!callee.is(Kind::callable)) fail_call(callee);
  return callee.callable().call(*this, arguments);
}

INFER_JINJA_FRAME Value Interpreter::evaluate_filter(const Expression& expression) {
  const Value input = expression.children[0] ? evaluate(*expression.children[0]) : std::exchange(block_input_, Value());
  Arguments arguments;
  evaluate_arguments(expression, arguments);
  at_ = expression.at;
  return apply_filter(expression.text, input, arguments);
}

Value Interpreter::apply_filter(std::string_view name, const Value& input, Arguments& arguments) {
  const Filter filter = find_filter(name);
  if (!filter) fail_name("filter", name);
  const Level level(*this);
  heap_.step();
  return filter(*this, input, arguments);
}

INFER_JINJA_FRAME Value Interpreter::evaluate_test(const Expression& expression) {
  const Value input = evaluate(*expression.children[0]);
  Arguments arguments;
  evaluate_arguments(expression, arguments);
  at_ = expression.at;
  return Value(apply_test(expression.text, input, arguments));
}

bool Interpreter::apply_test(std::string_view name, const Value& input, Arguments& arguments) {
  const Test test = find_test(name);
  if (!test) fail_name("test", name);
  heap_.step();
  return test(*this, input, arguments);
}

INFER_JINJA_FRAME Value Interpreter::evaluate_unary(const Expression& expression) {
  const Value value = evaluate(*expression.children[0]);
  at_ = expression.at;
  if (expression.kind == ExpressionKind::invert) return Value(!is_true(value));
  return expression.kind == ExpressionKind::negate ? negate(value) : positive(value);
}

INFER_JINJA_FRAME Value Interpreter::evaluate_logical(const Expression& expression) {
  const bool stops_at = expression.kind == ExpressionKind::any_of;
  Value value;
  for (const auto& child : expression.children) {
    value = evaluate(*child);
    if (is_true(value) == stops_at) break;
  }
  return value;
}

INFER_JINJA_FRAME Value Interpreter::evaluate_concat(const Expression& expression) {
  TextBuilder joined(heap_);
  for (const auto& child : expression.children) print(joined, evaluate(*child));
  return heap_.text(joined.take());
}

INFER_JINJA_FRAME Value Interpreter::evaluate_arithmetic(const Expression& expression) {
  Value left = evaluate(*expression.children[0]);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    const Value right = evaluate(*expression.children[i + 1]);
    at_ = expression.children[i + 1]->at;
    left = calculate(heap_, static_cast<Operator>(expression.operators[i]), left, right);
  }
  return left;
}

INFER_JINJA_FRAME Value Interpreter::evaluate_comparison(const Expression& expression) {
  Value left = evaluate(*expression.children[0]);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = evaluate(*expression.children[i + 1]);
    at_ = expression.at;
    if (!compare(heap_, static_cast<Comparison>(expression.operators[i]), left, right)) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

INFER_JINJA_FRAME Value Interpreter::evaluate_conditional(const Expression& expression) {
  const bool chosen = is_true(evaluate(*expression.children[0]));
  if (chosen) return evaluate(*expression.children[1]);
  if (expression.children[2]) return evaluate(*expression.children[2]);
  return heap_.undefined("the inline if-expression evaluated to false and no else section was defined");
}

}  // namespace infer::jinja
