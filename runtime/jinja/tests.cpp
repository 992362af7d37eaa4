// The tests: {{ value is name }}, and those that filters like select() call by name.
#include "runtime/jinja/builtins.h"
#include "runtime/jinja/interpreter.h"
#include "runtime/jinja/operators.h"
#include "runtime/jinja/print.h"

namespace infer::jinja {

namespace {

/// Tests that look only at the value.
template <bool (*kIs)(const Value&)>
bool simple(Interpreter&, const Value& value, Arguments& arguments) {
  bind_nothing(arguments, "test");
  return kIs(value);
}

template <Comparison kComparison>
bool compares(Interpreter& in, const Value& value, Arguments& arguments) {
  const auto [other] = bind(arguments, "test", {"other"});
  return compare(in.heap(), kComparison, value, required(other, "test", "other"));
}

bool is_divisible(Interpreter& in, const Value& value, Arguments& arguments) {
  const auto [divisor] = bind(arguments, "divisibleby", {"num"});
  const Value rest = calculate(in.heap(), Operator::modulo, value, required(divisor, "divisibleby", "num"));
  return equal(in.heap(), rest, integer_value(0));
}

template <int kRest>
bool has_parity(Interpreter& in, const Value& value, Arguments& arguments) {
  bind_nothing(arguments, "test");
  const Value rest = calculate(in.heap(), Operator::modulo, value, integer_value(2));
  return equal(in.heap(), rest, integer_value(kRest));
}

/// Identity as far as templates can see it: None, truth values and small integers are one object each in Python.
bool is_same(Interpreter& in, const Value& value, Arguments& arguments) {
  const auto [given] = bind(arguments, "sameas", {"other"});
  const Value& other = required(given, "sameas", "other");
  if (value.kind() != other.kind()) return false;
  if (value.is(Kind::sequence) || value.is(Kind::dict)) return value.identity() == other.identity();
  return equal(in.heap(), value, other);
}

template <bool kUpper>
bool has_case(Interpreter& in, const Value& value, Arguments& arguments) {
  bind_nothing(arguments, "test");
  const Value text = in.heap().text(to_text(in.heap(), value));
  Arguments none;
  return is_true(find_method(text, kUpper ? "isupper" : "islower")(in, text, none));
}

bool is_sequence(const Value& value) {
  return value.is_undefined() || value.is_text() || value.is(Kind::dict) ||
         (value.is(Kind::sequence) && value.sequence().kind <= SequenceKind::range);
}

bool names_filter(Interpreter&, const Value& value, Arguments& arguments) {
  bind_nothing(arguments, "test");
  return value.is_text() && find_filter(value.text().view());
}

bool names_test(Interpreter&, const Value& value, Arguments& arguments) {
  bind_nothing(arguments, "test");
  return value.is_text() && find_test(value.text().view());
}

constexpr Row<Test> kTests[] = {
    {"defined", simple<[](const Value& v) { return !v.is_undefined(); }>},
    {"undefined", simple<[](const Value& v) { return v.is_undefined(); }>},
    {"none", simple<[](const Value& v) { return v.is_none(); }>},
    {"boolean", simple<[](const Value& v) { return v.is(Kind::boolean); }>},
    {"true", simple<[](const Value& v) { return v.is(Kind::boolean) && v.boolean(); }>},
    {"false", simple<[](const Value& v) { return v.is(Kind::boolean) && !v.boolean(); }>},
    {"integer", simple<[](const Value& v) { return v.is(Kind::integer); }>},
    {"float", simple<[](const Value& v) { return v.is(Kind::number); }>},
    {"number", simple<[](const Value& v) { return v.is_numeric(); }>},
    {"string", simple<[](const Value& v) { return v.is_text(); }>},
    {"mapping", simple<[](const Value& v) { return v.is(Kind::dict); }>},
    {"sequence", simple<is_sequence>},
    {"iterable", simple<is_iterable>},
    {"callable", simple<[](const Value& v) { return v.is(Kind::callable) || v.is_undefined(); }>},
    {"escaped", simple<[](const Value&) { return false; }>},
    {"sameas", is_same},
    {"lower", has_case<false>},
    {"upper", has_case<true>},
    {"odd", has_parity<1>},
    {"even", has_parity<0>},
    {"divisibleby", is_divisible},
    {"filter", names_filter},
    {"test", names_test},
    {"in", compares<Comparison::in>},
    {"==", compares<Comparison::equal>},
    {"eq", compares<Comparison::equal>},
    {"equalto", compares<Comparison::equal>},
    {"!=", compares<Comparison::not_equal>},
    {"ne", compares<Comparison::not_equal>},
    {">", compares<Comparison::greater>},
    {"gt", compares<Comparison::greater>},
    {"greaterthan", compares<Comparison::greater>},
    {">=", compares<Comparison::greater_equal>},
    {"ge", compares<Comparison::greater_equal>},
    {"<", compares<Comparison::less>},
    {"lt", compares<Comparison::less>},
    {"lessthan", compares<Comparison::less>},
    {"<=", compares<Comparison::less_equal>},
    {"le", compares<Comparison::less_equal>},
};

}  // namespace

Test find_test(std::string_view name) {
  for (const auto& [known, test] : kTests) {
    if (known == name) return test;
  }
  return nullptr;
}

}  // namespace infer::jinja
