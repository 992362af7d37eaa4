// Medians, their intervals, and what may be said of a change.
#include <random>

#include "tests/catch.h"
#include "tools/compare.h"

using namespace infer::tools;

TEST_CASE("the interval of a median is least to greatest of few samples, inner ones of more") {
  const Interval three = median_interval({3, 1, 2});
  CHECK(three.low == 1);
  CHECK(three.middle == 2);
  CHECK(three.high == 3);
  std::vector<double> samples;
  for (int i = 1; i <= 8; ++i) samples.push_back(i);
  CHECK(median_interval(samples).low == 1);
  CHECK(median_interval(samples).middle == 4.5);
  samples.push_back(9);  // 96 % without the outermost
  CHECK(median_interval(samples).low == 2);
  CHECK(median_interval(samples).high == 8);
  for (int i = 10; i <= 20; ++i) samples.push_back(i);
  CHECK(median_interval(samples).low == 6);
  CHECK(median_interval(samples).high == 15);
  CHECK(median_interval({7}).low == 7);
  const Interval many = median_interval(std::vector<double>(1000, 5.0));
  CHECK(many.low == 5);
  CHECK(many.high == 5);
}

TEST_CASE("intervals hold the true median as often as they promise") {
  std::mt19937 random(7);
  std::lognormal_distribution<double> draw(0, 0.3);  // median 1, skewed
  for (const size_t n : {5, 9, 12, 20}) {
    int held = 0;
    constexpr int kRounds = 4000;
    for (int round = 0; round < kRounds; ++round) {
      std::vector<double> samples(n);
      for (double& s : samples) s = draw(random);
      const Interval i = median_interval(samples);
      held += i.low <= 1 && 1 <= i.high;
    }
    INFO(n);
    CHECK(held > 0.92 * kRounds);
  }
}

TEST_CASE("a change is told only beyond tolerance and noise") {
  const std::vector<double> base = {99, 100, 101};
  CHECK(compare(base, {99, 100, 101}, 0.03).verdict == Verdict::same);
  CHECK(compare(base, {89, 90, 91}, 0.03).verdict == Verdict::slower);
  CHECK(compare(base, {109, 110, 111}, 0.03).verdict == Verdict::faster);
  // Surely slower, but by less than counts.
  CHECK(compare(base, {97.5, 98, 98.5}, 0.05).verdict == Verdict::same);
  // The median is far off, and the samples overlap those of before.
  CHECK(compare(base, {80, 85, 105}, 0.03).verdict == Verdict::noisy);
  // Medians agree, and nothing excludes a change beyond the tolerance.
  CHECK(compare(base, {80, 100, 120}, 0.03).verdict == Verdict::noisy);
  // Without tolerance equal samples are no change.
  CHECK(compare({5, 5, 5}, {5, 5, 5}, 0).verdict == Verdict::same);
  const Comparison c = compare({100, 100, 100}, {80, 90, 95}, 0.03);
  CHECK(c.change.low == Approx(-0.2));
  CHECK(c.change.middle == Approx(-0.1));
  CHECK(c.change.high == Approx(-0.05));
}

TEST_CASE("the same noise on both sides is seldom called a change") {
  std::mt19937 random(11);
  std::normal_distribution<double> draw(100, 5);
  int wrong = 0;
  for (int round = 0; round < 2000; ++round) {
    std::vector<double> before(5), after(5);
    for (double& s : before) s = draw(random);
    for (double& s : after) s = draw(random);
    const Verdict v = compare(before, after, 0).verdict;
    wrong += v == Verdict::slower || v == Verdict::faster;
  }
  CHECK(wrong < 40);  // 0.8 % are expected where there is no tolerance: 16
}
