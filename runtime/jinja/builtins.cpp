// Finding builtins by name, binding their arguments, and the method waiting for its call.
#include "runtime/jinja/builtins.h"

#include <algorithm>

#include "infer/error.h"
#include "runtime/jinja/operators.h"

namespace infer::jinja {

template <class Function>
static Function find_row(std::span<const Row<Function>> rows, std::string_view name) {
  const auto found = std::find_if(rows.begin(), rows.end(), [name](const auto& row) { return row.name == name; });
  return found == rows.end() ? nullptr : found->function;
}

Filter find_filter(std::string_view name) {
  for (const auto& rows : {text_filters(), sequence_filters(), selection_filters(), number_filters()}) {
    if (const Filter filter = find_row(rows, name)) return filter;
  }
  return nullptr;
}

Method find_method(const Value& self, std::string_view name) {
  if (self.is_text()) {
    const Method method = find_row(text_methods(), name);
    return method ? method : find_row(text_split_methods(), name);
  }
  if (self.is(Kind::dict)) return find_row(dict_methods(), name);
  if (self.is_sequence(SequenceKind::list) || self.is_sequence(SequenceKind::tuple))
    return find_row(list_methods(), name);
  return nullptr;
}

namespace {

class BoundMethod : public Callable {
 public:
  BoundMethod(Heap& heap, const Value& self, Method method, std::string_view name)
      : Callable(heap, sizeof(BoundMethod) + name.size(), self.depth() + 1),
        self_(self),
        method_(method),
        name_(name) {}

  Value call(Interpreter& interpreter, Arguments& arguments) override { return method_(interpreter, self_, arguments); }
  std::string description() const override {
    return "<built-in method " + name_ + " of " + jinja::type_name(self_) + " object>";
  }
  const char* type_name() const override { return "builtin_function_or_method"; }

 private:
  const Value self_;
  const Method method_;
  const std::string name_;
};

}  // namespace

Value bind_method(Heap& heap, const Value& self, Method method, std::string_view name) {
  return heap.make<BoundMethod>(self, method, name);
}

void bind_arguments(const Arguments& arguments, const char* function, std::span<const char* const> names,
                    std::span<const Value*> bound) {
  if (arguments.positional.size() > names.size()) {
    throw Failure(std::string(function) + "() takes at most " + std::to_string(names.size()) + " arguments (" +
                  std::to_string(arguments.positional.size()) + " given)");
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) bound[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto known = std::find(names.begin(), names.end(), name);
    if (known == names.end()) {
      throw Failure(std::string(function) + "() got an unexpected keyword argument '" + escaped(name, 40) + "'");
    }
    const auto at = static_cast<size_t>(known - names.begin());
    if (bound[at]) throw Failure(std::string(function) + "() got multiple values for argument '" + name + "'");
    bound[at] = &value;
  }
}

void bind_nothing(const Arguments& arguments, const char* function) {
  if (!arguments.positional.empty() || !arguments.named.empty()) {
    throw Failure(std::string(function) + "() takes no arguments");
  }
}

const Value& required(const Value* argument, const char* function, const char* name) {
  if (!argument) throw Failure(std::string(function) + "() is missing the argument '" + name + "'");
  return *argument;
}

const Text& text_argument(const Value& value, const char* function) {
  check_defined(value);
  if (!value.is_text()) throw Failure(std::string(function) + "() needs a string, not '" + type_name(value) + "'");
  return value.text();
}

bool flag_argument(const Value* argument, bool absent) { return argument ? is_true(*argument) : absent; }

}  // namespace infer::jinja
