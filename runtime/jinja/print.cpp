// str(), repr() and json.dumps. Recursion is bounded by kMaxNesting, length by the builder.
#include "runtime/jinja/print.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "runtime/jinja/operators.h"

namespace infer::jinja {

std::string format_integer(Integer i) {
  if (i == 0) return "0";
  auto rest = i < 0 ? -static_cast<unsigned __int128>(i) : static_cast<unsigned __int128>(i);
  std::string digits;
  for (; rest > 0; rest /= 10) digits += static_cast<char>('0' + static_cast<int>(rest % 10));
  if (i < 0) digits += '-';
  std::reverse(digits.begin(), digits.end());
  return digits;
}

std::string format_number(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  const double magnitude = std::fabs(d);
  const bool scientific = magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e16);
  char buffer[400];
  const auto format = scientific ? std::chars_format::scientific : std::chars_format::fixed;
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), d, format).ptr;
  std::string digits(buffer, end);
  if (!scientific && digits.find('.') == std::string::npos) digits += ".0";
  return digits;
}

static std::string hex(const char* prefix, uint32_t value, int digits) {
  static const char kDigits[] = "0123456789abcdef";
  std::string result = prefix;
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) result += kDigits[(value >> shift) & 15];
  return result;
}

/// Copies text with some characters replaced. `escape(c)` writes the replacement of a character and returns true, or
/// returns false for one that stays; those are copied in runs.
template <class Escape>
static void copy_escaped(TextBuilder& out, const Text& text, Escape escape) {
  MarkCursor marks(text);
  size_t run = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const uint32_t c = next_code_point(text.view(), at);
    if (c >= 0x20 && c < 0x7F && c != '"' && c != '\'' && c != '\\') continue;
    std::string replacement;
    if (!escape(replacement, c)) continue;
    out.add(text, run, begin);
    out.add(replacement, marks.at(begin));
    run = at;
  }
  out.add(text, run, text.size());
}

void repr_text(TextBuilder& out, const Text& text) {
  const bool double_quotes = text.bytes.find('\'') != std::string::npos && text.bytes.find('"') == std::string::npos;
  const char quote = double_quotes ? '"' : '\'';
  out.add(std::string_view(&quote, 1));
  copy_escaped(out, text, [quote](std::string& escape, uint32_t c) {
    if (c == '\n' || c == '\r' || c == '\t') {
      escape = c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (c == static_cast<unsigned char>(quote) || c == '\\') {
      escape = {'\\', static_cast<char>(c)};
    } else if (!is_printable(c)) {
      escape = c < 0x100 ? hex("\\x", c, 2) : c < 0x10000 ? hex("\\u", c, 4) : hex("\\U", c, 8);
    }
    return !escape.empty();
  });
  out.add(std::string_view(&quote, 1));
}

static void repr_items(TextBuilder& out, const Values& items, std::string_view open, std::string_view close) {
  out.add(open);
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.add(", ");
    repr(out, items[i]);
  }
  out.add(close);
}

static void repr_sequence(TextBuilder& out, const Sequence& sequence) {
  const Values& items = sequence.items;
  switch (sequence.kind) {
    case SequenceKind::list:
      return repr_items(out, items, "[", "]");
    case SequenceKind::tuple:
    case SequenceKind::group:
      return repr_items(out, items, "(", items.size() == 1 ? ",)" : ")");
    case SequenceKind::keys:
      return repr_items(out, items, "dict_keys([", "])");
    case SequenceKind::values:
      return repr_items(out, items, "dict_values([", "])");
    case SequenceKind::items:
      return repr_items(out, items, "dict_items([", "])");
    case SequenceKind::generator:
      return out.add("<generator object>");
    case SequenceKind::range:
      break;
  }
  const Integer first = items.empty() ? 0 : items.front().integer();
  const Integer step = items.size() < 2 ? 1 : items[1].integer() - first;
  out.add("range(" + format_integer(first) + ", " + format_integer(first + static_cast<Integer>(items.size()) * step));
  out.add(step == 1 ? ")" : ", " + format_integer(step) + ")");
}

static void repr_entries(TextBuilder& out, const Dict& dict) {
  out.add("{");
  for (size_t i = 0; i < dict.entries.size(); ++i) {
    if (i > 0) out.add(", ");
    repr(out, dict.entries[i].first);
    out.add(": ");
    repr(out, dict.entries[i].second);
  }
  out.add("}");
}

void repr(TextBuilder& out, const Value& value) {
  out.heap().work(8);
  switch (value.kind()) {
    case Kind::undefined:
      return out.add("Undefined");
    case Kind::none:
      return out.add("None");
    case Kind::boolean:
      return out.add(value.boolean() ? "True" : "False");
    case Kind::integer:
      return out.add(format_integer(value.integer()));
    case Kind::number:
      return out.add(format_number(value.number()));
    case Kind::text:
      return repr_text(out, value.text());
    case Kind::sequence:
      return repr_sequence(out, value.sequence());
    case Kind::dict:
      return repr_entries(out, value.dict());
    case Kind::space:
      return out.add("<Namespace>");  // its attributes may lead back to it
    case Kind::callable:
      return out.add(value.callable().description());
  }
}

void print(TextBuilder& out, const Value& value) {
  if (value.is_text()) {
    out.add(value.text());
  } else if (!value.is_undefined()) {
    repr(out, value);
  }
}

Text to_text(Heap& heap, const Value& value) {
  if (value.is_text()) {
    heap.work(value.text().size());
    return value.text();
  }
  TextBuilder out(heap);
  print(out, value);
  return out.take();
}

static void json_text(TextBuilder& out, const Text& text, bool ascii_only) {
  out.add("\"");
  copy_escaped(out, text, [ascii_only](std::string& escape, uint32_t c) {
    switch (c) {
      case '"':
        escape = "\\\"";
        break;
      case '\\':
        escape = "\\\\";
        break;
      case '\n':
        escape = "\\n";
        break;
      case '\r':
        escape = "\\r";
        break;
      case '\t':
        escape = "\\t";
        break;
      case '\b':
        escape = "\\b";
        break;
      case '\f':
        escape = "\\f";
        break;
      default:
        if (c < 0x20 || (ascii_only && c >= 0x7F && c < 0x10000)) escape = hex("\\u", c, 4);
        if (ascii_only && c >= 0x10000) {
          escape = hex("\\u", 0xD800 + ((c - 0x10000) >> 10), 4) + hex("\\u", 0xDC00 + ((c - 0x10000) & 0x3FF), 4);
        }
    }
    return !escape.empty();
  });
  out.add("\"");
}

static std::string json_number(double d) {
  if (std::isnan(d)) return "NaN";
  if (std::isinf(d)) return d < 0 ? "-Infinity" : "Infinity";
  return format_number(d);
}

static void json_key(TextBuilder& out, const Value& key, const JsonStyle& style) {
  switch (key.kind()) {
    case Kind::text:
      return json_text(out, key.text(), style.ascii_only);
    case Kind::none:
      return out.add("\"null\"");
    case Kind::boolean:
      return out.add(key.boolean() ? "\"true\"" : "\"false\"");
    case Kind::integer:
      return out.add("\"" + format_integer(key.integer()) + "\"");
    case Kind::number:
      return out.add("\"" + json_number(key.number()) + "\"");
    default:
      throw Failure(std::string("keys must be str, int, float, bool or None, not ") + type_name(key));
  }
}

static void json_line(TextBuilder& out, const JsonStyle& style, int depth) {
  if (!style.multi_line) return;
  out.add("\n");
  out.repeat(style.indent, depth);
}

static void json_value(TextBuilder& out, const Value& value, const JsonStyle& style, int depth);

static void json_list(TextBuilder& out, const Values& items, const JsonStyle& style, int depth) {
  if (items.empty()) return out.add("[]");
  out.add("[");
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.add(style.item_separator);
    json_line(out, style, depth + 1);
    json_value(out, items[i], style, depth + 1);
  }
  json_line(out, style, depth);
  out.add("]");
}

static void json_dict(TextBuilder& out, const Dict& dict, const JsonStyle& style, int depth) {
  if (dict.entries.empty()) return out.add("{}");
  std::vector<const Entries::value_type*> order;
  for (const auto& entry : dict.entries) order.push_back(&entry);
  if (style.sort_keys) {
    std::stable_sort(order.begin(), order.end(),
                     [&](auto* a, auto* b) { return less(out.heap(), a->first, b->first); });
  }
  out.add("{");
  for (size_t i = 0; i < order.size(); ++i) {
    if (i > 0) out.add(style.item_separator);
    json_line(out, style, depth + 1);
    json_key(out, order[i]->first, style);
    out.add(style.key_separator);
    json_value(out, order[i]->second, style, depth + 1);
  }
  json_line(out, style, depth);
  out.add("}");
}

static void json_value(TextBuilder& out, const Value& value, const JsonStyle& style, int depth) {
  out.heap().work(8);
  switch (value.kind()) {
    case Kind::none:
      return out.add("null");
    case Kind::boolean:
      return out.add(value.boolean() ? "true" : "false");
    case Kind::integer:
      return out.add(format_integer(value.integer()));
    case Kind::number:
      return out.add(json_number(value.number()));
    case Kind::text:
      return json_text(out, value.text(), style.ascii_only);
    case Kind::dict:
      return json_dict(out, value.dict(), style, depth);
    case Kind::sequence: {
      const SequenceKind kind = value.sequence().kind;
      if (kind != SequenceKind::list && kind != SequenceKind::tuple && kind != SequenceKind::group) break;
      return json_list(out, value.sequence().items, style, depth);
    }
    default:
      break;
  }
  throw Failure(std::string("Object of type ") + type_name(value) + " is not JSON serializable");
}

void to_json(TextBuilder& out, const Value& value, const JsonStyle& style) { json_value(out, value, style, 0); }

}  // namespace infer::jinja
