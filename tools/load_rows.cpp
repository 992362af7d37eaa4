// Latencies in milliseconds, rates per second; see load_rows.h.
#include "tools/load_rows.h"

#include <fmt/format.h>

#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

std::string ms_text(double seconds) {
  if (std::isnan(seconds)) return "-";
  const double ms = seconds * 1e3;
  return fmt::format("{:.{}f}", ms, ms < 9.995 ? 2 : ms < 99.95 ? 1 : 0);
}

}  // namespace

std::vector<TableColumn> load_columns() {
  std::vector<TableColumn> all = {{"PP", 5, true}, {"TG", 5, true}, {"done", 5, true}};
  for (const Latency& l : kLatencies) {
    std::string name = l.name;
    for (char& c : name) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    all.push_back({name + " p50 / p90 / p99 ms", 24, true});
  }
  for (const char* rate : {"in t/s", "out t/s"}) all.push_back({rate, 9, true});
  all.push_back({"running", 7, true});
  all.push_back({"preempted", 9, true});
  return all;
}

std::vector<std::string> load_cells(const LoadShape& shape, const LoadResult& r) {
  std::vector<std::string> cells = {fmt::format("{:.0f}", shape.n_prompt), std::to_string(shape.n_gen),
                                    std::to_string(r.n_finished)};
  for (const Latency& l : kLatencies) {
    std::string cell;
    for (const int p : kPercentiles) cell += (cell.empty() ? "" : " / ") + ms_text(percentile(r.felt.*l.seconds, p));
    cells.push_back(cell);
  }
  for (const double rate : {r.in_rate(), r.out_rate()}) cells.push_back(fmt::format("{:.1f}", rate));
  cells.push_back(std::to_string(r.max_running));
  cells.push_back(std::to_string(r.n_preempted));
  return cells;
}

ordered_json load_record(const LoadShape& shape, const LoadResult& r) {
  ordered_json j = {{"n_prompt", shape.n_prompt},     {"n_gen", shape.n_gen},
                    {"n_arrived", r.n_arrived},       {"n_finished", r.n_finished},
                    {"n_unfinished", r.n_unfinished}, {"seconds", r.seconds},
                    {"tokens_in_per_s", r.in_rate()}, {"tokens_out_per_s", r.out_rate()},
                    {"max_running", r.max_running},   {"n_preempted", r.n_preempted}};
  for (const Latency& l : kLatencies) {
    const std::vector<double>& seconds = r.felt.*l.seconds;
    j[fmt::format("n_{}", l.name)] = seconds.size();
    for (const int p : kPercentiles) {
      const double value = percentile(seconds, p) * 1e3;
      j[fmt::format("{}_p{}_ms", l.name, p)] = std::isnan(value) ? ordered_json() : ordered_json(value);
    }
  }
  return j;
}

}  // namespace infer::tools
