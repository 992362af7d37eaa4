// The object `loop` of a for block. It draws items one by one, because a condition of the loop may depend on what the
// body did; asking for loop.last looks one item ahead, loop.length at all of them, as in Jinja2.
#pragma once

#include "runtime/jinja/interpreter.h"

namespace infer::jinja {

class Loop : public Callable {
 public:
  /// `source` is a sequence whose items may be borrowed.
  Loop(Heap& heap, const Statement& statement, Scope* scope, Value source, int depth)
      : Callable(heap, sizeof(Loop), source.depth() > kMaxNesting - 1 ? source.depth() : source.depth() + 1),
        statement_(statement),
        scope_(scope),
        source_(std::move(source)),
        depth_(depth) {}

  /// Moves to the next item; false at the end.
  bool advance(Interpreter& interpreter);
  const Value& item() const { return items()[static_cast<size_t>(index0_)]; }
  int64_t index0() const { return index0_; }
  /// After the last iteration: the loop can no longer be called, and forgets what loop.changed() saw.
  void finish();

  Value call(Interpreter& interpreter, Arguments& arguments) override;
  std::optional<Value> attribute(Interpreter& interpreter, std::string_view name) override;
  std::string description() const override { return "<LoopContext>"; }
  const char* type_name() const override { return "LoopContext"; }
  Value cycle(const Arguments& arguments) const;
  Value changed(Heap& heap, const Arguments& arguments);

 private:
  const Values& items() const { return statement_.condition ? accepted_ : source_.sequence().items; }
  /// Whether there is an item at `index`.
  bool has(Interpreter& interpreter, size_t index);
  size_t length(Interpreter& interpreter);

  const Statement& statement_;
  Scope* scope_;
  Value source_;
  Values accepted_;   ///< items that the condition took, as far as drawn
  size_t drawn_ = 0;  ///< items of the source that the condition saw
  int64_t index0_ = -1;
  int depth_;
  bool running_ = true;
  std::optional<Value> last_changed_;
};

}  // namespace infer::jinja
