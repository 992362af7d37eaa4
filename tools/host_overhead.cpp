// The table of `infer bench --host-overhead`: what the host does while a device generates.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "tools/bench_records.h"
#include "tools/roofline.h"

namespace infer::tools {
namespace {

double per_token(const HostRow& r, double value) {
  return value / static_cast<double>(std::max<int64_t>(1, r.profile.n_tokens));
}

struct Column {
  TableColumn head;
  const char* key;  ///< of the record
  std::function<double(const HostRow&)> value;
  int digits;
  bool is_share = false;
};

const std::vector<Column>& columns() {
  using R = const HostRow&;
  static const std::vector<Column> all = {
      {{"t/s", 8, true},
       "avg_ts",
       [](R r) { return static_cast<double>(r.profile.n_tokens) / r.profile.wall_seconds; },
       1},
      {{"us/token", 8, true}, "us_per_token", [](R r) { return per_token(r, 1e6 * r.profile.wall_seconds); }, 1},
      {{"busy", 6, true},
       "device_busy_share",
       [](R r) { return r.profile.busy_seconds / r.profile.wall_seconds; },
       1,
       true},
      {{"gap us", 6, true}, "gap_us_per_token", [](R r) { return per_token(r, 1e6 * r.profile.gap_seconds); }, 2},
      {{"host CPU us", 11, true},
       "host_cpu_us_per_token",
       [](R r) { return per_token(r, 1e6 * r.profile.cpu_seconds); },
       1},
      {{"in steps us", 11, true},
       "step_cpu_us_per_token",
       [](R r) { return per_token(r, 1e6 * r.profile.step_cpu_seconds); },
       1},
      {{"beside us", 9, true},
       "beside_cpu_us_per_token",
       [](R r) { return per_token(r, 1e6 * (r.profile.cpu_seconds - r.profile.step_cpu_seconds)); },
       1},
      {{"launches", 8, true},
       "launches_per_token",
       [](R r) { return per_token(r, static_cast<double>(r.profile.n_launches)); },
       2},
      {{"waits", 6, true},
       "waits_per_token",
       [](R r) { return per_token(r, static_cast<double>(r.profile.n_waits)); },
       2},
      {{"ahead", 6, true},
       "steps_ahead_share",
       [](R r) { return per_token(r, static_cast<double>(r.profile.n_steps_ahead)); },
       0,
       true},
  };
  return all;
}

std::string text(const Column& column, double value) {
  return fmt::format("{:.{}f}{}", column.is_share ? 100 * value : value, column.digits, column.is_share ? " %" : "");
}

std::string explanation(const HostRow& row) {
  const bool cpu = row.profile.host_computes;
  return fmt::format(
      "{}\nbusy: share of the time in which the device is in a step; gap: from the end of a step to the begin of the "
      "next, by the {} clock; host CPU: time on a core of the thread that calls, {}; launches: of {}; waits: of the "
      "host for all work of the device; ahead: steps started before the host had seen the token before\n",
      row.profile.device, cpu ? "host's" : "device's",
      cpu ? "which computes with the others, so that only what is beside the steps is overhead"
          : "in steps for launching and beside them for all else, waiting included",
      cpu ? "parallel regions" : "kernels and graphs");
}

}  // namespace

std::string host_text(const std::string& form, const std::vector<HostRow>& rows) {
  RecordText records(form);
  if (!records.is_table()) {
    std::string out;
    for (const HostRow& row : rows) {
      nlohmann::ordered_json j = machine_record(row.about);
      j.update({{"test_time", row.about.test_time},
                {"n_gen", row.about.c.n_gen},
                {"n_depth", row.about.c.depth},
                {"host_computes", row.profile.host_computes}});
      for (const Column& column : columns()) j[column.key] = column.value(row);
      out += records.add(j);
    }
    return out + records.end();
  }
  if (rows.empty()) return {};
  std::vector<TableColumn> heads = {{"model", 20, false}, {"test", 6, true}};
  for (const Column& column : columns()) heads.push_back(column.head);
  std::vector<std::vector<std::string>> cells;
  for (const HostRow& row : rows) {
    cells.push_back({row.about.model_type, row.about.test_name()});
    for (const Column& column : columns()) cells.back().push_back(text(column, column.value(row)));
  }
  return table_text(heads, cells) + "\n" + explanation(rows.front()) + last_lines(rows.front().about);
}

}  // namespace infer::tools
