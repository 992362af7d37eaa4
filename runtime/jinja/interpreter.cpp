// The statement half of the interpreter: output, assignment, branches, loops, macros.
#include "runtime/jinja/interpreter.h"

#include <algorithm>

#include "runtime/jinja/interpreter_guards.h"
#include "runtime/jinja/loop.h"
#include "runtime/jinja/print.h"

namespace infer::jinja {

constexpr size_t kNoName = static_cast<size_t>(-1);

Interpreter::Interpreter(const Tree& tree, Heap& heap, const std::string* date)
    : tree_(tree), heap_(heap), date_(date) {
  for (const Token& token : tree.constants) {
    switch (token.kind) {
      case TokenKind::string:
        constants_.push_back(heap.text(token.text));
        break;
      case TokenKind::integer:
        constants_.push_back(Value(token.integer));
        break;
      case TokenKind::number:
        constants_.push_back(Value(token.number));
        break;
      default:
        if (token.text[0] == 'n' || token.text[0] == 'N') {
          constants_.emplace_back();
        } else {
          constants_.push_back(Value(token.text[0] == 't' || token.text[0] == 'T'));
        }
    }
  }
  for (size_t id = 0; id < tree.names.size(); ++id) {
    if (auto function = make_global(heap, tree.names[id])) globals_.variables.emplace_back(id, std::move(*function));
  }
  loop_id_ = name_id("loop");
  caller_id_ = name_id("caller");
  kwargs_id_ = name_id("kwargs");
  varargs_id_ = name_id("varargs");
}

size_t Interpreter::name_id(std::string_view name) const {
  for (size_t id = 0; id < tree_.names.size(); ++id) {
    if (tree_.names[id] == name) return id;
  }
  return kNoName;
}

void Interpreter::define(std::string_view name, Value value) {
  const size_t id = name_id(name);
  if (id == kNoName) return;
  for (auto& [known, old] : globals_.variables) {
    if (known == id) {
      old = std::move(value);
      return;
    }
  }
  globals_.variables.emplace_back(id, std::move(value));
}

Text Interpreter::run() {
  // The template's own variables live in a scope above the globals, so it may give any name a new meaning.
  const ScopeGuard scope(*this, &globals_);
  TextBuilder out(heap_);
  out_ = &out;
  run_body(tree_.body);
  return out.take();
}

const Value* Interpreter::find_variable(size_t id) const {
  for (const Scope* scope = scope_; scope; scope = scope->parent) {
    for (const auto& [known, value] : scope->variables) {
      if (known == id) return &value;
    }
  }
  return nullptr;
}

void Interpreter::set_variable(size_t id, Value value) {
  if (id == kNoName) return;
  for (auto& [known, old] : scope_->variables) {
    if (known != id) continue;
    old = std::move(value);
    return;
  }
  scope_->variables.emplace_back(id, std::move(value));
}

void Interpreter::assign(const Target& target, const Value& value) {
  at_ = target.at;
  if (target.form == Target::Form::name) return set_variable(target.id, value);
  if (target.form == Target::Form::attribute) {
    const Value* space = find_variable(target.id);
    if (!space) throw Failure("'" + tree_.names[target.id] + "' is undefined");
    if (!space->is(Kind::space)) throw Failure("cannot assign attribute on non-namespace object");
    if (target.attribute.starts_with('_')) throw Failure("a namespace cannot hold '" + target.attribute + "'");
    return space->space().set(heap_, target.attribute, value);
  }
  Values storage;
  const Values& items = borrow_items(heap_, value, storage);
  const std::string expected = " values to unpack (expected " + std::to_string(target.parts.size());
  if (items.size() > target.parts.size()) throw Failure("too many" + expected + ")");
  if (items.size() < target.parts.size()) {
    throw Failure("not enough" + expected + ", got " + std::to_string(items.size()) + ")");
  }
  for (size_t i = 0; i < items.size(); ++i) assign(target.parts[i], items[i]);
}

Interpreter::Flow Interpreter::run_body(const Body& body) {
  for (const Statement& statement : body) {
    const Flow flow = run_statement(statement);
    if (flow != Flow::next) return flow;
  }
  return Flow::next;
}

Interpreter::Flow Interpreter::run_statement(const Statement& statement) {
  const Level level(*this);
  heap_.step();
  at_ = statement.at;
  Flow flow = Flow::next;
  switch (statement.kind) {
    case StatementKind::text:
      out_->add(statement.text);
      break;
    case StatementKind::output:
      run_output(statement);
      break;
    case StatementKind::assign:
      assign(statement.target, evaluate(*statement.value));
      break;
    case StatementKind::assign_block:
      run_assign_block(statement);
      break;
    case StatementKind::conditional:
      return run_branches(statement);
    case StatementKind::loop:
      run_for(statement, flow);
      break;
    case StatementKind::macro:
      set_variable(statement.id, make_macro(statement));
      break;
    case StatementKind::call:
      run_call_block(statement);
      break;
    case StatementKind::filter:
      run_filter_block(statement);
      break;
    case StatementKind::with:
      return run_with(statement);
    case StatementKind::scope:
      return run_scope(statement);
    case StatementKind::loop_break:
      return Flow::loop_break;
    case StatementKind::loop_continue:
      return Flow::loop_continue;
  }
  return flow;
}

INFER_JINJA_FRAME void Interpreter::run_output(const Statement& statement) {
  const Value value = evaluate(*statement.value);
  at_ = statement.at;
  print(*out_, value);
}

INFER_JINJA_FRAME Interpreter::Flow Interpreter::run_branches(const Statement& statement) {
  for (const Branch& branch : statement.branches) {
    if (!branch.condition || is_true(evaluate(*branch.condition))) return run_body(branch.body);
  }
  return Flow::next;
}

INFER_JINJA_FRAME Interpreter::Flow Interpreter::run_scope(const Statement& statement) {
  const ScopeGuard scope(*this, scope_);
  return run_body(statement.body);
}

INFER_JINJA_FRAME void Interpreter::run_for(const Statement& statement, Flow& flow) {
  const Value items = evaluate(*statement.value);
  at_ = statement.value->at;
  flow = run_loop(statement, items, 0);
}

INFER_JINJA_FRAME Interpreter::Flow Interpreter::run_loop(const Statement& statement, const Value& items, int depth) {
  const bool borrowed = items.is(Kind::sequence) && !items.is_sequence(SequenceKind::generator);
  const Value loop = heap_.make<Loop>(statement, scope_, borrowed ? items : heap_.list(items_of(heap_, items)), depth);
  return run_iterations(statement, static_cast<Loop&>(loop.callable()), loop);
}

INFER_JINJA_FRAME Interpreter::Flow Interpreter::run_iterations(const Statement& statement, Loop& loop,
                                                                const Value& loop_value) {
  const Level level(*this);  // a loop has the frames of two
  struct Finish {
    ~Finish() { loop.finish(); }
    Loop& loop;
  } const finish{loop};
  ScopeGuard scope(*this, scope_);
  bool completed = false;  // as in Jinja2, `else` runs unless one iteration reached its end
  while (loop.advance(*this)) {
    heap_.step();
    scope.renew();
    set_variable(loop_id_, loop_value);
    assign(statement.target, loop.item());
    const Flow flow = run_body(statement.body);
    if (flow == Flow::loop_break) break;
    completed = completed || flow == Flow::next;
  }
  if (completed) return Flow::next;
  scope.renew();
  return run_body(statement.otherwise);
}

bool Interpreter::loop_takes(const Statement& statement, Scope* parent, const Value& item) {
  const Level level(*this);
  heap_.step();
  const ScopeGuard scope(*this, parent);
  assign(statement.target, item);
  return is_true(evaluate(*statement.condition));
}

Value Interpreter::run_nested_loop(const Statement& statement, Scope* parent, const Value& items, int depth) {
  const CallGuard call(*this);
  const ScopeGuard scope(*this, parent);
  TextBuilder out(heap_);
  const OutputGuard output(*this, out);
  run_loop(statement, items, depth);
  return heap_.text(out.take());
}

INFER_JINJA_FRAME Text Interpreter::capture(const Body& body) {
  const Level level(*this);
  const ScopeGuard scope(*this, scope_);
  TextBuilder out(heap_);
  const OutputGuard output(*this, out);
  run_body(body);
  return out.take();
}

INFER_JINJA_FRAME void Interpreter::run_assign_block(const Statement& statement) {
  Value text = heap_.text(capture(statement.body));
  if (statement.value) {
    block_input_ = std::move(text);
    text = evaluate(*statement.value);
  }
  assign(statement.target, text);
}

INFER_JINJA_FRAME void Interpreter::run_filter_block(const Statement& statement) {
  block_input_ = heap_.text(capture(statement.body));
  print(*out_, evaluate(*statement.value));
}

INFER_JINJA_FRAME Interpreter::Flow Interpreter::run_with(const Statement& statement) {
  Values values;
  for (const Parameter& parameter : statement.parameters) values.push_back(evaluate(*parameter.value));
  const ScopeGuard scope(*this, scope_);
  for (size_t i = 0; i < values.size(); ++i) assign(statement.parameters[i].target, values[i]);
  return run_body(statement.body);
}

INFER_JINJA_FRAME void Interpreter::run_call_block(const Statement& statement) {
  const Value caller = make_macro(statement);
  print(*out_, evaluate_call(*statement.value, &caller));
}

namespace {

/// A macro, or the body of a call block.
class Macro : public Callable {
 public:
  Macro(Heap& heap, const Statement& statement, Scope* scope)
      : Callable(heap, sizeof(Macro), 0), statement_(statement), scope_(scope) {}

  Value call(Interpreter& interpreter, Arguments& arguments) override {
    return interpreter.call_macro(statement_, scope_, arguments);
  }

  std::optional<Value> attribute(Interpreter& interpreter, std::string_view name) override {
    Heap& heap = interpreter.heap();
    if (name == "name") return heap.text(statement_.text);
    if (name == "catch_kwargs") return Value(statement_.uses_kwargs);
    if (name == "catch_varargs") return Value(statement_.uses_varargs);
    if (name == "caller") return Value(statement_.uses_caller);
    if (name != "arguments") return std::nullopt;
    Values names;
    for (const Parameter& parameter : statement_.parameters) names.push_back(heap.text(parameter.name));
    return heap.tuple(std::move(names));
  }

  std::string description() const override { return "<Macro '" + statement_.text + "'>"; }
  const char* type_name() const override { return "Macro"; }

 private:
  const Statement& statement_;
  Scope* scope_;
};

}  // namespace

Value Interpreter::make_macro(const Statement& statement) {
  for (Scope* scope = scope_; scope && !scope->captured; scope = scope->parent) {
    scope->captured = true;
    heap_.hold(sizeof(Scope) + 4 * sizeof(scope->variables[0]));  // lives as long as the render
  }
  return heap_.make<Macro>(statement, scope_);
}

Value Interpreter::call_macro(const Statement& macro, Scope* parent, Arguments& arguments) {
  const CallGuard call(*this);
  const ScopeGuard scope(*this, parent);
  TextBuilder out(heap_);
  const OutputGuard output(*this, out);
  bind_parameters(macro, arguments);
  run_body(macro.body);
  return heap_.text(out.take());
}

INFER_JINJA_FRAME void Interpreter::bind_parameters(const Statement& macro, Arguments& arguments) {
  const size_t given = std::min(arguments.positional.size(), macro.parameters.size());
  for (size_t i = 0; i < given; ++i) set_variable(macro.parameters[i].target.id, arguments.positional[i]);
  std::vector<std::pair<std::string, Value>> extra;
  std::vector<bool> bound(macro.parameters.size(), false);
  for (auto& argument : arguments.named) {
    size_t i = given;
    while (i < macro.parameters.size() && macro.parameters[i].name != argument.first) ++i;
    if (i < macro.parameters.size()) {
      bound[i] = true;
      set_variable(macro.parameters[i].target.id, argument.second);
    } else {
      extra.push_back(std::move(argument));
    }
  }
  for (size_t i = given; i < macro.parameters.size(); ++i) {
    if (bound[i]) continue;
    const Parameter& parameter = macro.parameters[i];
    set_variable(parameter.target.id, parameter.value
                                          ? evaluate(*parameter.value)
                                          : heap_.undefined("parameter '" + parameter.name + "' was not provided"));
  }
  arguments.named = std::move(extra);
  bind_extras(macro, arguments);
}

/// caller, kwargs and varargs: there for a macro that mentions them, an error for any other.
INFER_JINJA_FRAME void Interpreter::bind_extras(const Statement& macro, Arguments& arguments) {
  bool has_caller =
      std::any_of(macro.parameters.begin(), macro.parameters.end(), [](auto& p) { return p.name == "caller"; });
  Entries kwargs;
  for (auto& [name, value] : arguments.named) {
    if (name == "caller" && macro.uses_caller && !has_caller) {
      has_caller = true;
      set_variable(caller_id_, std::move(value));
    } else if (macro.uses_kwargs) {
      kwargs.emplace_back(heap_.text(name), std::move(value));
    } else {
      throw Failure("macro '" + macro.text + "' takes no keyword argument '" + name + "'");
    }
  }
  if (macro.uses_caller && !has_caller) set_variable(caller_id_, heap_.undefined("No caller defined"));
  if (macro.uses_kwargs) set_variable(kwargs_id_, heap_.dict(std::move(kwargs)));
  const size_t given = std::min(arguments.positional.size(), macro.parameters.size());
  Values rest(arguments.positional.begin() + static_cast<std::ptrdiff_t>(given), arguments.positional.end());
  if (macro.uses_varargs) {
    set_variable(varargs_id_, heap_.tuple(std::move(rest)));
  } else if (!rest.empty()) {
    throw Failure("macro '" + macro.text + "' takes not more than " + std::to_string(macro.parameters.size()) +
                  " argument(s)");
  }
}

}  // namespace infer::jinja
