// The attributes and methods of `loop`.
#include "runtime/jinja/loop.h"

namespace infer::jinja {

bool Loop::has(Interpreter& interpreter, size_t index) {
  const Values& source = source_.sequence().items;
  if (!statement_.condition) return index < source.size();
  while (accepted_.size() <= index && drawn_ < source.size() && running_) {
    const Value& candidate = source[drawn_++];
    if (interpreter.loop_takes(statement_, scope_, candidate)) accepted_.push_back(candidate);
  }
  return index < accepted_.size();
}

size_t Loop::length(Interpreter& interpreter) {
  has(interpreter, kMaxItems);
  return items().size();
}

bool Loop::advance(Interpreter& interpreter) {
  if (!has(interpreter, static_cast<size_t>(index0_ + 1))) return false;
  ++index0_;
  return true;
}

void Loop::finish() {
  running_ = false;
  last_changed_.reset();
}

Value Loop::call(Interpreter& interpreter, Arguments& arguments) {
  const auto [items] = bind(arguments, "loop", {"iterable"});
  if (!statement_.recursive) throw Failure("the loop must be marked 'recursive' to be called");
  if (!running_) throw Failure("the loop has ended and cannot be called");
  return interpreter.run_nested_loop(statement_, scope_, required(items, "loop", "iterable"), depth_ + 1);
}

Value Loop::cycle(const Arguments& arguments) const {
  if (arguments.positional.empty()) throw Failure("no items for cycling given");
  if (index0_ < 0) return arguments.positional[0];
  return arguments.positional[static_cast<size_t>(index0_) % arguments.positional.size()];
}

Value Loop::changed(Heap& heap, const Arguments& arguments) {
  Value now = heap.tuple(arguments.positional);
  const bool is_new = !last_changed_ || !equal(heap, *last_changed_, now);
  if (is_new && running_) last_changed_ = std::move(now);
  return Value(is_new);
}

std::optional<Value> Loop::attribute(Interpreter& interpreter, std::string_view name) {
  Heap& heap = interpreter.heap();
  if (name == "index") return integer_value(index0_ + 1);
  if (name == "index0") return integer_value(index0_);
  if (name == "first") return Value(index0_ == 0);
  if (name == "last") return Value(!has(interpreter, static_cast<size_t>(index0_ + 1)));
  if (name == "length") return integer_value(static_cast<int64_t>(length(interpreter)));
  if (name == "revindex") return integer_value(static_cast<int64_t>(length(interpreter)) - index0_);
  if (name == "revindex0") return integer_value(static_cast<int64_t>(length(interpreter)) - index0_ - 1);
  if (name == "depth") return integer_value(depth_ + 1);
  if (name == "depth0") return integer_value(depth_);
  if (name == "previtem") {
    return index0_ > 0 ? items()[static_cast<size_t>(index0_ - 1)] : heap.undefined("there is no previous item");
  }
  if (name == "nextitem") {
    const auto next = static_cast<size_t>(index0_ + 1);
    return has(interpreter, next) ? items()[next] : heap.undefined("there is no next item");
  }
  const Value self(Kind::callable, this);
  if (name == "cycle") {
    const Method method = [](Interpreter&, const Value& loop, Arguments& arguments) {
      return static_cast<Loop&>(loop.callable()).cycle(arguments);
    };
    return bind_method(heap, self, method, name);
  }
  if (name == "changed") {
    const Method method = [](Interpreter& in, const Value& loop, Arguments& arguments) {
      return static_cast<Loop&>(loop.callable()).changed(in.heap(), arguments);
    };
    return bind_method(heap, self, method, name);
  }
  return std::nullopt;
}

}  // namespace infer::jinja
