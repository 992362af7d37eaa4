// f16 and bf16 against their definitions, pattern by pattern; rounding against exact arithmetic in double and against
// the processor's own instructions.
#include "quant/half.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "tests/catch.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

using namespace infer;

namespace {

// From the definition: sign, 5 bits of exponent, 10 of fraction. An infinity reads as 65536, the number in its place.
double f16_value(uint32_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

bool is_f16_nan(uint32_t bits) { return (bits & 0x7fff) > 0x7c00; }

// Floats of every exponent, with fractions that are random or next to a tie.
template <class Check>
void for_floats_of_every_kind(Check check) {
  std::mt19937 random(7);
  for (uint32_t exponent = 0; exponent < 256; ++exponent) {
    for (int k = 0; k < 4000; ++k) {
      uint32_t fraction = random() & 0x7fffff;
      const int shift = static_cast<int>(random() % 23);
      if (k % 2) fraction = ((fraction >> shift << shift) + random() % 3 - 1) & 0x7fffff;
      check(bits_float((random() & 0x80000000) | exponent << 23 | fraction));
    }
  }
}

// Whether `half` is the f16 nearest to x, the even one of two that are equally near.
bool is_nearest_f16(uint32_t half, float x) {
  if (std::isnan(x)) return is_f16_nan(half);
  const uint32_t magnitude = half & 0x7fff;
  if (std::signbit(x) != (half >> 15 != 0) || magnitude > 0x7c00) return false;
  const double size = std::min(std::abs(static_cast<double>(x)), 65536.0);
  const auto distance = [&](uint32_t bits) { return std::abs(f16_value(bits) - size); };
  const double up = magnitude == 0x7c00 ? INFINITY : distance(magnitude + 1);
  const double down = magnitude == 0 ? INFINITY : distance(magnitude - 1);
  const double nearest_other = std::min(up, down);
  return distance(magnitude) < nearest_other || (distance(magnitude) == nearest_other && magnitude % 2 == 0);
}

#if defined(__x86_64__)
__attribute__((target("f16c"))) uint16_t processor_f32_to_f16(float x) {
  return static_cast<uint16_t>(_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x), 0), 0));
}
__attribute__((target("f16c"))) float processor_f16_to_f32(uint16_t half) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}
#endif

}  // namespace

TEST_CASE("every f16 pattern has its defined value and returns from float unchanged") {
  int wrong = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float x = f16_to_f32(half);
    if (is_f16_nan(bits)) {
      wrong += !std::isnan(x) || f32_to_f16(x) != (half | 0x0200);
      continue;
    }
    const bool infinite = (bits & 0x7fff) == 0x7c00;
    const double want = infinite ? std::copysign(INFINITY, f16_value(bits)) : f16_value(bits);
    wrong += x != want || std::signbit(x) != std::signbit(want) || f32_to_f16(x) != half;
  }
  CHECK(wrong == 0);
}

TEST_CASE("every bf16 pattern is the upper half of its float and returns unchanged") {
  int wrong = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float x = bf16_to_f32(half);
    wrong += float_bits(x) != bits << 16;
    wrong += f32_to_bf16(x) != (std::isnan(x) ? half | 0x0040 : half);
  }
  CHECK(wrong == 0);
}

TEST_CASE("rounding a float to f16 gives the nearest, the even one of two") {
  int wrong = 0;
  for_floats_of_every_kind([&](float x) { wrong += !is_nearest_f16(f32_to_f16(x), x); });
  CHECK(wrong == 0);
  CHECK(f32_to_f16(65519.996f) == 0x7bff);
  CHECK(f32_to_f16(65520.0f) == 0x7c00);
  CHECK(f32_to_f16(-INFINITY) == 0xfc00);
  CHECK(f32_to_f16(0x1p-25f) == 0);           // a tie with zero
  CHECK(f32_to_f16(0x1.002p-25f) == 1);       // just above it
  CHECK(f32_to_f16(0x1.ffep-15f) == 0x0400);  // between the largest subnormal and the smallest normal number
  CHECK(f32_to_f16(-0x1p-149f) == 0x8000);
}

TEST_CASE("rounding a float to bf16 gives the nearest, the even one of two") {
  int wrong = 0;
  for_floats_of_every_kind([&](float x) {
    const uint16_t got = f32_to_bf16(x);
    if (std::isnan(x)) {
      wrong += !std::isnan(bf16_to_f32(got));
      return;
    }
    const int64_t error = static_cast<int64_t>(float_bits(x)) - (static_cast<int64_t>(got) << 16);
    wrong += std::abs(error) > 0x8000 || (std::abs(error) == 0x8000 && got % 2 != 0);
  });
  CHECK(wrong == 0);
  CHECK(f32_to_bf16(std::numeric_limits<float>::max()) == 0x7f80);
}

#if defined(__x86_64__)
TEST_CASE("f16 conversions equal the processor's, NaN included") {
  if (!__builtin_cpu_supports("f16c")) {
    WARN("skipped: this processor has no f16c");
    return;
  }
  int wrong = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    wrong += float_bits(f16_to_f32(half)) != float_bits(processor_f16_to_f32(half));
  }
  for_floats_of_every_kind([&](float x) { wrong += f32_to_f16(x) != processor_f32_to_f16(x); });
  CHECK(wrong == 0);
}
#endif
