// Operations on texts that both filters and str methods offer.
#pragma once

#include "runtime/jinja/value.h"

namespace infer::jinja {

Text upper(Heap& heap, const Text& text);
Text lower(Heap& heap, const Text& text);
/// First character upper, the others lower.
Text capitalize(Heap& heap, const Text& text);
/// The ends without white space, or without any of `characters`.
Text strip(Heap& heap, const Text& text, const Value* characters, bool left, bool right);
/// Every occurrence, or the first `count` of them.
Text replace(Heap& heap, const Text& text, const Text& from, const Text& to, int64_t count = -1);
Text join(Heap& heap, const Text& separator, const Values& items);
Values split_lines(Heap& heap, const Text& text, bool keep_ends);
/// Pads to `width` code points; `left` of the missing ones go before the text.
enum class Align : uint8_t { left, right, center };
Text pad(Heap& heap, const Text& text, int64_t width, std::string_view fill, Align align);
/// &, <, >, ' and " as HTML entities.
Text escape_html(Heap& heap, const Text& text);
/// int(text, base) and float(text) of Python; nothing when the text is not a number.
std::optional<Integer> parse_integer(std::string_view text, int base);
std::optional<double> parse_number(std::string_view text);

}  // namespace infer::jinja
