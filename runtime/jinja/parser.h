// From tokens to the tree: Jinja2's grammar with loop controls and {% generation %}. What could reach outside the
// template (include, import, extends) is refused by name here.
#pragma once

#include "runtime/jinja/ast.h"

namespace infer::jinja {

constexpr int kMaxTreeDepth = 128;             ///< nested brackets, operators, statements
constexpr size_t kMaxSourceBytes = 256 << 10;  ///< of one template

/// Throws SyntaxFailure.
Tree parse(std::string_view source);

}  // namespace infer::jinja
