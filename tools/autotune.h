// From how many rows of a step each way through the products of a GPU is the best one: the choice from measured times,
// and the table of both. Knows numbers; bench_autotune.cpp measures them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "infer.h"
#include "tools/table.h"

namespace infer::tools {

/// The ways, from few rows to many. Their names are the columns of the table.
enum class TunedWay { program, matvec, few, wide };
inline constexpr std::array<TunedWay, 4> kTunedWays = {TunedWay::program, TunedWay::matvec, TunedWay::few,
                                                       TunedWay::wide};
const char* to_string(TunedWay way);

/// A step of so many rows: seconds of each way, round by round. All ways were measured in turn in each round. Empty:
/// there is no such way.
struct TunedRows {
  int64_t rows = 0;
  std::array<std::vector<double>, 4> seconds;
  /// Median of the rounds.
  std::optional<double> median(TunedWay way) const;
  /// How much quicker `way` is than `other`: the median over the rounds of the share of time saved, in (-inf, 1).
  double saved(TunedWay way, TunedWay other) const;
};

/// Which way a step of `rows` rows goes by these numbers.
TunedWay way_of(const Crossover& crossover, int64_t rows);

/// The crossovers that save most against `usual`, where a row only counts as a gain by what it saves beyond
/// kLeastGain: noise and ties change nothing.
inline constexpr double kLeastGain = 0.02;
Crossover choose_crossovers(const std::vector<TunedRows>& table, const Crossover& usual);

/// All crossovers that force a way, as far as it goes: matvec and program by what is left out.
Crossover forced(TunedWay way);

std::string autotune_text(const std::string& form, const std::vector<TunedRows>& table, const Crossover& usual,
                          const Crossover& chosen);

}  // namespace infer::tools
