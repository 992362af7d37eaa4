// When requests come: by chance at a mean rate, at equal distances, or all at once. Pure arithmetic on a seed.
#pragma once

#include <cstdint>
#include <random>
#include <string>

namespace infer::tools {

/// What --arrival says.
struct Arrival {
  enum class Kind { poisson, fixed, all };
  Kind kind = Kind::poisson;
  double per_second = 0;  ///< of poisson and fixed
  int64_t n = 0;          ///< of all
  std::string text;       ///< as it was written
};
/// "poisson:4/s", "fixed:90/m", "all:32". Throws Error(usage).
Arrival parse_arrival(const std::string& text);

/// The times of one run, in seconds from its start; the same for the same seed on every machine.
class ArrivalTimes {
 public:
  ArrivalTimes(const Arrival& arrival, uint64_t seed) : arrival_(arrival), random_(seed) { advance(); }
  /// Of the next request; infinity when no more will come.
  double next() const { return next_; }
  void advance();

 private:
  Arrival arrival_;
  std::mt19937_64 random_;
  int64_t n_ = 0;  ///< requests up to the next one
  double next_ = 0;
};

}  // namespace infer::tools
