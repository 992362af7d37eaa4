// The lines of `infer bench --duration` as numbers, and what they come to. Measures nothing.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace infer::tools {

/// What was seen between two lines. Of clocks and temperatures the last that was seen.
struct SustainedInterval {
  double end = 0;                        ///< seconds since the beginning
  double tokens = 0, timed_seconds = 0;  ///< of the repetitions, and what they took
  double wall_seconds = 0;               ///< with what lies between them
  std::optional<double> mhz, watts, celsius;
  std::vector<std::string> held_back;  ///< reasons why clocks were lower, without repetition
  double rate() const { return timed_seconds > 0 ? tokens / timed_seconds : 0; }
  std::optional<double> joules_per_token() const;
};

/// Seconds to a line: a twentieth of the whole, from 1 to 10.
double interval_seconds(double duration);

/// First against last, what held the device back and in how many intervals, and energy or why it is not told.
std::string sustained_summary(const std::vector<SustainedInterval>& intervals, const std::string& why_no_energy);

}  // namespace infer::tools
