// See bench_sustained.h.
#include "tools/bench_sustained.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>

#include "tools/bench_records.h"
#include "tools/bench_run.h"
#include "tools/machine.h"
#include "tools/sustained.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void add_reason(std::vector<std::string>& reasons, const std::string& reason) {
  if (std::find(reasons.begin(), reasons.end(), reason) == reasons.end()) reasons.push_back(reason);
}

/// Clocks, temperature and energy of the device of a model, from one interval to the next.
class Watch {
 public:
  explicit Watch(const std::string& device) : meter_(EnergyMeter::of_device(device)) {
    gpu_ = device.starts_with("cuda");
    joules_ = meter_.joules();
    throttled_ = gpu_ ? std::nullopt : cpu_throttle_count();
  }
  const std::string& why_no_energy() const { return meter_.why_not(); }
  /// While the device is still busy, or was a moment ago.
  void look(SustainedInterval& to) const {
    if (const auto sample = meter_.sample()) {
      if (sample->sm_mhz) to.mhz = *sample->sm_mhz;
      if (sample->celsius) to.celsius = *sample->celsius;
      for (const std::string& r : throttle_reasons(sample->throttle)) add_reason(to.held_back, r);
    } else if (!gpu_) {
      to.mhz = cpu_mhz();
      to.celsius = cpu_celsius();
    }
  }
  void end(SustainedInterval& to) {
    if (const auto now = meter_.joules()) {
      if (joules_ && to.wall_seconds > 0) to.watts = (*now - *joules_) / to.wall_seconds;
      joules_ = now;
    }
    if (gpu_) return;
    const auto count = cpu_throttle_count();
    if (count && throttled_ && *count > *throttled_) add_reason(to.held_back, "too hot");
    throttled_ = count;
  }

 private:
  EnergyMeter meter_;
  bool gpu_ = false;
  std::optional<double> joules_, throttled_;
};

struct Column {
  TableColumn head;
  std::function<std::string(const SustainedInterval&)> text;
};

std::string number(const std::optional<double>& value, int digits) {
  return value ? fmt::format("{:.{}f}", *value, digits) : "-";
}

/// A column to everything that the first interval knows.
std::vector<Column> columns_for(const SustainedInterval& first) {
  using I = SustainedInterval;
  std::vector<Column> out = {{{"s", 6, true}, [](const I& i) { return fmt::format("{:.1f}", i.end); }},
                             {{"t/s", 10, true}, [](const I& i) { return fmt::format("{:.2f}", i.rate()); }}};
  if (first.mhz) out.push_back({{"MHz", 5, true}, [](const I& i) { return number(i.mhz, 0); }});
  if (first.watts) out.push_back({{"W", 6, true}, [](const I& i) { return number(i.watts, 1); }});
  if (first.celsius) out.push_back({{"°C", 4, true}, [](const I& i) { return number(i.celsius, 0); }});
  if (first.joules_per_token())
    out.push_back({{"J/token", 8, true}, [](const I& i) { return number(i.joules_per_token(), 4); }});
  out.push_back({{"held back by", 20, false}, [](const I& i) {
                   std::string text;
                   for (const std::string& r : i.held_back) text += (text.empty() ? "" : ", ") + r;
                   return text;
                 }});
  return out;
}

ordered_json record(const BenchRow& row, const std::vector<SustainedInterval>& intervals) {
  ordered_json j = machine_record(row), list = ordered_json::array();
  double tokens = 0, timed = 0;
  for (const SustainedInterval& i : intervals) {
    tokens += i.tokens, timed += i.timed_seconds;
    ordered_json one = {{"end_s", i.end}, {"avg_ts", i.rate()}};
    if (i.mhz) one["mhz"] = *i.mhz;
    if (i.watts) one["watts"] = *i.watts;
    if (i.celsius) one["celsius"] = *i.celsius;
    if (const auto joules = i.joules_per_token()) one["joules_per_token"] = *joules;
    one["held_back_by"] = i.held_back;
    list.push_back(std::move(one));
  }
  j.update({{"n_prompt", row.c.n_prompt},
            {"n_gen", row.c.n_gen},
            {"n_depth", row.c.depth},
            {"test_time", row.test_time},
            {"duration_s", intervals.back().end},
            {"avg_ts", timed > 0 ? tokens / timed : 0},
            {"first_ts", intervals.front().rate()},
            {"last_ts", intervals.back().rate()},
            {"intervals", list}});
  return j;
}

/// One test for as long as was asked; what there is of it after Ctrl-C. `on_interval` gets each as it ends.
template <class F>
std::vector<SustainedInterval> run_long(BenchRunner& runner, const BenchCase& c, double duration, Watch& watch,
                                        F on_interval) {
  const double length = interval_seconds(duration);
  const auto begin = Clock::now();
  std::vector<SustainedInterval> out;
  while (!interrupted() && since(begin) < duration) {
    SustainedInterval interval;
    const auto start = Clock::now();
    // The last line takes what is left, unless that is too little for a line of its own.
    do {
      const double seconds = runner.measure();
      if (interrupted()) break;
      interval.timed_seconds += seconds;
      interval.tokens += static_cast<double>(c.n_prompt + c.n_gen);
      watch.look(interval);
    } while (since(start) < length || (duration - since(begin) < length / 2 && since(begin) < duration));
    interval.wall_seconds = since(start);
    interval.end = since(begin);
    watch.end(interval);
    if (interval.tokens == 0) break;
    out.push_back(interval);
    on_interval(interval);
  }
  return out;
}

/// Prints the lines of one test as they come.
class Lines {
 public:
  explicit Lines(const BenchRow& row) : row_(row) {}
  void add(const SustainedInterval& interval) {
    std::vector<TableColumn> heads;
    std::vector<std::string> cells;
    const bool first = columns_.empty();
    if (first) columns_ = columns_for(interval);
    for (const Column& c : columns_) heads.push_back(c.head), cells.push_back(c.text(interval));
    if (first) {
      const std::string device =
          row_.on_gpu() ? row_.gpu_info : fmt::format("{} thread{}", row_.n_threads, row_.n_threads == 1 ? "" : "s");
      fmt::print("{}, {}, {} ({})\n\n{}", row_.model_type, row_.test_name(), row_.backend, device, table_head(heads));
    }
    fmt::print("{}", table_row(heads, cells));
    std::fflush(stdout);
  }

 private:
  const BenchRow& row_;
  std::vector<Column> columns_;
};

}  // namespace

int bench_sustained(const BenchFlags& flags) {
  BenchFlags f = flags;
  RecordText records(f.form);
  std::string last;
  for (const std::string& path : f.models) {
    f.model.path = path;
    const Model model = f.model.open();
    for (BenchCase c : expand(f, path)) {
      if (interrupted()) break;
      if (f.n_ubatch.empty()) c.n_ubatch = default_ubatch(model);
      BenchRow row = describe(c, model);
      BenchRunner runner(model, f.model.load, c);
      row.n_threads = runner.engine().stats().n_threads;
      if (f.warmup) runner.warm_up();
      Watch watch(model.info().device);
      Lines lines(row);
      const auto intervals = run_long(runner, c, f.modes.duration, watch, [&](const SustainedInterval& i) {
        if (records.is_table()) lines.add(i);
      });
      if (intervals.empty()) continue;
      if (records.is_table())
        fmt::print("\n{}\n", sustained_summary(intervals, watch.why_no_energy()));
      else
        fmt::print("{}", records.add(record(row, intervals)));
      last = last_lines(row);
    }
  }
  fmt::print("{}", records.is_table() ? last : records.end());
  return 0;
}

}  // namespace infer::tools
