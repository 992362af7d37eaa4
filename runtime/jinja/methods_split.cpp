// The methods of str that cut a text into pieces, and those of dict and list.
#include <algorithm>

#include "runtime/jinja/builtins.h"
#include "runtime/jinja/interpreter.h"
#include "runtime/jinja/operators.h"
#include "runtime/jinja/text_tools.h"

namespace infer::jinja {

namespace {

using Spans = std::vector<Span>;

/// Words between runs of white space, at most `limit` cuts from the left or right; negative: no limit.
Spans split_space(std::string_view text, int64_t limit, bool from_right) {
  Spans words;
  // With a limit, the space at the far end stays with the last piece.
  Span rest = strip_space(text, !from_right || limit < 0, from_right || limit < 0);
  for (; limit != 0; --limit) {
    if (rest.begin == rest.end) break;
    // The word at the near end, then the space behind it.
    Span word = rest;
    if (!from_right) {
      size_t at = rest.begin;
      while (at < rest.end) {
        word.end = at;
        if (is_space(next_code_point(text, at))) break;
        word.end = at;
      }
      rest.begin = word.end + strip_space(text.substr(word.end, rest.end - word.end), true, false).begin;
    } else {
      size_t last_space = rest.begin;
      bool found = false;
      for (size_t at = rest.end; at > rest.begin && !found;) {
        size_t start = at - 1;
        while (start > rest.begin && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
        size_t after = start;
        found = is_space(next_code_point(text, after));
        last_space = found ? after : rest.begin;
        at = start;
      }
      word.begin = last_space;
      rest.end = rest.begin + strip_space(text.substr(rest.begin, word.begin - rest.begin), false, true).end;
    }
    words.push_back(word);
  }
  if (rest.begin < rest.end) words.push_back(rest);
  if (from_right) std::reverse(words.begin(), words.end());
  return words;
}

Spans split_separator(std::string_view text, std::string_view separator, int64_t limit, bool from_right) {
  Spans parts;
  Span rest{0, text.size()};
  for (; limit != 0; --limit) {
    const std::string_view left = text.substr(rest.begin, rest.end - rest.begin);
    const size_t found = from_right ? left.rfind(separator) : left.find(separator);
    if (found == std::string_view::npos) break;
    const size_t at = rest.begin + found;
    if (from_right) {
      parts.push_back({at + separator.size(), rest.end});
      rest.end = at;
    } else {
      parts.push_back({rest.begin, at});
      rest.begin = at + separator.size();
    }
  }
  parts.push_back(rest);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

template <bool kFromRight>
Value split(Interpreter& in, const Value& self, Arguments& arguments) {
  Heap& heap = in.heap();
  const auto [separator, most] = bind(arguments, "split", {"sep", "maxsplit"});
  const Text& text = self.text();
  const int64_t limit = most ? std::max<int64_t>(to_int64(*most, "maxsplit"), -1) : -1;
  heap.work(text.size() * 8);  // the spans below are up to 16 bytes for every two of the text
  Spans spans;
  if (!separator || separator->is_none()) {
    spans = split_space(text.view(), limit, kFromRight);
  } else {
    const std::string_view sep = text_argument(*separator, "split").view();
    if (sep.empty()) throw Failure("empty separator");
    spans = split_separator(text.view(), sep, limit, kFromRight);
  }
  heap.check_items(spans.size());
  Values parts;
  for (const Span& span : spans) parts.push_back(heap.text(text.slice(span.begin, span.end)));
  return heap.list(std::move(parts));
}

Value splitlines(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [keep] = bind(arguments, "splitlines", {"keepends"});
  return in.heap().list(split_lines(in.heap(), self.text(), flag_argument(keep, false)));
}

template <bool kFromRight>
Value partition(Interpreter& in, const Value& self, Arguments& arguments) {
  Heap& heap = in.heap();
  const auto [separator] = bind(arguments, "partition", {"sep"});
  const Text& text = self.text();
  const Text& sep = text_argument(required(separator, "partition", "sep"), "partition");
  if (sep.size() == 0) throw Failure("empty separator");
  const size_t found = kFromRight ? text.bytes.rfind(sep.bytes) : text.bytes.find(sep.bytes);
  if (found == std::string::npos) {
    const Value empty = heap.text(Text());
    return heap.tuple(kFromRight ? Values{empty, empty, self} : Values{self, empty, empty});
  }
  const size_t after = found + sep.size();
  return heap.tuple({heap.text(text.slice(0, found)), heap.text(text.slice(found, after)),
                     heap.text(text.slice(after, text.size()))});
}

template <bool kPrefix>
Value remove_affix(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [affix] = bind(arguments, "removeprefix", {"affix"});
  const Text& text = self.text();
  const std::string_view wanted = text_argument(required(affix, "removeprefix", "affix"), "removeprefix").view();
  const bool has = kPrefix ? text.view().starts_with(wanted) : text.view().ends_with(wanted);
  if (!has) return self;
  return in.heap().text(kPrefix ? text.slice(wanted.size(), text.size()) : text.slice(0, text.size() - wanted.size()));
}

Value get(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [key, absent] = bind(arguments, "get", {"key", "default"});
  check_hashable(required(key, "get", "key"));
  if (const Value* found = self.dict().find(in.heap(), *key)) return *found;
  return absent ? *absent : Value();
}

template <SequenceKind kKind>
Value view(Interpreter& in, const Value& self, Arguments& arguments) {
  bind_nothing(arguments, "dict method");
  Heap& heap = in.heap();
  Values items;
  heap.work(self.dict().entries.size() * 2 * sizeof(Value));
  for (const auto& [key, value] : self.dict().entries) {
    items.push_back(kKind == SequenceKind::keys     ? key
                    : kKind == SequenceKind::values ? value
                                                    : heap.tuple({key, value}));
  }
  return heap.sequence(kKind, std::move(items));
}

Value copy(Interpreter&, const Value& self, Arguments& arguments) {
  bind_nothing(arguments, "copy");
  return self;  // nothing can change it
}

Value list_index(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [item, start] = bind(arguments, "index", {"value", "start"});
  const Values& items = self.sequence().items;
  const auto size = static_cast<int64_t>(items.size());
  int64_t from = start ? to_int64(*start, "start") : 0;
  if (from < 0) from = std::max<int64_t>(from + size, 0);
  for (int64_t i = from; i < size; ++i) {
    if (equal(in.heap(), items[static_cast<size_t>(i)], required(item, "index", "value"))) return integer_value(i);
  }
  throw Failure("the value is not in the list");
}

Value list_count(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [item] = bind(arguments, "count", {"value"});
  const Value& wanted = required(item, "count", "value");
  int64_t count = 0;
  for (const Value& other : self.sequence().items) count += equal(in.heap(), other, wanted);
  return integer_value(count);
}

constexpr Row<Method> kTextMethods[] = {
    {"split", split<false>},
    {"rsplit", split<true>},
    {"splitlines", splitlines},
    {"partition", partition<false>},
    {"rpartition", partition<true>},
    {"removeprefix", remove_affix<true>},
    {"removesuffix", remove_affix<false>},
};

constexpr Row<Method> kDictMethods[] = {
    {"get", get},
    {"items", view<SequenceKind::items>},
    {"keys", view<SequenceKind::keys>},
    {"values", view<SequenceKind::values>},
    {"copy", copy},
};

constexpr Row<Method> kListMethods[] = {
    {"index", list_index},
    {"count", list_count},
    {"copy", copy},
};

}  // namespace

std::span<const Row<Method>> text_split_methods() { return kTextMethods; }
std::span<const Row<Method>> dict_methods() { return kDictMethods; }
std::span<const Row<Method>> list_methods() { return kListMethods; }

}  // namespace infer::jinja
