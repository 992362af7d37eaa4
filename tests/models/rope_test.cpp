// Rotation tables against formulas written here a second time, in long double, and against recorded divisors.
#include <algorithm>
#include <cmath>

#include "models/arch.h"
#include "models/decoder.h"
#include "runtime/gguf.h"
#include "tests/catch.h"

using namespace infer;

namespace {

using Real = long double;
constexpr Real kPi = 3.14159265358979323846264338327950288L;

/// Compares rows of the table at telling positions with cos and sin of frequency(i) * position, times `length`.
template <class Frequency>
void check_table(const RopeConfig& rope, int64_t original, int64_t last, Real length, Frequency frequency,
                 int64_t n_ctx = 131072) {
  for (int64_t position : {int64_t{0}, int64_t{1}, original - 1, original, original + 1, last}) {
    std::vector<float> rows(static_cast<size_t>(4 * rope.dim), -9);
    const int64_t from = std::max<int64_t>(0, position - 1);
    fill_rope_table(rope, n_ctx, from, position + 2, rows.data());
    const float* row = rows.data() + (position - from) * rope.dim;
    Real error = 0;
    for (int64_t i = 0; i < rope.dim / 2; ++i) {
      const Real angle = static_cast<Real>(position) * frequency(i);
      error = std::max(error, std::fabs(row[2 * i] - length * std::cos(angle)));
      error = std::max(error, std::fabs(row[2 * i + 1] - length * std::sin(angle)));
    }
    INFO("position " << position);
    CHECK(static_cast<double>(error) < 2e-7);
    CHECK(rows[static_cast<size_t>((position + 2 - from) * rope.dim)] == -9);  // no row too many
  }
}

Real plain(const RopeConfig& rope, int64_t i) {
  return std::pow(static_cast<Real>(rope.base), -2 * static_cast<Real>(i) / static_cast<Real>(rope.dim));
}

}  // namespace

TEST_CASE("a plain rope turns pair i by base^(-2i/dim) per position") {
  RopeConfig rope;
  rope.dim = 128;
  rope.base = 500000;
  check_table(rope, 8192, 131071, 1, [&](int64_t i) { return plain(rope, i); });
}

TEST_CASE("a linear rope stretches all positions alike") {
  RopeConfig rope;
  rope.dim = 256;
  rope.base = 1e6;
  rope.scaling = RopeScaling::linear;
  rope.factor = 8;
  check_table(rope, 8192, 131071, 1, [&](int64_t i) { return plain(rope, i) / 8; });
}

TEST_CASE("llama3 divisors keep short waves, stretch long ones and blend between") {
  RopeConfig rope;
  rope.dim = 128;
  rope.base = 500000;
  rope.divisors = llama3_divisors(128, 500000, 8, 1, 4, 8192);
  CHECK(rope.divisors.front() == 1);
  CHECK(rope.divisors.back() == 8);
  check_table(rope, 8192, 131071, 1, [&](int64_t i) -> Real {
    const Real f = plain(rope, i), wave = 2 * kPi / f;
    const Real smooth = (8192 / wave - 1) / (4 - 1);
    const Real scaled = wave > 8192 ? f / 8 : wave < 8192.0L / 4 ? f : (1 - smooth) * f / 8 + smooth * f;
    return f / static_cast<Real>(static_cast<float>(f / scaled));  // files store divisors as float32
  });
}

TEST_CASE("llama3 divisors equal those that a converter wrote into a file") {
  const Checkpoint checkpoint = read_gguf(std::string(TEST_DATA) + "/models/llama3_rope/model.gguf");
  const std::vector<float> want = read_config(checkpoint).ropes[0].divisors;
  const std::vector<float> got = llama3_divisors(64, 500000, 8, 1, 4, 128);
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < got.size(); ++i) CHECK(got[i] == Approx(want[i]).epsilon(1e-5));
}

TEST_CASE("a yarn rope blends by the number of turns and lengthens cos and sin") {
  RopeConfig rope;
  rope.dim = 64;
  rope.base = 150000;
  rope.scaling = RopeScaling::yarn;
  rope.factor = 32;
  rope.original_context = 4096;
  // The pair that turns b times within the original context: i = dim * ln(original / (2 pi b)) / (2 ln base).
  const auto pair_of = [](Real turns) { return 64 * std::log(4096 / (turns * 2 * kPi)) / (2 * std::log(150000.0L)); };
  const Real low = std::floor(pair_of(32)), high = std::ceil(pair_of(1));
  CHECK(low == 8);
  CHECK(high == 18);
  const Real length = 0.1L * std::log(32.0L) + 1;
  check_table(rope, 4096, 131071, length, [&](int64_t i) {
    const Real t = std::min<Real>(1, std::max<Real>(0, (static_cast<Real>(i) - low) / (high - low)));
    return plain(rope, i) * (1 - t) + plain(rope, i) / 32 * t;
  });
}

TEST_CASE("a longrope takes its long divisors in contexts longer than the original one, and only there") {
  RopeConfig rope;
  rope.dim = 8;
  rope.original_context = 64;
  rope.divisors = {1, 1.5f, 2, 2.5f};
  rope.long_divisors = {1, 4, 9, 16};
  rope.attn_factor = 1.25;
  const auto frequency = [&](const std::vector<float>& divisors) {
    return [&](int64_t i) { return plain(rope, i) / static_cast<Real>(divisors[static_cast<size_t>(i)]); };
  };
  check_table(rope, 32, 63, 1.25L, frequency(rope.divisors), 64);
  check_table(rope, 32, 64, 1.25L, frequency(rope.long_divisors), 65);
}

TEST_CASE("a dynamic rope is plain up to the original context and has a larger base in longer ones") {
  RopeConfig rope;
  rope.dim = 16;
  rope.scaling = RopeScaling::dynamic;
  rope.factor = 4;
  rope.original_context = 256;
  check_table(
      rope, 128, 255, 1, [&](int64_t i) { return plain(rope, i); }, 256);
  // A context three times as long: base * (4 * 3 - 3)^(16 / 14), and no attention factor.
  const Real base = 10000 * std::pow(static_cast<Real>(9), 16.0L / 14);
  check_table(
      rope, 256, 767, 1, [&](int64_t i) { return std::pow(base, -static_cast<Real>(i) / 8); }, 768);
}

TEST_CASE("yarn blends from a fraction of a pair on where a model was trained so") {
  RopeConfig rope;
  rope.dim = 32;
  rope.base = 150000;
  rope.scaling = RopeScaling::yarn;
  rope.factor = 32;
  rope.original_context = 128;
  rope.whole_pairs = false;
  std::vector<float> row(32);
  fill_rope_table(rope, 128, 1, 2, row.data());
  const double pi = std::acos(-1.0), length = 1 + 0.1 * std::log(32.0);
  const auto pair = [&](double turns) { return 32 * std::log(128 / (turns * 2 * pi)) / (2 * std::log(150000.0)); };
  const double low = std::max(0.0, pair(32)), high = pair(1);
  REQUIRE(high != std::ceil(high));
  for (int i = 0; i < 16; ++i) {
    const double kept = 1 - std::clamp((i - low) / (high - low), 0.0, 1.0);
    const double plain = std::pow(150000.0, -i / 16.0), blended = plain / 32 * (1 - kept) + plain * kept;
    CHECK(row[static_cast<size_t>(2 * i)] == Approx(std::cos(blended) * length));
    CHECK(row[static_cast<size_t>(2 * i + 1)] == Approx(std::sin(blended) * length));
  }
}
