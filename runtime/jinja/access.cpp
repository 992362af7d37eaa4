// Lookups. Names that begin with two underscores are Python's own machinery: refused unless they are keys of a dict.
#include "runtime/jinja/access.h"

#include <algorithm>

#include "infer/error.h"
#include "runtime/jinja/interpreter.h"

namespace infer::jinja {

/// Methods that change their object. They exist, so they hide a key of the same name, but nobody may call them.
static bool is_refused(const Value& value, std::string_view name) {
  static const std::string_view kDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  static const std::string_view kList[] = {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"};
  const auto among = [name](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  if (value.is(Kind::dict)) return among(kDict);
  return value.is_sequence(SequenceKind::list) && among(kList);
}

static Value refusal(Heap& heap, const Value& value, std::string_view name) {
  return heap.undefined("access to attribute '" + escaped(std::string(name)) + "' of '" + type_name(value) +
                        "' object is unsafe");
}

/// The attribute that Python itself would find.
static std::optional<Value> python_attribute(Interpreter& interpreter, const Value& value, std::string_view name) {
  Heap& heap = interpreter.heap();
  if (value.is(Kind::space)) {
    if (const Value* found = value.space().find(name)) return *found;
  }
  if (value.is(Kind::callable)) {
    if (auto found = value.callable().attribute(interpreter, name)) return found;
  }
  if (value.is_sequence(SequenceKind::group)) {
    if (name == "grouper") return value.sequence().items[0];
    if (name == "list") return value.sequence().items[1];
  }
  if (const Method method = find_method(value, name)) return bind_method(heap, value, method, name);
  if (is_refused(value, name)) return refusal(heap, value, name);
  if (name.starts_with("__")) {
    if (value.is(Kind::dict) && value.dict().find(heap, name)) return std::nullopt;
    throw Failure("access to attribute '" + escaped(std::string(name)) + "' of '" + type_name(value) +
                  "' object is refused");
  }
  return std::nullopt;
}

Value get_attribute(Interpreter& interpreter, const Value& value, std::string_view name) {
  check_defined(value);
  if (auto found = python_attribute(interpreter, value, name)) return *found;
  if (value.is(Kind::dict)) {
    if (const Value* found = value.dict().find(interpreter.heap(), name)) return *found;
  }
  return interpreter.heap().undefined(missing_attribute(value, name));
}

/// Index from a Python index; nullopt when out of range.
static std::optional<size_t> to_index(Integer index, size_t size) {
  if (index < 0) index += static_cast<Integer>(size);
  if (index < 0 || index >= static_cast<Integer>(size)) return std::nullopt;
  return static_cast<size_t>(index);
}

static std::optional<Value> character(Heap& heap, const Text& text, Integer index) {
  const bool ascii = is_ascii(text.view());
  heap.work(text.size());
  const auto at = to_index(index, ascii ? text.size() : count_code_points(text.view()));
  if (!at) return std::nullopt;
  const size_t begin = ascii ? *at : byte_offset(text.view(), *at);
  size_t end = begin;
  next_code_point(text.view(), end);
  return heap.text(text.slice(begin, end));
}

static bool is_indexable(const Value& value) {
  if (!value.is(Kind::sequence)) return false;
  const SequenceKind kind = value.sequence().kind;
  return kind == SequenceKind::list || kind == SequenceKind::tuple || kind == SequenceKind::group ||
         kind == SequenceKind::range;
}

Value get_item(Interpreter& interpreter, const Value& value, const Value& key) {
  Heap& heap = interpreter.heap();
  check_defined(value);
  if (value.is(Kind::dict)) {
    const bool hashable = !key.is(Kind::dict) && !key.is_sequence(SequenceKind::list);
    const Value* found = hashable ? value.dict().find(heap, key) : nullptr;
    if (found) return *found;
  } else if (key.is_integral() && is_indexable(value)) {
    const Values& items = value.sequence().items;
    if (const auto at = to_index(key.integer(), items.size())) return items[*at];
  } else if (key.is_integral() && value.is_text()) {
    if (auto found = character(heap, value.text(), key.integer())) return *found;
  }
  if (key.is_text()) {
    if (auto found = python_attribute(interpreter, value, key.text().view())) return *found;
  }
  return heap.undefined(missing_element(heap, value, key));
}

namespace {

/// The positions a slice visits: first, first + step, ... while before (or, backwards, behind) `stop`.
struct Slice {
  int64_t first, stop, step;
};

}  // namespace

static Slice resolve_slice(const Value& start, const Value& stop, const Value& step, int64_t size) {
  const int64_t by = step.is_none() ? 1 : to_int64(step, "slice step");
  if (by == 0) throw Failure("slice step cannot be zero");
  const int64_t low = by < 0 ? -1 : 0, high = by < 0 ? size - 1 : size;
  const auto bound = [&](const Value& value, int64_t absent) {
    if (value.is_none()) return absent;
    int64_t at = to_int64(value, "slice index");
    if (at < 0) at += size;
    return std::clamp(at, low, high);
  };
  return {bound(start, by < 0 ? high : low), bound(stop, by < 0 ? low : high), by};
}

static bool visits(const Slice& slice, int64_t at) { return slice.step > 0 ? at < slice.stop : at > slice.stop; }

/// at + step, or the end of the slice where that would overflow.
static int64_t advance(const Slice& slice, int64_t at) {
  int64_t next = 0;
  return __builtin_add_overflow(at, slice.step, &next) ? slice.stop : next;
}

static Value slice_text(Heap& heap, const Text& text, const Value& start, const Value& stop, const Value& step) {
  heap.work(text.size());
  const bool ascii = is_ascii(text.view());
  const auto size = static_cast<int64_t>(ascii ? text.size() : count_code_points(text.view()));
  const Slice slice = resolve_slice(start, stop, step, size);
  TextBuilder out(heap);
  if (slice.step == 1) {
    if (slice.first >= slice.stop) return heap.text(Text());
    const auto first = static_cast<size_t>(slice.first), count = static_cast<size_t>(slice.stop - slice.first);
    const size_t begin = ascii ? first : byte_offset(text.view(), first);
    const size_t end = begin + (ascii ? count : byte_offset(text.view().substr(begin), count));
    out.add(text, begin, end);
    return heap.text(out.take());
  }
  heap.hold(text.size() * sizeof(size_t));
  std::vector<size_t> offsets;
  for (size_t at = 0; at < text.size(); next_code_point(text.view(), at)) offsets.push_back(at);
  offsets.push_back(text.size());
  for (int64_t at = slice.first; visits(slice, at); at = advance(slice, at)) {
    out.add(text, offsets[static_cast<size_t>(at)], offsets[static_cast<size_t>(at) + 1]);
  }
  heap.release(text.size() * sizeof(size_t));
  return heap.text(out.take());
}

Value get_slice(Interpreter& interpreter, const Value& value, const Value& start, const Value& stop,
                const Value& step) {
  Heap& heap = interpreter.heap();
  check_defined(value);
  for (const Value* bound : {&start, &stop, &step}) {
    check_defined(*bound);
    if (!bound->is_none() && !bound->is_integral()) throw Failure("slice indices must be integers or None");
  }
  if (!value.is_text() && !is_indexable(value)) {
    throw Failure(std::string("'") + type_name(value) + "' object cannot be sliced");
  }
  if (value.is_text()) return slice_text(heap, value.text(), start, stop, step);
  const Sequence& sequence = value.sequence();
  const Slice slice = resolve_slice(start, stop, step, static_cast<int64_t>(sequence.items.size()));
  Values items;
  for (int64_t at = slice.first; visits(slice, at); at = advance(slice, at)) {
    items.push_back(sequence.items[static_cast<size_t>(at)]);
  }
  return heap.sequence(sequence.kind == SequenceKind::group ? SequenceKind::tuple : sequence.kind, std::move(items));
}

std::vector<Value> split_path(Heap& heap, const Value& attribute) {
  if (attribute.is_none()) return {};
  if (!attribute.is_text()) return {attribute};
  std::vector<Value> path;
  const Text& text = attribute.text();
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.bytes.find('.', begin), text.size());
    const std::string part = text.bytes.substr(begin, end - begin);
    const bool digits = !part.empty() && part.size() < 18 &&
                        std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    path.push_back(digits ? integer_value(std::stoll(part)) : heap.text(text.slice(begin, end)));
    begin = end + 1;
  }
  return path;
}

Value follow_path(Interpreter& interpreter, const Value& value, const std::vector<Value>& path, const Value* absent) {
  Value item = value;
  for (const Value& part : path) {
    interpreter.heap().step();
    item = get_item(interpreter, item, part);
    if (item.is_undefined() && absent && !absent->is_none()) item = *absent;
  }
  return item;
}

}  // namespace infer::jinja
