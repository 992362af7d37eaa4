// Filters on sequences and mappings: ends, order, groups. Those that give an iterator in Jinja2 give a generator here.
#include <algorithm>

#include "runtime/jinja/access.h"
#include "runtime/jinja/builtins.h"
#include "runtime/jinja/interpreter.h"
#include "runtime/jinja/operators.h"
#include "runtime/jinja/text_tools.h"

namespace infer::jinja {

namespace {

Value length_filter(Interpreter&, const Value& input, Arguments& arguments) {
  bind_nothing(arguments, "length");
  const auto size = length(input);
  if (!size) throw Failure(std::string("object of type '") + type_name(input) + "' has no len()");
  return integer_value(static_cast<int64_t>(*size));
}

Value first(Interpreter& in, const Value& input, Arguments& arguments) {
  bind_nothing(arguments, "first");
  if (input.is_sequence(SequenceKind::generator)) {
    Sequence& sequence = input.sequence();
    if (sequence.consumed < sequence.items.size()) return sequence.items[sequence.consumed++];
  } else {
    Values storage;
    const Values& items = borrow_items(in.heap(), input, storage);
    if (!items.empty()) return items.front();
  }
  return in.heap().undefined("No first item, sequence was empty.");
}

Value last(Interpreter& in, const Value& input, Arguments& arguments) {
  bind_nothing(arguments, "last");
  Values storage;
  const Values& items = borrow_items(in.heap(), input, storage);
  return items.empty() ? in.heap().undefined("No last item, sequence was empty.") : items.back();
}

Value list_filter(Interpreter& in, const Value& input, Arguments& arguments) {
  bind_nothing(arguments, "list");
  return in.heap().list(items_of(in.heap(), input));
}

Value reverse(Interpreter& in, const Value& input, Arguments& arguments) {
  bind_nothing(arguments, "reverse");
  if (input.is_text()) return get_slice(in, input, Value(), Value(), integer_value(-1));
  Values items = items_of(in.heap(), input);
  std::reverse(items.begin(), items.end());
  return generator(in.heap(), std::move(items));
}

Value join_filter(Interpreter& in, const Value& input, Arguments& arguments) {
  Heap& heap = in.heap();
  const auto [separator, attribute] = bind(arguments, "join", {"d", "attribute"});
  Values items = items_of(heap, input);
  if (attribute && !attribute->is_none()) {
    const auto path = split_path(heap, *attribute);
    for (Value& item : items) item = follow_path(in, item, path);
  }
  if (!separator) return heap.text(join(heap, Text(), items));
  Arguments none;
  const Value text = find_filter("string")(in, *separator, none);
  return heap.text(join(heap, text.text(), items));
}

Value items_filter(Interpreter& in, const Value& input, Arguments& arguments) {
  bind_nothing(arguments, "items");
  if (input.is_undefined()) return generator(in.heap(), {});
  if (!input.is(Kind::dict)) throw Failure("Can only get item pairs from a mapping.");
  return generator(in.heap(), items_of(in.heap(), find_method(input, "items")(in, input, arguments)));
}

/// What values are compared by: an attribute of them, texts without case.
class SortKey {
 public:
  SortKey(Interpreter& in, const Value* attribute, bool case_sensitive, const Value* absent = nullptr)
      : in_(in),
        case_sensitive_(case_sensitive),
        absent_(absent),
        path_(split_path(in.heap(), attribute ? *attribute : Value())) {}

  Value operator()(const Value& item) const {
    Value key = follow_path(in_, item, path_, absent_);
    if (case_sensitive_ || !key.is_text()) return key;
    return in_.heap().text(lower(in_.heap(), key.text()));
  }

 private:
  Interpreter& in_;
  bool case_sensitive_;
  const Value* absent_;  ///< stands in for a missing attribute
  std::vector<Value> path_;
};

struct Keyed {
  Value key, item;
};

/// Stable, also backwards: equal items keep their order.
void sort_keyed(Heap& heap, std::vector<Keyed>& items, bool backwards) {
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    return backwards ? less(heap, b.key, a.key) : less(heap, a.key, b.key);
  });
}

Values without_keys(std::vector<Keyed> keyed) {
  Values items;
  for (Keyed& k : keyed) items.push_back(std::move(k.item));
  return items;
}

/// The keys of sort(attribute="a,b.c"): a tuple of them when there are several.
std::vector<SortKey> sort_keys(Interpreter& in, const Value* attribute, bool case_sensitive) {
  std::vector<SortKey> keys;
  if (!attribute || !attribute->is_text()) {
    keys.emplace_back(in, attribute, case_sensitive);
    return keys;
  }
  const Text& names = attribute->text();
  for (size_t begin = 0; begin <= names.size();) {
    const size_t end = std::min(names.bytes.find(',', begin), names.size());
    const Value name = in.heap().text(names.slice(begin, end));
    keys.emplace_back(in, &name, case_sensitive);
    begin = end + 1;
  }
  return keys;
}

Value sort(Interpreter& in, const Value& input, Arguments& arguments) {
  const auto [backwards, case_sensitive, attribute] =
      bind(arguments, "sort", {"reverse", "case_sensitive", "attribute"});
  const auto keys = sort_keys(in, attribute, flag_argument(case_sensitive, false));
  std::vector<Keyed> keyed;
  for (Value& item : items_of(in.heap(), input)) {
    Values parts;
    for (const SortKey& key : keys) parts.push_back(key(item));
    keyed.push_back({parts.size() == 1 ? parts[0] : in.heap().tuple(std::move(parts)), std::move(item)});
  }
  sort_keyed(in.heap(), keyed, flag_argument(backwards, false));
  return in.heap().list(without_keys(std::move(keyed)));
}

Value dict_sort(Interpreter& in, const Value& input, Arguments& arguments) {
  const auto [case_sensitive, by, backwards] = bind(arguments, "dictsort", {"case_sensitive", "by", "reverse"});
  const std::string_view order = by ? text_argument(*by, "dictsort").view() : "key";
  if (order != "key" && order != "value") throw Failure("You can only sort by either \"key\" or \"value\"");
  check_defined(input);
  if (!input.is(Kind::dict)) throw Failure("dictsort() needs a mapping");
  const SortKey key(in, nullptr, flag_argument(case_sensitive, false));
  std::vector<Keyed> keyed;
  for (const auto& [name, value] : input.dict().entries) {
    keyed.push_back({key(order == "key" ? name : value), in.heap().tuple({name, value})});
  }
  sort_keyed(in.heap(), keyed, flag_argument(backwards, false));
  return in.heap().list(without_keys(std::move(keyed)));
}

Value unique(Interpreter& in, const Value& input, Arguments& arguments) {
  const auto [case_sensitive, attribute] = bind(arguments, "unique", {"case_sensitive", "attribute"});
  const SortKey key(in, attribute, flag_argument(case_sensitive, false));
  std::vector<Keyed> seen;
  for (const Value& item : items_of(in.heap(), input)) {
    Value mine = key(item);
    check_hashable(mine);
    const auto same = [&](const Keyed& other) { return equal(in.heap(), other.key, mine); };
    if (std::none_of(seen.begin(), seen.end(), same)) seen.push_back({std::move(mine), item});
  }
  return generator(in.heap(), without_keys(std::move(seen)));
}

template <bool kLargest>
Value extreme(Interpreter& in, const Value& input, Arguments& arguments) {
  const auto [case_sensitive, attribute] = bind(arguments, "min", {"case_sensitive", "attribute"});
  const SortKey key(in, attribute, flag_argument(case_sensitive, false));
  Values storage;
  const Values& items = borrow_items(in.heap(), input, storage);
  if (items.empty()) return in.heap().undefined("No aggregated item, sequence was empty.");
  Keyed best{key(items[0]), items[0]};
  for (size_t i = 1; i < items.size(); ++i) {
    Value mine = key(items[i]);
    const bool better = kLargest ? less(in.heap(), best.key, mine) : less(in.heap(), mine, best.key);
    if (better) best = {std::move(mine), items[i]};
  }
  return best.item;
}

Value group_by(Interpreter& in, const Value& input, Arguments& arguments) {
  Heap& heap = in.heap();
  const auto [attribute, absent, case_sensitive] =
      bind(arguments, "groupby", {"attribute", "default", "case_sensitive"});
  required(attribute, "groupby", "attribute");
  const SortKey key(in, attribute, true, absent);
  const bool fold = !flag_argument(case_sensitive, false);
  std::vector<Keyed> keyed;
  for (const Value& item : items_of(heap, input)) {
    Value mine = key(item);
    Value folded = fold && mine.is_text() ? heap.text(lower(heap, mine.text())) : mine;
    keyed.push_back({std::move(folded), heap.tuple({mine, item})});  // the first item of a group spells its name
  }
  sort_keyed(heap, keyed, false);
  Values groups;
  for (size_t begin = 0; begin < keyed.size();) {
    Values members;
    size_t end = begin;
    for (; end < keyed.size() && equal(heap, keyed[begin].key, keyed[end].key); ++end) {
      members.push_back(keyed[end].item.sequence().items[1]);
    }
    Value name = keyed[begin].item.sequence().items[0];
    groups.push_back(heap.sequence(SequenceKind::group, {std::move(name), heap.list(std::move(members))}));
    begin = end;
  }
  return heap.list(std::move(groups));
}

Value batch(Interpreter& in, const Value& input, Arguments& arguments) {
  Heap& heap = in.heap();
  const auto [count, fill] = bind(arguments, "batch", {"linecount", "fill_with"});
  const int64_t size = to_int64(required(count, "batch", "linecount"), "linecount");
  Values rows, row;
  for (Value& item : items_of(heap, input)) {
    if (static_cast<int64_t>(row.size()) == size) rows.push_back(heap.list(std::exchange(row, {})));
    row.push_back(std::move(item));
  }
  if (!row.empty()) {
    if (fill && !fill->is_none() && size > static_cast<int64_t>(row.size())) {
      heap.check_items(static_cast<size_t>(size));
      row.resize(static_cast<size_t>(size), *fill);
    }
    rows.push_back(heap.list(std::move(row)));
  }
  return generator(heap, std::move(rows));
}

Value slice(Interpreter& in, const Value& input, Arguments& arguments) {
  Heap& heap = in.heap();
  const auto [count, fill] = bind(arguments, "slice", {"slices", "fill_with"});
  const int64_t slices = to_int64(required(count, "slice", "slices"), "slices");
  if (slices == 0) throw Failure("integer division or modulo by zero");
  heap.check_items(static_cast<size_t>(std::max<int64_t>(slices, 0)));
  const Values items = items_of(heap, input);
  Values columns;
  auto next = items.begin();
  for (int64_t i = 0; i < slices; ++i) {
    heap.step();
    const bool longer = i < static_cast<int64_t>(items.size()) % slices;
    const auto size = static_cast<std::ptrdiff_t>(static_cast<int64_t>(items.size()) / slices + longer);
    Values column(next, next + size);
    next += size;
    if (fill && !fill->is_none() && !longer) column.push_back(*fill);
    columns.push_back(heap.list(std::move(column)));
  }
  return generator(heap, std::move(columns));
}

constexpr Row<Filter> kSequenceFilters[] = {
    {"length", length_filter},
    {"count", length_filter},
    {"join", join_filter},
    {"list", list_filter},
    {"items", items_filter},
    {"first", first},
    {"last", last},
    {"reverse", reverse},
    {"sort", sort},
    {"dictsort", dict_sort},
    {"unique", unique},
    {"min", extreme<false>},
    {"max", extreme<true>},
    {"groupby", group_by},
    {"batch", batch},
    {"slice", slice},
};

}  // namespace

std::span<const Row<Filter>> sequence_filters() { return kSequenceFilters; }

}  // namespace infer::jinja
