// JSON as values of the template language. The one place where text from outside enters, and so where it gets its mark.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "runtime/jinja/value.h"

namespace infer::jinja {

/// Objects keep the order of their keys. Every text is marked as user text, except the plain word under a key "role":
/// templates build control tokens from it ('<|' + message.role + '|>').
Value from_json(Heap& heap, const nlohmann::ordered_json& json);

}  // namespace infer::jinja
