// Filters on numbers, and the few that fit any value: default and attr.
#include <cmath>
#include <cstdio>

#include "runtime/jinja/access.h"
#include "runtime/jinja/builtins.h"
#include "runtime/jinja/interpreter.h"
#include "runtime/jinja/operators.h"
#include "runtime/jinja/print.h"
#include "runtime/jinja/text_tools.h"

namespace infer::jinja {

namespace {

Value absolute(Interpreter&, const Value& input, Arguments& arguments) {
  bind_nothing(arguments, "abs");
  check_defined(input);
  if (!input.is_numeric()) throw Failure(std::string("bad operand type for abs(): '") + type_name(input) + "'");
  if (input.is(Kind::number)) return Value(std::fabs(input.number()));
  return input.integer() < 0 ? negate(input) : positive(input);
}

Value to_int(Interpreter&, const Value& input, Arguments& arguments) {
  const auto [absent, base] = bind(arguments, "int", {"default", "base"});
  const Value otherwise = absent ? *absent : integer_value(0);
  check_defined(input);
  if (input.is_integral()) return positive(input);
  std::optional<double> number;
  if (input.is_text()) {
    const auto integer = parse_integer(input.text().view(),
                                       base ? static_cast<int>(std::min<int64_t>(to_int64(*base, "base"), 99)) : 10);
    if (integer) return Value(*integer);
    number = parse_number(input.text().view());
  } else if (input.is(Kind::number)) {
    number = input.number();
  }
  return number && std::isfinite(*number) ? Value(truncate(*number)) : otherwise;
}

Value to_float(Interpreter&, const Value& input, Arguments& arguments) {
  const auto [absent] = bind(arguments, "float", {"default"});
  check_defined(input);
  if (input.is_numeric()) return Value(input.number());
  const auto number = input.is_text() ? parse_number(input.text().view()) : std::nullopt;
  if (number) return Value(*number);
  return absent ? *absent : Value(0.0);
}

/// Python's round(): to the nearest decimal, halves of the exact binary value to even.
double round_decimal(double value, int64_t digits) {
  if (!std::isfinite(value) || digits > 323) return value;
  if (digits < 0) {
    if (digits < -308) return std::copysign(0.0, value);
    const double scale = std::pow(10.0, static_cast<double>(-digits));
    return std::nearbyint(value / scale) * scale;
  }
  char buffer[700];
  std::snprintf(buffer, sizeof(buffer), "%.*f", static_cast<int>(digits), value);
  return parse_number(buffer).value_or(value);
}

Integer round_integer(Integer value, int64_t digits) {
  if (digits >= 0) return value;
  Integer scale = 1;
  for (int64_t i = 0; i > digits; --i) {
    if (__builtin_mul_overflow(scale, static_cast<Integer>(10), &scale)) return 0;
  }
  Integer rest = value % scale;
  if (rest < 0) rest += scale;
  const Integer floor = value - rest;
  const bool up = rest > scale - rest || (rest == scale - rest && (floor / scale) % 2 != 0);
  return up ? floor + scale : floor;
}

Value round_filter(Interpreter&, const Value& input, Arguments& arguments) {
  const auto [precision, method] = bind(arguments, "round", {"precision", "method"});
  const std::string_view how = method ? text_argument(*method, "round").view() : "common";
  const int64_t digits = precision ? to_int64(*precision, "precision") : 0;
  check_defined(input);
  if (how != "common" && how != "ceil" && how != "floor") throw Failure("method must be common, ceil or floor");
  if (!input.is_numeric()) throw Failure(std::string("type ") + type_name(input) + " doesn't define __round__ method");
  if (how == "common") {
    if (input.is_integral()) return Value(round_integer(input.integer(), digits));
    return Value(round_decimal(input.number(), digits));
  }
  const double scale = std::pow(10.0, static_cast<double>(digits));
  const double scaled = input.number() * scale;
  if (!std::isfinite(scaled) || scale == 0) throw Failure("cannot round this number");
  return Value((how == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

Value sum(Interpreter& in, const Value& input, Arguments& arguments) {
  const auto [attribute, start] = bind(arguments, "sum", {"attribute", "start"});
  const auto path = split_path(in.heap(), attribute ? *attribute : Value());
  Value total = start ? *start : integer_value(0);
  if (total.is_text()) throw Failure("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : items_of(in.heap(), input)) {
    total = calculate(in.heap(), Operator::add, total, follow_path(in, item, path));
  }
  return total;
}

Value file_size(Interpreter& in, const Value& input, Arguments& arguments) {
  const auto [binary] = bind(arguments, "filesizeformat", {"binary"});
  const bool powers_of_two = flag_argument(binary, false);
  const auto parsed = input.is_text() ? parse_number(input.text().view()) : std::nullopt;
  if (!input.is_numeric() && !parsed) throw Failure("filesizeformat() needs a number");
  const double bytes = parsed ? *parsed : input.number(), base = powers_of_two ? 1024 : 1000;
  if (bytes == 1) return in.heap().text("1 Byte");
  if (bytes < base) return in.heap().text(format_integer(truncate(bytes)) + " Bytes");
  static const char kPrefixes[] = "kMGTPEZY";
  double unit = base;
  size_t i = 0;
  for (; bytes / unit >= base && i + 1 < sizeof(kPrefixes) - 1; ++i) unit *= base;
  char buffer[400];
  std::snprintf(buffer, sizeof(buffer), "%.1f ", bytes / unit);
  const char prefix = powers_of_two && i == 0 ? 'K' : kPrefixes[i];
  return in.heap().text(std::string(buffer) + prefix + (powers_of_two ? "iB" : "B"));
}

Value default_filter(Interpreter& in, const Value& input, Arguments& arguments) {
  const auto [otherwise, boolean] = bind(arguments, "default", {"default_value", "boolean"});
  if (!input.is_undefined() && !(flag_argument(boolean, false) && !is_true(input))) return input;
  return otherwise ? *otherwise : in.heap().text(Text());
}

/// value.name without the way back to value['name'].
Value attribute_filter(Interpreter& in, const Value& input, Arguments& arguments) {
  const auto [name] = bind(arguments, "attr", {"name"});
  const Text& wanted = text_argument(required(name, "attr", "name"), "attr");
  if (!input.is(Kind::dict)) return get_attribute(in, input, wanted.view());
  if (const Method method = find_method(input, wanted.view()))
    return bind_method(in.heap(), input, method, wanted.view());
  return in.heap().undefined(missing_attribute(input, wanted.view()));
}

constexpr Row<Filter> kNumberFilters[] = {
    {"default", default_filter}, {"d", default_filter},   {"int", to_int}, {"float", to_float},
    {"abs", absolute},           {"round", round_filter}, {"sum", sum},    {"filesizeformat", file_size},
    {"attr", attribute_filter},
};

}  // namespace

std::span<const Row<Filter>> number_filters() { return kNumberFilters; }

}  // namespace infer::jinja
