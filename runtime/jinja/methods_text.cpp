// The methods of str that look at or change a text; those that cut it are in methods_split.cpp.
#include <algorithm>
#include <cmath>

#include "runtime/jinja/builtins.h"
#include "runtime/jinja/format.h"
#include "runtime/jinja/interpreter.h"
#include "runtime/jinja/operators.h"
#include "runtime/jinja/text_tools.h"

namespace infer::jinja {

namespace {

template <Text (*kOperation)(Heap&, const Text&)>
Value simple(Interpreter& in, const Value& self, Arguments& arguments) {
  bind_nothing(arguments, "str method");
  return in.heap().text(kOperation(in.heap(), self.text()));
}

template <bool kLeft, bool kRight>
Value strip_method(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [characters] = bind(arguments, "strip", {"chars"});
  return in.heap().text(strip(in.heap(), self.text(), characters, kLeft, kRight));
}

/// str.title(): upper after every character that is not a letter.
Text title(Heap& heap, const Text& text) {
  TextBuilder out(heap);
  MarkCursor marks(text);
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const uint32_t c = next_code_point(text.view(), at);
    std::string mapped;
    inside ? append_lower(mapped, c) : append_upper(mapped, c);
    out.add(mapped, marks.at(begin));
    inside = is_letter(c);
  }
  return out.take();
}

Text swap_case(Heap& heap, const Text& text) {
  TextBuilder out(heap);
  MarkCursor marks(text);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const uint32_t c = next_code_point(text.view(), at);
    std::string mapped;
    is_cased_upper(c) ? append_lower(mapped, c) : append_upper(mapped, c);
    out.add(mapped, marks.at(begin));
  }
  return out.take();
}

Value replace_method(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [from, to, count] = bind(arguments, "replace", {"old", "new", "count"});
  const Text& old_text = text_argument(required(from, "replace", "old"), "replace");
  const Text& new_text = text_argument(required(to, "replace", "new"), "replace");
  const int64_t limit = count ? to_int64(*count, "count") : -1;
  return in.heap().text(replace(in.heap(), self.text(), old_text, new_text, limit));
}

/// The bytes of self between two optional code point indices, as in find(text, start, end).
Span section(Interpreter& in, const Text& text, const Value* start, const Value* stop) {
  in.heap().work(text.size());
  const auto size = static_cast<int64_t>(count_code_points(text.view()));
  const auto resolve = [&](const Value* value, int64_t absent) {
    if (!value || value->is_none()) return absent;
    const int64_t at = to_int64(*value, "index");
    return std::clamp<int64_t>(at < 0 ? at + size : at, 0, size);
  };
  const size_t begin = byte_offset(text.view(), static_cast<size_t>(resolve(start, 0)));
  const size_t end = byte_offset(text.view(), static_cast<size_t>(resolve(stop, size)));
  return {begin, std::max(begin, end)};
}

template <bool kAtStart>
Value has_affix(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [affix, start, stop] = bind(arguments, kAtStart ? "startswith" : "endswith", {"affix", "start", "end"});
  const Value& wanted = required(affix, kAtStart ? "startswith" : "endswith", "affix");
  const Span span = section(in, self.text(), start, stop);
  const std::string_view text = self.text().view().substr(span.begin, span.end - span.begin);
  Values storage;
  if (!wanted.is_sequence(SequenceKind::tuple)) storage.push_back(wanted);
  for (const Value& option : storage.empty() ? wanted.sequence().items : storage) {
    const std::string_view bytes = text_argument(option, kAtStart ? "startswith" : "endswith").view();
    if (kAtStart ? text.starts_with(bytes) : text.ends_with(bytes)) return Value(true);
  }
  return Value(false);
}

enum class Search { find, rfind, index, rindex };

template <Search kSearch>
Value search(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [sub, start, stop] = bind(arguments, "find", {"sub", "start", "end"});
  const std::string_view wanted = text_argument(required(sub, "find", "sub"), "find").view();
  const Span span = section(in, self.text(), start, stop);
  const std::string_view text = self.text().view().substr(span.begin, span.end - span.begin);
  const bool backwards = kSearch == Search::rfind || kSearch == Search::rindex;
  const size_t found = backwards ? text.rfind(wanted) : text.find(wanted);
  if (found != std::string_view::npos) {
    return integer_value(static_cast<int64_t>(count_code_points(self.text().view().substr(0, span.begin + found))));
  }
  if (kSearch == Search::index || kSearch == Search::rindex) throw Failure("substring not found");
  return integer_value(-1);
}

Value count_method(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [sub, start, stop] = bind(arguments, "count", {"sub", "start", "end"});
  const std::string_view wanted = text_argument(required(sub, "count", "sub"), "count").view();
  const Span span = section(in, self.text(), start, stop);
  const std::string_view text = self.text().view().substr(span.begin, span.end - span.begin);
  if (wanted.empty()) return integer_value(static_cast<int64_t>(count_code_points(text)) + 1);
  int64_t count = 0;
  for (size_t at = text.find(wanted); at != std::string_view::npos; at = text.find(wanted, at + wanted.size())) ++count;
  return integer_value(count);
}

/// True when the text is not empty and every character is of the kind.
template <bool (*kIs)(uint32_t)>
Value all_are(Interpreter& in, const Value& self, Arguments& arguments) {
  bind_nothing(arguments, "str method");
  const std::string_view text = self.text().view();
  in.heap().work(text.size());
  for (size_t at = 0; at < text.size();) {
    if (!kIs(next_code_point(text, at))) return Value(false);
  }
  return Value(!text.empty());
}

bool is_alphanumeric(uint32_t c) { return is_letter(c) || is_decimal(c); }
bool is_ascii_character(uint32_t c) { return c < 0x80; }

Value is_ascii_method(Interpreter& in, const Value& self, Arguments& arguments) {
  return self.text().size() == 0 ? Value(true) : all_are<is_ascii_character>(in, self, arguments);
}

/// True when there is a letter with case, and none of the other case.
template <bool kUpper>
Value is_case(Interpreter& in, const Value& self, Arguments& arguments) {
  bind_nothing(arguments, "str method");
  const std::string_view text = self.text().view();
  in.heap().work(text.size());
  bool any = false;
  for (size_t at = 0; at < text.size();) {
    const uint32_t c = next_code_point(text, at);
    if (kUpper ? is_cased_lower(c) : is_cased_upper(c)) return Value(false);
    any = any || (kUpper ? is_cased_upper(c) : is_cased_lower(c));
  }
  return Value(any);
}

template <Align kAlign>
Value pad_method(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [width, fill] = bind(arguments, "center", {"width", "fillchar"});
  const std::string_view with = fill ? text_argument(*fill, "center").view() : " ";
  if (count_code_points(with) != 1) throw Failure("the fill character must be exactly one character long");
  return in.heap().text(
      pad(in.heap(), self.text(), to_int64(required(width, "center", "width"), "width"), with, kAlign));
}

Value zfill(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [width] = bind(arguments, "zfill", {"width"});
  const Text& text = self.text();
  const size_t sign = text.view().starts_with('-') || text.view().starts_with('+') ? 1 : 0;
  const auto size = static_cast<int64_t>(count_code_points(text.view()));
  TextBuilder out(in.heap());
  out.add(text, 0, sign);
  out.repeat("0", std::max<int64_t>(to_int64(required(width, "zfill", "width"), "width"), 0) - size);
  out.add(text, sign, text.size());
  return in.heap().text(out.take());
}

Value join_method(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto [iterable] = bind(arguments, "join", {"iterable"});
  Values storage;
  const Values& items = borrow_items(in.heap(), required(iterable, "join", "iterable"), storage);
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].is_text()) continue;
    throw Failure("sequence item " + std::to_string(i) + ": expected str instance, " + type_name(items[i]) + " found");
  }
  return in.heap().text(join(in.heap(), self.text(), items));
}

Value format_method(Interpreter& in, const Value& self, Arguments& arguments) {
  return format_braces(in, self.text(), arguments);
}

constexpr Row<Method> kMethods[] = {
    {"upper", simple<upper>},
    {"lower", simple<lower>},
    {"casefold", simple<lower>},
    {"capitalize", simple<capitalize>},
    {"title", simple<title>},
    {"swapcase", simple<swap_case>},
    {"strip", strip_method<true, true>},
    {"lstrip", strip_method<true, false>},
    {"rstrip", strip_method<false, true>},
    {"replace", replace_method},
    {"startswith", has_affix<true>},
    {"endswith", has_affix<false>},
    {"find", search<Search::find>},
    {"rfind", search<Search::rfind>},
    {"index", search<Search::index>},
    {"rindex", search<Search::rindex>},
    {"count", count_method},
    {"join", join_method},
    {"format", format_method},
    {"center", pad_method<Align::center>},
    {"ljust", pad_method<Align::left>},
    {"rjust", pad_method<Align::right>},
    {"zfill", zfill},
    {"isalpha", all_are<is_letter>},
    {"isdigit", all_are<is_decimal>},
    {"isdecimal", all_are<is_decimal>},
    {"isnumeric", all_are<is_decimal>},
    {"isalnum", all_are<is_alphanumeric>},
    {"isspace", all_are<is_space>},
    {"isprintable", all_are<is_printable>},
    {"isascii", is_ascii_method},
    {"isupper", is_case<true>},
    {"islower", is_case<false>},
};

}  // namespace

std::span<const Row<Method>> text_methods() { return kMethods; }

}  // namespace infer::jinja
