// The times of a step's ops, from those of the step's prefixes. How much longer its first n ops take than its first
// n - 1 is the time of op n, whatever it overlaps with and whether or not it is a kernel of its own; so the times of
// all ops add up to the step's. Pure arithmetic.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/timed_backend.h"

namespace infer {

class PrefixTimes {
 public:
  /// `ops`: of the step, each with its time by itself. n_prefixes: how many to time, evenly spread; the prefix without
  /// an op and the whole step at least, all there are at most. What lies between two of them is dealt out to its ops in
  /// the proportions of their times by themselves.
  PrefixTimes(std::vector<OpTime> ops, int64_t n_prefixes);

  const std::vector<OpTime>& ops() const { return ops_; }
  /// Ops of each prefix, ascending: first 0, last all of them.
  const std::vector<int64_t>& lengths() const { return lengths_; }
  /// Of prefix `index` of lengths(); counts among all such times by their median.
  void add(size_t index, double seconds) { times_[index].push_back(seconds); }
  void forget() { times_.assign(lengths_.size(), {}); }
  /// Of prefix `index`. Of the step: of the last one.
  double seconds(size_t index) const;
  double step_seconds() const { return seconds(lengths_.size() - 1); }
  /// Of each op. Their sum and seconds(0) are the step's time: what is noise is not taken away, and may be negative.
  std::vector<double> op_seconds() const;

 private:
  std::vector<OpTime> ops_;
  std::vector<int64_t> lengths_;
  std::vector<std::vector<double>> times_;
};

}  // namespace infer
