// Whether one set of timings is slower than another, or whether that cannot be told: medians with intervals from order
// statistics, which assume nothing of how timings are distributed. Knows no files and no models.
#pragma once

#include <cstddef>
#include <vector>

namespace infer::tools {

/// Fewer say nothing about their own noise.
constexpr size_t kFewestSamples = 3;

struct Interval {
  double low = 0, middle = 0, high = 0;
};

/// The median, and the ordered samples around it, as many left out at either end as leave the interval to hold the true
/// median with 93 % or more; least and greatest where that is not to be had (75 % with 3 samples, 88 with 4, 94 with
/// 5). Not for an empty list.
Interval median_interval(std::vector<double> samples);

enum class Verdict {
  same,    ///< the whole interval of the change lies within the tolerance
  faster,  ///< the change is beyond the tolerance, and its interval wholly above 0
  slower,  ///< the same below 0
  noisy,   ///< none of these: not decidable
};
const char* to_string(Verdict verdict);

struct Comparison {
  Interval before, after;
  Interval change;  ///< of rates: 0.1 is 10 % faster; its ends are those of the two intervals that are farthest apart
  Verdict verdict = Verdict::noisy;
};

/// Rates (more is better) of one test, `kFewestSamples` of each at least.
Comparison compare(const std::vector<double>& before, const std::vector<double>& after, double tolerance);

}  // namespace infer::tools
