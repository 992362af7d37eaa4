// How values become text: str() and repr() of Python, and JSON as json.dumps writes it.
#pragma once

#include "runtime/jinja/value.h"

namespace infer::jinja {

/// str(value): what {{ value }} writes.
void print(TextBuilder& out, const Value& value);
/// repr(value): how a value looks within a list.
void repr(TextBuilder& out, const Value& value);
void repr_text(TextBuilder& out, const Text& text);
/// The value's text itself, or str() of it.
Text to_text(Heap& heap, const Value& value);

std::string format_integer(Integer i);
/// repr() of a float: the shortest digits that read back, 1.0, 1e+16, inf, nan.
std::string format_number(double d);

struct JsonStyle {
  bool ascii_only = false;  ///< ensure_ascii
  bool sort_keys = false;
  bool multi_line = false;
  std::string indent;
  Text item_separator{", "};
  Text key_separator{": "};
};
void to_json(TextBuilder& out, const Value& value, const JsonStyle& style);

}  // namespace infer::jinja
