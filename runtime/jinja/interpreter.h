// Walks the tree of a template and writes its output. Holds everything that changes while a template renders, so
// renders never meet. Recursion is counted: levels of evaluation and calls of macros have limits that fit a 256 KiB
// stack. Knows no filter, test or method; those are in builtins.h.
#pragma once

#include "runtime/jinja/ast.h"
#include "runtime/jinja/builtins.h"

namespace infer::jinja {

constexpr int kMaxCalls = 64;    ///< macros, callers and recursive loops within each other
constexpr int kMaxLevels = 400;  ///< expressions and statements within each other, over all calls

/// The variables of one block. A macro remembers the scope that it was defined in.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<size_t, Value>> variables;
  bool captured = false;
};

class Loop;

class Interpreter {
 public:
  Interpreter(const Tree& tree, Heap& heap, const std::string* date);
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  /// Gives a global name a value; a name that the template does not mention is left out.
  void define(std::string_view name, Value value);
  Text run();
  Position at() const { return at_; }

  // --- for builtins and callables
  Heap& heap() { return heap_; }
  const std::string* date() const { return date_; }
  Value call(const Value& callee, Arguments& arguments);
  Value apply_filter(std::string_view name, const Value& input, Arguments& arguments);
  bool apply_test(std::string_view name, const Value& input, Arguments& arguments);
  Value call_macro(const Statement& macro, Scope* scope, Arguments& arguments);
  Value run_nested_loop(const Statement& statement, Scope* scope, const Value& items, int depth);
  /// Whether a loop's condition takes the item.
  bool loop_takes(const Statement& statement, Scope* scope, const Value& item);

 private:
  enum class Flow : uint8_t { next, loop_break, loop_continue };
  class ScopeGuard;
  class CallGuard;
  class OutputGuard;
  struct Level;

  // Out of line, so that the frames of those who call them stay small.
  [[noreturn]] static void fail_levels();
  [[noreturn]] static void fail_calls();
  [[noreturn]] static void fail_call(const Value& callee);
  [[noreturn]] static void fail_name(const char* what, std::string_view name);

  Flow run_body(const Body& body);
  Flow run_statement(const Statement& statement);
  Flow run_branches(const Statement& statement);
  Flow run_scope(const Statement& statement);
  Flow run_loop(const Statement& statement, const Value& items, int depth);
  Flow run_iterations(const Statement& statement, Loop& loop, const Value& loop_value);
  void run_output(const Statement& statement);
  void run_for(const Statement& statement, Flow& flow);
  void run_assign_block(const Statement& statement);
  void run_filter_block(const Statement& statement);
  void run_call_block(const Statement& statement);
  Flow run_with(const Statement& statement);
  Value make_macro(const Statement& statement);
  void bind_parameters(const Statement& macro, Arguments& arguments);
  void bind_extras(const Statement& macro, Arguments& arguments);
  Text capture(const Body& body);

  Value evaluate(const Expression& expression);
  Value evaluate_name(const Expression& expression);
  Value evaluate_list(const Expression& expression);
  Value evaluate_dict(const Expression& expression);
  Value evaluate_attribute(const Expression& expression);
  Value evaluate_item(const Expression& expression);
  Value evaluate_slice(const Expression& expression);
  Value evaluate_call(const Expression& expression, const Value* caller = nullptr);
  Value evaluate_filter(const Expression& expression);
  Value evaluate_test(const Expression& expression);
  Value evaluate_unary(const Expression& expression);
  Value evaluate_logical(const Expression& expression);
  Value evaluate_concat(const Expression& expression);
  Value evaluate_arithmetic(const Expression& expression);
  Value evaluate_comparison(const Expression& expression);
  Value evaluate_conditional(const Expression& expression);
  void evaluate_arguments(const Expression& expression, Arguments& arguments);

  void assign(const Target& target, const Value& value);
  void set_variable(size_t id, Value value);
  const Value* find_variable(size_t id) const;
  size_t name_id(std::string_view name) const;

  const Tree& tree_;
  Heap& heap_;
  const std::string* date_;
  Values constants_;
  Scope globals_;
  std::vector<std::unique_ptr<Scope>> captured_;  ///< scopes that macros still refer to
  Scope* scope_ = &globals_;
  TextBuilder* out_ = nullptr;
  Value block_input_;  ///< what the first filter of a filter block works on
  Position at_;
  int levels_ = 0, calls_ = 0;
  size_t loop_id_, caller_id_, kwargs_id_, varargs_id_;
};

}  // namespace infer::jinja
