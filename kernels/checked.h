// Arithmetic on sizes that come from files: every sum, product and padding of an untrusted number goes through here and
// says "overflow" instead of wrapping. Knows numbers only: the caller turns nullopt into an error that names the file.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>

namespace infer {

constexpr std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  if (b > std::numeric_limits<uint64_t>::max() - a) return std::nullopt;
  return a + b;
}

constexpr std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) {
  if (a != 0 && b > std::numeric_limits<uint64_t>::max() / a) return std::nullopt;
  return a * b;
}

/// `value` rounded up to a multiple of `alignment` (a power of two).
constexpr std::optional<uint64_t> checked_align(uint64_t value, uint64_t alignment) {
  const auto sum = checked_add(value, alignment - 1);
  if (!sum) return std::nullopt;
  return *sum & ~(alignment - 1);
}

/// The product of dimensions, as long as none is negative and the product fits int64_t.
constexpr std::optional<int64_t> checked_product(std::span<const int64_t> dims) {
  uint64_t product = 1;
  for (const int64_t dim : dims) {
    const auto next = dim < 0 ? std::nullopt : checked_mul(product, static_cast<uint64_t>(dim));
    if (!next || *next > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    product = *next;
  }
  return static_cast<int64_t>(product);
}

}  // namespace infer
