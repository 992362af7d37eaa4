// See compare.h.
#include "tools/compare.h"

#include <algorithm>
#include <cmath>

namespace infer::tools {
namespace {

constexpr double kConfidence = 0.93;

// Of n samples the median lies outside of [k-th, k-th from above] when fewer than k of n coins show one side.
size_t left_out(size_t n) {
  double probability = std::pow(0.5, static_cast<double>(n)), sum = probability;
  size_t k = 0;
  // Past a hundred samples the first terms are nothing, and the loop still finds the right place.
  for (size_t i = 1; 2 * (i + 1) < n; ++i) {
    probability *= static_cast<double>(n - i + 1) / static_cast<double>(i);
    sum += probability;
    if (1 - 2 * sum < kConfidence) break;
    k = i;
  }
  return k;
}

}  // namespace

Interval median_interval(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const size_t n = samples.size(), k = left_out(n);
  return {samples[k], (samples[(n - 1) / 2] + samples[n / 2]) / 2, samples[n - 1 - k]};
}

const char* to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::same:
      return "same";
    case Verdict::faster:
      return "faster";
    case Verdict::slower:
      return "slower";
    case Verdict::noisy:
      return "noisy";
  }
  return "?";
}

Comparison compare(const std::vector<double>& before, const std::vector<double>& after, double tolerance) {
  Comparison c;
  c.before = median_interval(before);
  c.after = median_interval(after);
  c.change = {c.after.low / c.before.high - 1, c.after.middle / c.before.middle - 1, c.after.high / c.before.low - 1};
  if (c.change.low >= -tolerance && c.change.high <= tolerance)
    c.verdict = Verdict::same;
  else if (c.change.middle < -tolerance && c.change.high < 0)
    c.verdict = Verdict::slower;
  else if (c.change.middle > tolerance && c.change.low > 0)
    c.verdict = Verdict::faster;
  return c;
}

}  // namespace infer::tools
