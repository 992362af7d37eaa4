// Sizes and offsets of programs, which are planned in 64 bits and used in 32.
#pragma once

#include <cstdint>

namespace infer::cuda {

inline int32_t narrow(int64_t n) { return static_cast<int32_t>(n); }
inline int64_t align(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace infer::cuda
