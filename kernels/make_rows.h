// Weights that lie nowhere yet: how their rows come to be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace infer {

/// Writes rows [first, first + n) of a tensor one after another, rows being counted over all dimensions but the last.
/// May be called by several threads at once.
using MakeRows = std::function<void(int64_t first, int64_t n, std::byte* to)>;

}  // namespace infer
