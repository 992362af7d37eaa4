// What the interpreter must undo when a block ends, also by an exception: scopes, captured output, counted depth.
// Private to the interpreter.
#pragma once

#include "runtime/jinja/interpreter.h"

namespace infer::jinja {

struct Interpreter::Level {
  explicit Level(Interpreter& interpreter) : interpreter(interpreter) {
    if (++interpreter.levels_ > kMaxLevels) {
      --interpreter.levels_;
      fail_levels();
    }
  }
  ~Level() { --interpreter.levels_; }
  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;
  Interpreter& interpreter;
};

class Interpreter::CallGuard {
 public:
  explicit CallGuard(Interpreter& interpreter) : interpreter_(interpreter) {
    if (interpreter.calls_ >= kMaxCalls) fail_calls();
    ++interpreter.calls_;
  }
  ~CallGuard() { --interpreter_.calls_; }
  CallGuard(const CallGuard&) = delete;
  CallGuard& operator=(const CallGuard&) = delete;

 private:
  Interpreter& interpreter_;
};

/// A new scope below `parent`, and back to the present one at the end. A scope that a macro captured is kept.
class Interpreter::ScopeGuard {
 public:
  ScopeGuard(Interpreter& interpreter, Scope* parent)
      : interpreter_(interpreter), outer_(interpreter.scope_), scope_(std::make_unique<Scope>()) {
    scope_->parent = parent;
    interpreter.scope_ = scope_.get();
  }
  ~ScopeGuard() {
    interpreter_.scope_ = outer_;
    if (scope_->captured) interpreter_.captured_.push_back(std::move(scope_));
  }
  ScopeGuard(const ScopeGuard&) = delete;
  ScopeGuard& operator=(const ScopeGuard&) = delete;

  /// The next iteration starts without variables.
  void renew() {
    if (!scope_->captured) {
      scope_->variables.clear();
      return;
    }
    auto fresh = std::make_unique<Scope>();
    fresh->parent = scope_->parent;
    interpreter_.captured_.push_back(std::move(scope_));
    scope_ = std::move(fresh);
    interpreter_.scope_ = scope_.get();
  }

 private:
  Interpreter& interpreter_;
  Scope* outer_;
  std::unique_ptr<Scope> scope_;
};

class Interpreter::OutputGuard {
 public:
  OutputGuard(Interpreter& interpreter, TextBuilder& out) : interpreter_(interpreter), outer_(interpreter.out_) {
    interpreter.out_ = &out;
  }
  ~OutputGuard() { interpreter_.out_ = outer_; }
  OutputGuard(const OutputGuard&) = delete;
  OutputGuard& operator=(const OutputGuard&) = delete;

 private:
  Interpreter& interpreter_;
  TextBuilder* outer_;
};

}  // namespace infer::jinja
