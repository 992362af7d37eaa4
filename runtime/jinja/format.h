// Python's two ways to put values into a text: "%s" % value and "{}".format(value).
#pragma once

#include "runtime/jinja/value.h"

namespace infer::jinja {

/// text % arguments: a tuple fills the fields in order, a dict by name, any other value is the only one.
Value format_percent(Heap& heap, const Text& text, const Value& arguments);
/// text.format(...). Fields may name an argument, not reach into it.
Value format_braces(Interpreter& interpreter, const Text& text, const Arguments& arguments);

}  // namespace infer::jinja
