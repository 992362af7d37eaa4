// Arithmetic as Python does it: floor division and remainder round down, "/" gives a float, strings and lists repeat.
// Integers have 128 bits; what does not fit is an error.
#include <cmath>

#include "runtime/jinja/format.h"
#include "runtime/jinja/operators.h"

namespace infer::jinja {

Value integer_value(int64_t i) { return Value(static_cast<Integer>(i)); }

Integer to_integer(const Value& value, const char* what) {
  check_defined(value);
  if (!value.is_integral()) {
    throw Failure(std::string(what) + " must be an integer, not '" + type_name(value) + "'");
  }
  return value.integer();
}

int64_t to_int64(const Value& value, const char* what) {
  const Integer i = to_integer(value, what);
  if (i > INT64_MAX) return INT64_MAX;
  return i < INT64_MIN ? INT64_MIN : static_cast<int64_t>(i);
}

Integer truncate(double number) {
  if (std::isnan(number)) throw Failure("cannot convert float NaN to integer");
  if (std::isinf(number)) throw Failure("cannot convert float infinity to integer");
  if (std::fabs(number) >= 0x1p126) throw Failure("integer too large");
  return static_cast<Integer>(number);
}

[[noreturn]] static void fail_overflow() { throw Failure("integer too large: results are limited to 128 bits"); }

[[noreturn]] static void fail_operands(const char* op, const Value& a, const Value& b) {
  throw Failure(std::string("unsupported operand type(s) for ") + op + ": '" + type_name(a) + "' and '" + type_name(b) +
                "'");
}

static Value concatenate(Heap& heap, const Value& a, const Value& b) {
  if (a.is_text() && b.is_text()) {
    TextBuilder joined(heap);
    joined.add(a.text());
    joined.add(b.text());
    return heap.text(joined.take());
  }
  const bool lists = a.is_sequence(SequenceKind::list) && b.is_sequence(SequenceKind::list);
  const bool tuples = a.is_sequence(SequenceKind::tuple) && b.is_sequence(SequenceKind::tuple);
  if (lists || tuples) {
    heap.check_items(a.sequence().items.size() + b.sequence().items.size());
    Values items = a.sequence().items;
    items.insert(items.end(), b.sequence().items.begin(), b.sequence().items.end());
    return heap.sequence(a.sequence().kind, std::move(items));
  }
  if (a.is_text() || a.is_sequence(SequenceKind::list) || a.is_sequence(SequenceKind::tuple)) {
    throw Failure(std::string("can only concatenate ") + type_name(a) + " (not \"" + type_name(b) + "\") to " +
                  type_name(a));
  }
  fail_operands("+", a, b);
}

static Value repeat(Heap& heap, const Value& value, Integer times) {
  if (value.is_text()) {
    TextBuilder repeated(heap);
    if (!value.text().has_user()) {
      repeated.repeat(value.text().view(), times);
    } else {
      for (Integer i = 0; i < times; ++i) repeated.add(value.text());
    }
    return heap.text(repeated.take());
  }
  const Values& items = value.sequence().items;
  Values repeated;
  if (times > 0 && !items.empty()) {
    if (times > static_cast<Integer>(kMaxItems)) heap.check_items(kMaxItems + 1);
    heap.check_items(items.size() * static_cast<size_t>(times));
    for (Integer i = 0; i < times; ++i) repeated.insert(repeated.end(), items.begin(), items.end());
  }
  return heap.sequence(value.sequence().kind, std::move(repeated));
}

static bool is_repeatable(const Value& value) {
  return value.is_text() || value.is_sequence(SequenceKind::list) || value.is_sequence(SequenceKind::tuple);
}

static Integer floor_divide(Integer a, Integer b) {
  if (b == 0) throw Failure("integer division or modulo by zero");
  Integer result = 0;
  if (b == -1) {  // the one quotient that can overflow
    if (__builtin_sub_overflow(static_cast<Integer>(0), a, &result)) fail_overflow();
    return result;
  }
  result = a / b;
  return (a % b != 0 && (a < 0) != (b < 0)) ? result - 1 : result;
}

static Integer modulo(Integer a, Integer b) {
  if (b == 0) throw Failure("integer modulo by zero");
  if (b == -1) return 0;
  const Integer rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

static double modulo(double a, double b) {
  if (b == 0) throw Failure("float modulo by zero");
  const double rest = std::fmod(a, b);
  if (rest == 0) return std::copysign(0.0, b);
  return (rest < 0) != (b < 0) ? rest + b : rest;
}

static double floor_divide(double a, double b) {
  if (b == 0) throw Failure("float floor division by zero");
  const double quotient = (a - modulo(a, b)) / b;
  const double floored = std::floor(quotient);
  return quotient - floored > 0.5 ? floored + 1 : floored;
}

double power(double base, double exponent) {
  if (base == 0 && exponent < 0) throw Failure("0.0 cannot be raised to a negative power");
  const double result = std::pow(base, exponent);
  if (std::isnan(result) && !std::isnan(base) && !std::isnan(exponent)) {
    throw Failure("a negative number cannot be raised to a fraction");
  }
  if (std::isinf(result) && !std::isinf(base) && !std::isinf(exponent)) throw Failure("result of ** is too large");
  return result;
}

static Integer power(Integer base, Integer exponent) {
  Integer result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) fail_overflow();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) fail_overflow();
  }
  return result;
}

static Value calculate(Operator op, Integer a, Integer b) {
  Integer result = 0;
  bool overflow = false;
  switch (op) {
    case Operator::add:
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case Operator::subtract:
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case Operator::multiply:
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    case Operator::divide:
      if (b == 0) throw Failure("division by zero");
      return Value(static_cast<double>(a) / static_cast<double>(b));
    case Operator::floor_divide:
      return Value(floor_divide(a, b));
    case Operator::modulo:
      return Value(modulo(a, b));
    case Operator::power:
      if (b < 0) return Value(power(static_cast<double>(a), static_cast<double>(b)));
      return Value(power(a, b));
  }
  if (overflow) fail_overflow();
  return Value(result);
}

static Value calculate(Operator op, double a, double b) {
  switch (op) {
    case Operator::add:
      return Value(a + b);
    case Operator::subtract:
      return Value(a - b);
    case Operator::multiply:
      return Value(a * b);
    case Operator::divide:
      if (b == 0) throw Failure("float division by zero");
      return Value(a / b);
    case Operator::floor_divide:
      return Value(floor_divide(a, b));
    case Operator::modulo:
      return Value(modulo(a, b));
    case Operator::power:
      break;
  }
  return Value(power(a, b));
}

Value calculate(Heap& heap, Operator op, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return calculate(op, a.integer(), b.integer());
  if (a.is_numeric() && b.is_numeric()) return calculate(op, a.number(), b.number());
  if (op == Operator::modulo && a.is_text()) return format_percent(heap, a.text(), b);
  check_defined(a);
  check_defined(b);
  if (op == Operator::add) return concatenate(heap, a, b);
  if (op == Operator::multiply && is_repeatable(a) && b.is_integral()) return repeat(heap, a, b.integer());
  if (op == Operator::multiply && is_repeatable(b) && a.is_integral()) return repeat(heap, b, a.integer());
  static const char* const kSigns[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};
  fail_operands(kSigns[static_cast<size_t>(op)], a, b);
}

Value negate(const Value& value) {
  check_defined(value);
  if (value.is(Kind::number)) return Value(-value.number());
  if (!value.is_integral()) throw Failure(std::string("bad operand type for unary -: '") + type_name(value) + "'");
  return calculate(Operator::subtract, static_cast<Integer>(0), value.integer());
}

Value positive(const Value& value) {
  check_defined(value);
  if (value.is(Kind::number)) return value;
  if (!value.is_integral()) throw Failure(std::string("bad operand type for unary +: '") + type_name(value) + "'");
  return Value(value.integer());
}

}  // namespace infer::jinja
