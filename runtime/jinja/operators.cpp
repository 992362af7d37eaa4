// Truth, equality, order, membership and iteration. Every comparison is paid for, because lists that share their parts
// make trees of exponential size.
#include "runtime/jinja/operators.h"

#include <algorithm>
#include <cmath>

#include "infer/error.h"
#include "runtime/jinja/print.h"

namespace infer::jinja {

const char* type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined:
      return "Undefined";
    case Kind::none:
      return "NoneType";
    case Kind::boolean:
      return "bool";
    case Kind::integer:
      return "int";
    case Kind::number:
      return "float";
    case Kind::text:
      return "str";
    case Kind::dict:
      return "dict";
    case Kind::space:
      return "Namespace";
    case Kind::callable:
      return value.callable().type_name();
    case Kind::sequence:
      break;
  }
  switch (value.sequence().kind) {
    case SequenceKind::list:
      return "list";
    case SequenceKind::tuple:
    case SequenceKind::group:
      return "tuple";
    case SequenceKind::range:
      return "range";
    case SequenceKind::keys:
      return "dict_keys";
    case SequenceKind::values:
      return "dict_values";
    case SequenceKind::items:
      return "dict_items";
    case SequenceKind::generator:
      break;
  }
  return "generator";
}

static std::string owner_name(const Value& value) {
  return value.is_none() ? "None" : std::string(type_name(value)) + " object";
}

std::string missing_attribute(const Value& value, std::string_view name) {
  return "'" + owner_name(value) + "' has no attribute '" + escaped(std::string(name)) + "'";
}

std::string missing_element(Heap& heap, const Value& value, const Value& key) {
  if (key.is_text()) return missing_attribute(value, key.text().view());
  TextBuilder shown(heap);
  repr(shown, key);
  return owner_name(value) + " has no element " + escaped(shown.take().bytes);
}

void check_defined(const Value& value) {
  if (value.is_undefined()) throw Failure(value.undefined().message);
}

void check_hashable(const Value& value) {
  const bool tuple = value.is_sequence(SequenceKind::tuple) || value.is_sequence(SequenceKind::group);
  if (value.is(Kind::dict) || (value.is(Kind::sequence) && !tuple)) {
    throw Failure(std::string("unhashable type: '") + type_name(value) + "'");
  }
  if (!tuple) return;
  for (const Value& item : value.sequence().items) check_hashable(item);
}

bool is_true(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined:
    case Kind::none:
      return false;
    case Kind::boolean:
    case Kind::integer:
      return value.integer() != 0;
    case Kind::number:
      return value.number() != 0;
    case Kind::text:
      return value.text().size() > 0;
    case Kind::sequence:
      return value.sequence().kind == SequenceKind::generator || !value.sequence().items.empty();
    case Kind::dict:
      return !value.dict().entries.empty();
    case Kind::space:
    case Kind::callable:
      break;
  }
  return true;
}

/// -1, 0, 1; 2 when one is not a number.
static int order_numbers(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.integer() < b.integer() ? -1 : a.integer() > b.integer();
  if (a.is(Kind::number) && b.is(Kind::number)) {
    if (std::isnan(a.number()) || std::isnan(b.number())) return 2;
    return a.number() < b.number() ? -1 : a.number() > b.number();
  }
  if (a.is(Kind::number)) {
    const int order = order_numbers(b, a);
    return order == 2 ? 2 : -order;
  }
  const double d = b.number();
  if (std::isnan(d)) return 2;
  if (d >= 0x1p126) return -1;
  if (d <= -0x1p126) return 1;
  const Integer whole = static_cast<Integer>(d);
  if (a.integer() != whole) return a.integer() < whole ? -1 : 1;
  const double rest = d - static_cast<double>(whole);
  return rest > 0 ? -1 : rest < 0;
}

static SequenceKind comparable_kind(const Sequence& s) {
  return s.kind == SequenceKind::group ? SequenceKind::tuple : s.kind;
}

static bool equal_items(Heap& heap, const Sequence& a, const Sequence& b) {
  if (comparable_kind(a) != comparable_kind(b) || a.items.size() != b.items.size()) return false;
  if (a.kind == SequenceKind::generator) return &a == &b;
  for (size_t i = 0; i < a.items.size(); ++i) {
    if (!equal(heap, a.items[i], b.items[i])) return false;
  }
  return true;
}

static bool equal_dicts(Heap& heap, const Dict& a, const Dict& b) {
  if (a.entries.size() != b.entries.size()) return false;
  for (const auto& [key, value] : a.entries) {
    const Value* other = b.find(heap, key);
    if (!other || !equal(heap, value, *other)) return false;
  }
  return true;
}

bool equal(Heap& heap, const Value& a, const Value& b) {
  heap.work(8);
  if (a.is_numeric() && b.is_numeric()) return order_numbers(a, b) == 0;
  if (a.kind() != b.kind()) return false;
  if (a.identity() && a.identity() == b.identity()) return true;
  switch (a.kind()) {
    case Kind::undefined:
    case Kind::none:
      return true;
    case Kind::text:
      if (a.text().size() != b.text().size()) return false;
      heap.work(a.text().size());
      return a.text().bytes == b.text().bytes;
    case Kind::sequence:
      return equal_items(heap, a.sequence(), b.sequence());
    case Kind::dict:
      return equal_dicts(heap, a.dict(), b.dict());
    default:
      return false;
  }
}

[[noreturn]] static void fail_order(const char* op, const Value& a, const Value& b) {
  check_defined(a);
  check_defined(b);
  throw Failure(std::string("'") + op + "' not supported between instances of '" + type_name(a) + "' and '" +
                type_name(b) + "'");
}

/// -1, 0, 1; 2 when one is not a number.
static int order(Heap& heap, const char* op, const Value& a, const Value& b) {
  heap.work(8);
  if (a.is_numeric() && b.is_numeric()) return order_numbers(a, b);
  if (a.is_text() && b.is_text()) {
    // The order of UTF-8 bytes is the order of code points.
    heap.work(std::min(a.text().size(), b.text().size()));
    const int sign = a.text().bytes.compare(b.text().bytes);
    return sign < 0 ? -1 : sign > 0;
  }
  if (!a.is(Kind::sequence) || !b.is(Kind::sequence)) fail_order(op, a, b);
  const Sequence &x = a.sequence(), &y = b.sequence();
  const SequenceKind kind = comparable_kind(x);
  const bool ordered = kind == SequenceKind::list || kind == SequenceKind::tuple;
  if (!ordered || kind != comparable_kind(y)) fail_order(op, a, b);
  for (size_t i = 0; i < std::min(x.items.size(), y.items.size()); ++i) {
    if (!equal(heap, x.items[i], y.items[i])) return order(heap, op, x.items[i], y.items[i]);
  }
  return x.items.size() < y.items.size() ? -1 : x.items.size() > y.items.size();
}

bool less(Heap& heap, const Value& a, const Value& b) { return order(heap, "<", a, b) == -1; }

bool compare(Heap& heap, Comparison comparison, const Value& a, const Value& b) {
  switch (comparison) {
    case Comparison::equal:
      return equal(heap, a, b);
    case Comparison::not_equal:
      return !equal(heap, a, b);
    case Comparison::less:
      return order(heap, "<", a, b) == -1;
    case Comparison::greater:
      return order(heap, ">", a, b) == 1;
    case Comparison::less_equal: {
      const int sign = order(heap, "<=", a, b);
      return sign == -1 || sign == 0;
    }
    case Comparison::greater_equal: {
      const int sign = order(heap, ">=", a, b);
      return sign == 1 || sign == 0;
    }
    case Comparison::in:
      return contains(heap, b, a);
    case Comparison::not_in:
      break;
  }
  return !contains(heap, b, a);
}

bool contains(Heap& heap, const Value& container, const Value& item) {
  if (container.is_text()) {
    if (!item.is_text()) {
      throw Failure(std::string("'in <string>' requires string as left operand, not ") + type_name(item));
    }
    heap.work(container.text().size());
    return container.text().view().find(item.text().view()) != std::string_view::npos;
  }
  if (container.is(Kind::dict)) {
    check_hashable(item);
    return container.dict().find(heap, item) != nullptr;
  }
  if (container.is_undefined()) return false;
  if (!container.is(Kind::sequence)) {
    throw Failure(std::string("argument of type '") + type_name(container) + "' is not iterable");
  }
  Sequence& sequence = container.sequence();
  const bool once = sequence.kind == SequenceKind::generator;
  for (size_t i = sequence.consumed; i < sequence.items.size(); ++i) {
    if (once) sequence.consumed = i + 1;
    if (equal(heap, sequence.items[i], item)) return true;
  }
  return false;
}

bool is_iterable(const Value& value) {
  return value.is_undefined() || value.is_text() || value.is(Kind::sequence) || value.is(Kind::dict);
}

std::optional<size_t> length(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined:
      return 0;
    case Kind::text:
      return count_code_points(value.text().view());
    case Kind::dict:
      return value.dict().entries.size();
    case Kind::sequence:
      if (value.sequence().kind == SequenceKind::generator) return std::nullopt;
      return value.sequence().items.size();
    default:
      return std::nullopt;
  }
}

static Values characters_of(Heap& heap, const Text& text) {
  heap.work(text.size() * 8);
  Values characters;
  for (size_t at = 0; at < text.size();) {
    heap.check_items(characters.size() + 1);
    const size_t begin = at;
    next_code_point(text.view(), at);
    characters.push_back(heap.text(text.slice(begin, at)));
  }
  return characters;
}

Values items_of(Heap& heap, const Value& value) {
  Values storage;
  const Values& items = borrow_items(heap, value, storage);
  return &items == &storage ? std::move(storage) : items;
}

const Values& borrow_items(Heap& heap, const Value& value, Values& storage) {
  if (value.is(Kind::sequence)) {
    Sequence& sequence = value.sequence();
    heap.work(sequence.items.size() * sizeof(Value));
    if (sequence.kind != SequenceKind::generator) return sequence.items;
    storage.assign(sequence.items.begin() + static_cast<std::ptrdiff_t>(sequence.consumed), sequence.items.end());
    sequence.consumed = sequence.items.size();
  } else if (value.is(Kind::dict)) {
    heap.work(value.dict().entries.size() * sizeof(Value));
    for (const auto& entry : value.dict().entries) storage.push_back(entry.first);
  } else if (value.is_text()) {
    storage = characters_of(heap, value.text());
  } else if (!value.is_undefined()) {
    throw Failure(std::string("'") + type_name(value) + "' object is not iterable");
  }
  return storage;
}

}  // namespace infer::jinja
