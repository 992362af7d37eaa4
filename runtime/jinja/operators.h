// Python's operators on values: truth, equality, order, membership, arithmetic and iteration, with Python's error
// texts. Knows nothing of attributes, methods or syntax.
#pragma once

#include "runtime/jinja/value.h"

namespace infer::jinja {

enum class Operator : uint8_t { add, subtract, multiply, divide, floor_divide, modulo, power };
enum class Comparison : uint8_t { equal, not_equal, less, less_equal, greater, greater_equal, in, not_in };

/// Python's name of the value's type, for messages.
const char* type_name(const Value& value);
/// The message for a missing attribute or element of `value`.
std::string missing_attribute(const Value& value, std::string_view name);
std::string missing_element(Heap& heap, const Value& value, const Value& key);

/// Throws the undefined value's own message when `value` is undefined.
void check_defined(const Value& value);
/// Throws unless the value may be a key of a dict.
void check_hashable(const Value& value);

bool is_true(const Value& value);
bool equal(Heap& heap, const Value& a, const Value& b);
/// a < b; throws for types without an order between them.
bool less(Heap& heap, const Value& a, const Value& b);
bool compare(Heap& heap, Comparison comparison, const Value& a, const Value& b);
bool contains(Heap& heap, const Value& container, const Value& item);

Value calculate(Heap& heap, Operator op, const Value& a, const Value& b);
Value negate(const Value& value);
Value positive(const Value& value);

bool is_iterable(const Value& value);
/// Number of items, where Python's len() has one.
std::optional<size_t> length(const Value& value);
/// The items that a loop over the value sees; throws when it cannot be looped over. A generator is used up.
Values items_of(Heap& heap, const Value& value);
/// items_of without copying a list; `storage` holds the items of everything else.
const Values& borrow_items(Heap& heap, const Value& value, Values& storage);

/// An integer argument; throws with `what` for any other type.
Integer to_integer(const Value& value, const char* what);
/// to_integer clamped to what an int64_t holds.
int64_t to_int64(const Value& value, const char* what);
/// int(d) for a finite number in range.
Integer truncate(double number);
double power(double base, double exponent);
Value integer_value(int64_t i);

}  // namespace infer::jinja
