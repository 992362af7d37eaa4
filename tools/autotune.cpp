// See autotune.h. There are few enough crossovers to try them all.
#include "tools/autotune.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/compare.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

double middle_of(const std::vector<double>& values) { return median_interval(values).middle; }

const std::vector<double>& of(const TunedRows& row, TunedWay way) { return row.seconds[static_cast<size_t>(way)]; }

/// What `c` gains on `usual` in all rows beyond what a change must gain; nothing where a row's way was not measured.
std::optional<double> gain(const std::vector<TunedRows>& table, const Crossover& c, const Crossover& usual) {
  double sum = 0;
  for (const TunedRows& row : table) {
    const TunedWay way = way_of(c, row.rows), before = way_of(usual, row.rows);
    if (way == before) continue;
    if (of(row, way).empty() || of(row, before).empty()) return std::nullopt;
    sum += row.saved(way, before) - kLeastGain;
  }
  return sum;
}

int n_changes(const Crossover& a, const Crossover& b) {
  return (a.program_most != b.program_most) + (a.few_least != b.few_least) + (a.wide_least != b.wide_least);
}

/// The measured numbers of rows, and "never"; the usual one first.
std::vector<int64_t> candidates(const std::vector<TunedRows>& table, int64_t usual) {
  std::vector<int64_t> out = {usual, Crossover::never};
  for (const TunedRows& row : table) out.push_back(row.rows);
  return out;
}

TunedWay best_way(const TunedRows& row) {
  TunedWay best = TunedWay::matvec;
  for (const TunedWay way : kTunedWays)
    if (row.median(way) && (!row.median(best) || *row.median(way) < *row.median(best))) best = way;
  return best;
}

/// Share of time saved by the choice.
double saved_by(const TunedRows& row, const Crossover& usual, const Crossover& chosen) {
  const TunedWay before = way_of(usual, row.rows), after = way_of(chosen, row.rows);
  return before == after ? 0 : row.saved(after, before);
}

std::vector<std::string> cells(const TunedRows& row, const Crossover& usual, const Crossover& chosen) {
  std::vector<std::string> out = {std::to_string(row.rows)};
  const TunedWay best = best_way(row);
  for (const TunedWay way : kTunedWays) {
    const auto seconds = row.median(way);
    out.push_back(seconds ? fmt::format("{:.3f}{}", 1e3 * *seconds, way == best ? " *" : "  ") : "-  ");
  }
  const double saved = saved_by(row, usual, chosen);
  out.push_back(to_string(way_of(usual, row.rows)));
  out.push_back(to_string(way_of(chosen, row.rows)));
  out.push_back(saved == 0 ? "" : fmt::format("{:+.1f} %", -100 * saved));
  return out;
}

ordered_json record(const TunedRows& row, const Crossover& usual, const Crossover& chosen) {
  ordered_json j = {{"device", chosen.device}, {"format", chosen.format}, {"rows", row.rows}};
  for (const TunedWay way : kTunedWays) {
    const auto seconds = row.median(way);
    j[std::string(to_string(way)) + "_ms"] = seconds ? ordered_json(1e3 * *seconds) : ordered_json();
  }
  j["best"] = to_string(best_way(row));
  j["usual"] = to_string(way_of(usual, row.rows)), j["chosen"] = to_string(way_of(chosen, row.rows));
  j["saved"] = saved_by(row, usual, chosen);
  j["program_most"] = chosen.program_most, j["few_least"] = chosen.few_least, j["wide_least"] = chosen.wide_least;
  return j;
}

std::string least(int64_t rows) { return rows == Crossover::never ? "no measured number of" : std::to_string(rows); }

}  // namespace

const char* to_string(TunedWay way) {
  const char* const names[] = {"program", "matvec", "few", "wide"};
  return names[static_cast<size_t>(way)];
}

std::optional<double> TunedRows::median(TunedWay way) const {
  const std::vector<double>& rounds = of(*this, way);
  if (rounds.empty()) return std::nullopt;
  return middle_of(rounds);
}

double TunedRows::saved(TunedWay way, TunedWay other) const {
  const std::vector<double>&a = of(*this, way), &b = of(*this, other);
  std::vector<double> shares;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) shares.push_back(1 - a[i] / b[i]);
  return shares.empty() ? 0 : middle_of(shares);
}

TunedWay way_of(const Crossover& c, int64_t rows) {
  if (rows <= c.program_most) return TunedWay::program;
  if (rows >= c.wide_least) return TunedWay::wide;
  return rows >= c.few_least ? TunedWay::few : TunedWay::matvec;
}

Crossover choose_crossovers(const std::vector<TunedRows>& table, const Crossover& usual) {
  constexpr double kSame = 1e-9;
  Crossover best = usual;
  double most = 0;
  for (int64_t program = 0; program <= Crossover::most_program; ++program)
    for (const int64_t few : candidates(table, usual.few_least))
      for (const int64_t wide : candidates(table, usual.wide_least)) {
        Crossover c = usual;
        c.program_most = program, c.few_least = few, c.wide_least = wide;
        const auto gained = gain(table, c, usual);
        if (!gained || *gained < most - kSame) continue;
        if (*gained <= most + kSame && n_changes(c, usual) >= n_changes(best, usual)) continue;
        best = c, most = *gained;
      }
  return best;
}

Crossover forced(TunedWay way) {
  Crossover c;
  c.program_most = way == TunedWay::program ? Crossover::most_program : 0;
  c.few_least = way == TunedWay::few ? 1 : Crossover::never;
  c.wide_least = way == TunedWay::wide ? 1 : Crossover::never;
  return c;
}

std::string autotune_text(const std::string& form, const std::vector<TunedRows>& table, const Crossover& usual,
                          const Crossover& chosen) {
  RecordText records(form);
  std::string out;
  if (!records.is_table()) {
    for (const TunedRows& row : table) out += records.add(record(row, usual, chosen));
    return out + records.end();
  }
  const std::vector<TableColumn> columns = {{"rows", 4, true},    {"program ms", 10, true}, {"matvec ms", 9, true},
                                            {"few ms", 8, true},  {"wide ms", 8, true},     {"built in", 8, false},
                                            {"chosen", 7, false}, {"change", 8, true}};
  std::vector<std::vector<std::string>> lines;
  for (const TunedRows& row : table) lines.push_back(cells(row, usual, chosen));
  const auto words = [](const Crossover& c) {
    return fmt::format("one kernel up to {} rows, few from {}, wide from {} rows", c.program_most, least(c.few_least),
                       least(c.wide_least));
  };
  out = table_text(columns, lines);
  out +=
      fmt::format("\n{}, {}\nbuilt in: {}\nchosen:   {}\n", chosen.device, chosen.format, words(usual), words(chosen));
  return out +
         fmt::format("*: the quickest; a step changes its way where that saves {:.0f} % or more\n", 100 * kLeastGain);
}

}  // namespace infer::tools
