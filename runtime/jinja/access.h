// Attributes, items and slices of values, looked up in the order of Jinja2's sandbox: value.name tries Python's
// attribute first and then the item, value['name'] the other way round. There is nothing else to reach: no host objects
// exist.
#pragma once

#include "runtime/jinja/value.h"

namespace infer::jinja {

Value get_attribute(Interpreter& interpreter, const Value& value, std::string_view name);
Value get_item(Interpreter& interpreter, const Value& value, const Value& key);
Value get_slice(Interpreter& interpreter, const Value& value, const Value& start, const Value& stop, const Value& step);

/// What attribute= of a filter names: "a.b.0", an integer, or nothing.
std::vector<Value> split_path(Heap& heap, const Value& attribute);
/// `absent`, if given and not None, takes the place of every undefined step.
Value follow_path(Interpreter& interpreter, const Value& value, const std::vector<Value>& path,
                  const Value* absent = nullptr);

}  // namespace infer::jinja
