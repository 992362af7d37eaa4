// Filters that apply another filter or a test to every item: map, select, reject and their attr forms.
#include "runtime/jinja/access.h"
#include "runtime/jinja/builtins.h"
#include "runtime/jinja/interpreter.h"
#include "runtime/jinja/operators.h"

namespace infer::jinja {

namespace {

/// The arguments from `first` on, for the filter or test that is applied.
Arguments rest_of(const Arguments& arguments, size_t first) {
  Arguments rest;
  rest.positional.assign(arguments.positional.begin() + static_cast<std::ptrdiff_t>(first), arguments.positional.end());
  rest.named = arguments.named;
  return rest;
}

Value map_attribute(Interpreter& in, Values items, const Arguments& arguments) {
  const auto [attribute, absent] = bind(arguments, "map", {"attribute", "default"});
  const auto path = split_path(in.heap(), *attribute);
  for (Value& item : items) item = follow_path(in, item, path, absent);
  return generator(in.heap(), std::move(items));
}

Value map(Interpreter& in, const Value& input, Arguments& arguments) {
  if (!is_true(input)) return generator(in.heap(), {});
  Values items = items_of(in.heap(), input);
  if (arguments.positional.empty()) {
    for (const auto& argument : arguments.named) {
      if (argument.first == "attribute") return map_attribute(in, std::move(items), arguments);
    }
    throw Failure("map requires a filter argument");
  }
  const Text& name = text_argument(arguments.positional[0], "map");
  Arguments rest = rest_of(arguments, 1);
  for (Value& item : items) item = in.apply_filter(name.view(), item, rest);
  return generator(in.heap(), std::move(items));
}

/// select and reject; with kAttribute the first argument names what the test looks at.
template <bool kKeep, bool kAttribute>
Value select(Interpreter& in, const Value& input, Arguments& arguments) {
  if (!is_true(input)) return generator(in.heap(), {});
  constexpr size_t kTest = kAttribute ? 1 : 0;
  if (kAttribute && arguments.positional.empty()) throw Failure("Missing parameter for attribute name");
  const auto path = kAttribute ? split_path(in.heap(), arguments.positional[0]) : std::vector<Value>();
  const bool has_test = arguments.positional.size() > kTest;
  const Value test = has_test ? arguments.positional[kTest] : Value();
  Arguments rest = rest_of(arguments, kTest + (has_test ? 1 : 0));
  Values kept;
  for (const Value& item : items_of(in.heap(), input)) {
    in.heap().step();
    const Value looked_at = follow_path(in, item, path);
    const bool passes =
        has_test ? in.apply_test(text_argument(test, "select").view(), looked_at, rest) : is_true(looked_at);
    if (passes == kKeep) kept.push_back(item);
  }
  return generator(in.heap(), std::move(kept));
}

constexpr Row<Filter> kSelectionFilters[] = {
    {"map", map},
    {"select", select<true, false>},
    {"reject", select<false, false>},
    {"selectattr", select<true, true>},
    {"rejectattr", select<false, true>},
};

}  // namespace

std::span<const Row<Filter>> selection_filters() { return kSelectionFilters; }

}  // namespace infer::jinja
