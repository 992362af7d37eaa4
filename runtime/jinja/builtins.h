// The tables of filters, tests, methods and global functions, and the reading of arguments that all of them share.
// A row per name; the functions stand in filters_*.cpp, tests.cpp, methods_*.cpp and globals.cpp.
#pragma once

#include <array>
#include <span>
#include <utility>

#include "runtime/jinja/value.h"

namespace infer::jinja {

class Interpreter;

using Filter = Value (*)(Interpreter&, const Value& input, Arguments&);
using Test = bool (*)(Interpreter&, const Value& input, Arguments&);
using Method = Value (*)(Interpreter&, const Value& self, Arguments&);

template <class Function>
struct Row {
  std::string_view name;
  Function function;
};

std::span<const Row<Filter>> text_filters();
std::span<const Row<Filter>> sequence_filters();
std::span<const Row<Filter>> selection_filters();
std::span<const Row<Filter>> number_filters();
std::span<const Row<Method>> text_methods();
std::span<const Row<Method>> text_split_methods();
std::span<const Row<Method>> dict_methods();
std::span<const Row<Method>> list_methods();

/// What Jinja2 gives as an iterator: its items can be taken once.
inline Value generator(Heap& heap, Values items) { return heap.sequence(SequenceKind::generator, std::move(items)); }

/// Null when there is none of that name.
Filter find_filter(std::string_view name);
Test find_test(std::string_view name);
Method find_method(const Value& self, std::string_view name);

/// A method of a value, waiting for its call.
Value bind_method(Heap& heap, const Value& self, Method method, std::string_view name);
/// The function of that name which every template can call; None of the kind callable when there is no such function.
std::optional<Value> make_global(Heap& heap, std::string_view name);

/// The arguments by parameter; null for one that was not given. Throws for unknown, doubled and surplus arguments.
void bind_arguments(const Arguments& arguments, const char* function, std::span<const char* const> names,
                    std::span<const Value*> bound);
template <size_t N>
std::array<const Value*, N> bind(const Arguments& arguments, const char* function, const char* const (&names)[N]) {
  std::array<const Value*, N> bound{};
  bind_arguments(arguments, function, names, bound);
  return bound;
}
void bind_nothing(const Arguments& arguments, const char* function);
/// A parameter that must be given.
const Value& required(const Value* argument, const char* function, const char* name);
/// A text argument; throws for any other type.
const Text& text_argument(const Value& value, const char* function);
bool flag_argument(const Value* argument, bool absent);

}  // namespace infer::jinja
