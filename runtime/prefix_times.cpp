// Which prefixes are timed, and their differences.
#include "runtime/prefix_times.h"

#include <algorithm>

namespace infer {

PrefixTimes::PrefixTimes(std::vector<OpTime> ops, int64_t n_prefixes) : ops_(std::move(ops)) {
  const auto n_ops = static_cast<int64_t>(ops_.size());
  const int64_t gaps = std::max<int64_t>(1, std::min(n_ops, n_prefixes - 1));
  for (int64_t i = 0; i <= gaps; ++i) lengths_.push_back(i * n_ops / gaps);
  times_.resize(lengths_.size());
}

double PrefixTimes::seconds(size_t index) const {
  std::vector<double> sorted = times_[index];
  if (sorted.empty()) return 0;
  std::sort(sorted.begin(), sorted.end());
  return (sorted[(sorted.size() - 1) / 2] + sorted[sorted.size() / 2]) / 2;
}

std::vector<double> PrefixTimes::op_seconds() const {
  std::vector<double> out(ops_.size());
  for (size_t i = 0; i + 1 < lengths_.size(); ++i) {
    const auto begin = static_cast<size_t>(lengths_[i]), end = static_cast<size_t>(lengths_[i + 1]);
    double alone = 0;
    for (size_t op = begin; op < end; ++op) alone += ops_[op].seconds;
    const double more = seconds(i + 1) - seconds(i), even = 1 / static_cast<double>(end - begin);
    for (size_t op = begin; op < end; ++op) out[op] = more * (alone > 0 ? ops_[op].seconds / alone : even);
  }
  return out;
}

}  // namespace infer
