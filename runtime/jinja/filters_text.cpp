// Filters that make a text.
#include <algorithm>

#include "runtime/jinja/access.h"
#include "runtime/jinja/builtins.h"
#include "runtime/jinja/format.h"
#include "runtime/jinja/interpreter.h"
#include "runtime/jinja/operators.h"
#include "runtime/jinja/print.h"
#include "runtime/jinja/text_tools.h"

namespace infer::jinja {

namespace {

template <Text (*kOperation)(Heap&, const Text&)>
Value simple(Interpreter& in, const Value& input, Arguments& arguments) {
  bind_nothing(arguments, "filter");
  return in.heap().text(kOperation(in.heap(), to_text(in.heap(), input)));
}

/// The filter `title`, unlike str.title(): words begin after blanks, dashes and opening brackets only.
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
    inside =
        !is_space(c) && (c > 0x7F || std::string_view("-({[<").find(static_cast<char>(c)) == std::string_view::npos);
  }
  return out.take();
}

Value trim(Interpreter& in, const Value& input, Arguments& arguments) {
  const auto [characters] = bind(arguments, "trim", {"chars"});
  return in.heap().text(strip(in.heap(), to_text(in.heap(), input), characters, true, true));
}

Value to_string(Interpreter& in, const Value& input, Arguments& arguments) {
  bind_nothing(arguments, "string");
  return input.is_text() ? input : in.heap().text(to_text(in.heap(), input));
}

Value replace_filter(Interpreter& in, const Value& input, Arguments& arguments) {
  Heap& heap = in.heap();
  const auto [from, to, count] = bind(arguments, "replace", {"old", "new", "count"});
  const Text old_text = to_text(heap, required(from, "replace", "old"));
  const Text new_text = to_text(heap, required(to, "replace", "new"));
  const int64_t limit = count && !count->is_none() ? to_int64(*count, "count") : -1;
  return heap.text(replace(heap, to_text(heap, input), old_text, new_text, limit));
}

Value center(Interpreter& in, const Value& input, Arguments& arguments) {
  const auto [width] = bind(arguments, "center", {"width"});
  const int64_t columns = width ? to_int64(*width, "width") : 80;
  return in.heap().text(pad(in.heap(), to_text(in.heap(), input), columns, " ", Align::center));
}

Value indent(Interpreter& in, const Value& input, Arguments& arguments) {
  Heap& heap = in.heap();
  const auto [width, first, blank] = bind(arguments, "indent", {"width", "first", "blank"});
  TextBuilder margin(heap);
  if (width && width->is_text()) {
    margin.add(width->text());
  } else {
    margin.repeat(" ", width ? to_integer(*width, "width") : 4);
  }
  TextBuilder with_end(heap);
  with_end.add(text_argument(input, "indent"));
  with_end.add("\n");
  const Values lines = split_lines(heap, with_end.take(), false);
  TextBuilder out(heap);
  if (flag_argument(first, false)) out.add(margin.text());
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.add("\n");
    if (i > 0 && (flag_argument(blank, false) || lines[i].text().size() > 0)) out.add(margin.text());
    out.add(lines[i].text());
  }
  return heap.text(out.take());
}

Value truncate_filter(Interpreter& in, const Value& input, Arguments& arguments) {
  Heap& heap = in.heap();
  const auto [length, kill_words, end, leeway] = bind(arguments, "truncate", {"length", "killwords", "end", "leeway"});
  const Text& text = text_argument(input, "truncate");
  const Text ending = end ? text_argument(*end, "truncate") : Text("...");
  const int64_t limit = length ? to_int64(*length, "length") : 255;
  const int64_t slack = leeway && !leeway->is_none() ? to_int64(*leeway, "leeway") : 5;
  const auto ending_size = static_cast<int64_t>(count_code_points(ending.view()));
  if (limit < ending_size) throw Failure("truncate() needs a length of at least that of the end text");
  if (slack < 0) throw Failure("truncate() needs a leeway of at least 0");
  const auto size = static_cast<int64_t>(count_code_points(text.view()));
  if (size <= limit || size - limit <= slack) return input;
  size_t cut = byte_offset(text.view(), static_cast<size_t>(limit - ending_size));
  if (!flag_argument(kill_words, false)) cut = std::min(cut, text.view().substr(0, cut).rfind(' '));
  TextBuilder out(heap);
  out.add(text, 0, cut);
  out.add(ending);
  return heap.text(out.take());
}

Value word_count(Interpreter& in, const Value& input, Arguments& arguments) {
  bind_nothing(arguments, "wordcount");
  const Text text = to_text(in.heap(), input);
  int64_t words = 0;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const uint32_t c = next_code_point(text.view(), at);
    const bool word = c == '_' || is_letter(c) || is_decimal(c);
    words += word && !inside;
    inside = word;
  }
  return integer_value(words);
}

Value format_filter(Interpreter& in, const Value& input, Arguments& arguments) {
  Heap& heap = in.heap();
  if (!arguments.positional.empty() && !arguments.named.empty()) {
    throw Failure("format() takes positional or keyword arguments, not both");
  }
  const Text text = to_text(heap, input);
  if (arguments.named.empty()) return format_percent(heap, text, heap.tuple(arguments.positional));
  Entries entries;
  for (const auto& [name, value] : arguments.named) entries.emplace_back(heap.text(name), value);
  return format_percent(heap, text, heap.dict(std::move(entries), true));
}

/// transformers' own tojson, with json.dumps' arguments.
Value to_json_filter(Interpreter& in, const Value& input, Arguments& arguments) {
  const auto [ascii, indent, separators, sort] =
      bind(arguments, "tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii_only = flag_argument(ascii, false);
  style.sort_keys = flag_argument(sort, false);
  if (indent && !indent->is_none()) {
    style.multi_line = true;
    style.item_separator = Text(",");
    if (indent->is_text()) {
      style.indent = indent->text().bytes;
    } else {
      const int64_t width = to_int64(*indent, "indent");
      if (width > 1000) throw Failure("tojson() indents by at most 1000");
      style.indent.assign(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    }
  }
  if (separators && !separators->is_none()) {
    Values storage;
    const Values& pair = borrow_items(in.heap(), *separators, storage);
    if (pair.size() != 2) throw Failure("tojson() needs two separators");
    style.item_separator = text_argument(pair[0], "tojson");
    style.key_separator = text_argument(pair[1], "tojson");
  }
  TextBuilder out(in.heap());
  to_json(out, input, style);
  return in.heap().text(out.take());
}

/// Percent-encodes all but unreserved characters and those in `safe`.
void add_quoted(TextBuilder& out, const Text& text, std::string_view safe, bool plus) {
  static const char kDigits[] = "0123456789ABCDEF";
  MarkCursor marks(text);
  for (size_t at = 0; at < text.size(); ++at) {
    const auto byte = static_cast<unsigned char>(text.bytes[at]);
    const bool plain = (byte < 0x80 && (is_letter(byte) || is_decimal(byte))) ||
                       std::string_view("_.-~").find(static_cast<char>(byte)) != std::string_view::npos ||
                       safe.find(static_cast<char>(byte)) != std::string_view::npos;
    const char encoded[] = {'%', kDigits[byte >> 4], kDigits[byte & 15]};
    out.add(plain ? text.view().substr(at, 1) : plus && byte == ' ' ? "+" : std::string_view(encoded, 3), marks.at(at));
  }
}

Value url_encode(Interpreter& in, const Value& input, Arguments& arguments) {
  bind_nothing(arguments, "urlencode");
  Heap& heap = in.heap();
  TextBuilder out(heap);
  if (!input.is(Kind::dict) && !input.is(Kind::sequence)) {
    add_quoted(out, to_text(heap, input), "/", false);
    return heap.text(out.take());
  }
  Arguments none;
  const Value pairs = input.is(Kind::dict) ? find_method(input, "items")(in, input, none) : input;
  bool first = true;
  for (const Value& pair : items_of(heap, pairs)) {
    const Values key_value = items_of(heap, pair);
    if (key_value.size() != 2) throw Failure("urlencode() needs pairs");
    if (!std::exchange(first, false)) out.add("&");
    add_quoted(out, to_text(heap, key_value[0]), "", true);
    out.add("=");
    add_quoted(out, to_text(heap, key_value[1]), "", true);
  }
  return heap.text(out.take());
}

Value xml_attributes(Interpreter& in, const Value& input, Arguments& arguments) {
  const auto [autospace] = bind(arguments, "xmlattr", {"autospace"});
  Heap& heap = in.heap();
  if (!input.is(Kind::dict)) throw Failure("xmlattr() needs a mapping");
  TextBuilder out(heap);
  for (const auto& [key, value] : input.dict().entries) {
    if (value.is_none() || value.is_undefined()) continue;
    const Text& name = text_argument(key, "xmlattr");
    if (name.bytes.find_first_of(" \t\n\r\f\v/>=") != std::string::npos)
      throw Failure("invalid character in attribute name");
    if (out.size() > 0 || flag_argument(autospace, true)) out.add(" ");
    out.add(escape_html(heap, name));
    out.add("=\"");
    out.add(escape_html(heap, to_text(heap, value)));
    out.add("\"");
  }
  return heap.text(out.take());
}

constexpr Row<Filter> kTextFilters[] = {
    {"trim", trim},
    {"tojson", to_json_filter},
    {"string", to_string},
    {"safe", to_string},
    {"replace", replace_filter},
    {"upper", simple<upper>},
    {"lower", simple<lower>},
    {"capitalize", simple<capitalize>},
    {"title", simple<title>},
    {"indent", indent},
    {"format", format_filter},
    {"e", simple<escape_html>},
    {"escape", simple<escape_html>},
    {"forceescape", simple<escape_html>},
    {"center", center},
    {"truncate", truncate_filter},
    {"wordcount", word_count},
    {"urlencode", url_encode},
    {"xmlattr", xml_attributes},
};

}  // namespace

std::span<const Row<Filter>> text_filters() { return kTextFilters; }

}  // namespace infer::jinja
