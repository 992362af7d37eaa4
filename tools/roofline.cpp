// The rows of roofline.h, the verdict, and both as Markdown and as records.
#include "tools/roofline.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/bench_records.h"
#include "tools/charts.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

struct Column {
  TableColumn head;
  std::string (*text)(const RooflineRow&, const RooflinePhase&);
};

std::string percent(double part, double whole) { return whole > 0 ? fmt::format("{:.0f} %", 100 * part / whole) : ""; }

/// Four digits that count at most, in a unit of 1e6.
std::string mega(double value) {
  return value < 1e7 ? fmt::format("{:.2f}", value / 1e6) : fmt::format("{:.1f}", value / 1e6);
}

bool has_work(const RooflineRow& r) { return r.kind == RooflineRow::Kind::stage || r.kind == RooflineRow::Kind::step; }

const Column kColumns[] = {
    {{"stage", 14, false}, [](const RooflineRow& r, const RooflinePhase&) { return r.name; }},
    {{"us/token", 8, true}, [](const RooflineRow& r, const RooflinePhase&) { return fmt::format("{:.2f}", r.us); }},
    {{"time", 5, true},
     [](const RooflineRow& r, const RooflinePhase&) { return fmt::format("{:.1f} %", 100 * r.share); }},
    {{"launches", 8, true},
     [](const RooflineRow& r, const RooflinePhase&) {
       return has_work(r) ? fmt::format("{:.{}f}", r.launches, r.launches < 10 ? 2 : 0) : std::string();
     }},
    {{"weights MB", 10, true},
     [](const RooflineRow& r, const RooflinePhase&) { return has_work(r) ? mega(r.weight_bytes) : std::string(); }},
    {{"other MB", 8, true},
     [](const RooflineRow& r, const RooflinePhase&) { return has_work(r) ? mega(r.other_bytes) : std::string(); }},
    {{"MFLOP", 7, true},
     [](const RooflineRow& r, const RooflinePhase&) { return has_work(r) ? mega(r.flops) : std::string(); }},
    {{"GB/s", 6, true},
     [](const RooflineRow& r, const RooflinePhase&) {
       return has_work(r) ? fmt::format("{:.1f}", r.gbps()) : std::string();
     }},
    {{"of read", 7, true},
     [](const RooflineRow& r, const RooflinePhase& p) {
       return has_work(r) ? percent(r.gbps(), p.about.bandwidth_gbps) : std::string();
     }},
    {{"GFLOP/s", 8, true},
     [](const RooflineRow& r, const RooflinePhase&) {
       return has_work(r) ? fmt::format("{:.1f}", r.gops()) : std::string();
     }},
    {{"of peak", 7, true},
     [](const RooflineRow& r, const RooflinePhase& p) {
       return has_work(r) ? percent(r.gops(), p.peak_gops()) : std::string();
     }},
    {{"MB/call", 7, true},
     [](const RooflineRow& r, const RooflinePhase&) { return has_work(r) ? mega(r.call_bytes) : std::string(); }},
    {{"set", 4, false},
     [](const RooflineRow& r, const RooflinePhase& p) {
       return has_work(r) && r.fits_cache ? fmt::format("fits in {}", p.cache_name()) : std::string();
     }},
};

/// One of kernel_cells().
template <size_t kCell>
std::string kernel_cell(const RooflineRow& r, const RooflinePhase&) {
  return kernel_cells(r.kernels)[kCell];
}

/// Only where there are kernels.
const Column kKernelColumns[] = {{{"regs", 4, true}, kernel_cell<0>},
                                 {{"smem KB", 7, true}, kernel_cell<1>},
                                 {{"occupancy", 9, true}, kernel_cell<2>}};

std::vector<Column> columns_of(const std::vector<RooflineRow>& rows) {
  std::vector<Column> out(std::begin(kColumns), std::end(kColumns));
  const bool kernels = std::any_of(rows.begin(), rows.end(), [](const RooflineRow& r) { return !r.kernels.empty(); });
  if (kernels) out.insert(out.end(), std::begin(kKernelColumns), std::end(kKernelColumns));
  return out;
}

std::string phase_name(const RooflinePhase& phase) { return phase.about.c.n_gen > 0 ? "generation" : "prompt"; }

double per_token(const RooflinePhase& phase, double seconds) {
  return 1e6 * seconds / static_cast<double>(std::max<int64_t>(1, phase.profile.n_tokens));
}

std::string how_timed(const StepProfile& p) {
  if (p.n_prefixes == 0) return "a row's time: its ops', each timed by itself\n";
  if (p.n_prefixes > p.n_prefix_ops)
    return fmt::format("a row's time: how much longer a step takes with its ops, by all {} prefixes of a step\n",
                       p.n_prefixes);
  return fmt::format(
      "a row's time: how much longer a step takes with its ops, by {} prefixes of steps of {} ops; times of single ops "
      "divide what lies between two of them\n",
      p.n_prefixes, p.n_prefix_ops);
}

std::string below(const RooflinePhase& p, const RooflineRow& step) {
  const RooflineVerdict v = verdict(p);
  const double whole = per_token(p, p.profile.whole_seconds), wall = per_token(p, p.profile.wall_seconds);
  std::string out = fmt::format(
      "bound by: {}{}; of a step as usual the bytes at the measured read speed explain {:.0f} %, operations at the {} "
      "peak {:.0f} %, {:.3g} launches a token {:.0f} %, waiting for the host {:.0f} %\n",
      v.bound(), v.most() < 0.5 ? ", which explains less than half" : "", 100 * v.memory, p.peak_name(),
      100 * v.compute, static_cast<double>(p.profile.n_whole_launches) / static_cast<double>(p.profile.n_tokens),
      100 * v.launch, 100 * v.host);
  if (v.most() > 1.05) out += "above 100 %: it came from a cache, or others were busy while the limits were measured\n";
  out += fmt::format(
      "the rows add up to {:.2f} us/token, {:+.1f} % of a step as usual: {:.2f} us on the device, {:.2f} us on the "
      "wall, {:.2f} us ({:.1f} %) of it between steps\n",
      per_token(p, p.profile.step_seconds), 100 * sum_error(p.profile), whole, wall, wall - whole,
      100 * (wall - whole) / wall);
  out += how_timed(p.profile);
  if (p.n_seqs > 1 && p.about.c.n_gen > 0)
    out += fmt::format(
        "a step makes {} tokens, one of each sequence, in {:.2f} us on the wall; times of the rows are a "
        "token's share\n",
        p.n_seqs, wall * static_cast<double>(p.n_seqs));
  if (p.profile.cache_bytes > 0)
    out += fmt::format("a step touches {:.1f} MB; the {} holds {:.1f} MB: {}\n", step.call_bytes / 1e6, p.cache_name(),
                       static_cast<double>(p.profile.cache_bytes) / 1e6,
                       step.fits_cache ? "all of it fits, and weights need not come from memory" : "it does not fit");
  return out;
}

std::string phase_table(const RooflinePhase& phase) {
  const std::vector<RooflineRow> rows = roofline_rows(phase);
  std::vector<TableColumn> heads;
  const std::vector<Column> columns = columns_of(rows);
  for (const Column& column : columns) heads.push_back(column.head);
  std::vector<std::vector<std::string>> cells;
  for (const RooflineRow& row : rows) {
    cells.emplace_back();
    for (const Column& column : columns) cells.back().push_back(column.text(row, phase));
  }
  const std::string many = phase.n_seqs > 1 ? fmt::format(", {} sequences at once", phase.n_seqs) : "";
  return fmt::format("{}, {}{}, {}\n\n", phase_name(phase), phase.about.test_name(), many, phase.about.model_type) +
         table_text(heads, cells) + "\n" + below(phase, rows.back()) + "\n" + kernels_text(rows);
}

const char* kind_name(RooflineRow::Kind kind) {
  const char* const names[] = {"stage", "between", "sum", "step"};
  return names[static_cast<size_t>(kind)];
}

ordered_json record(const RooflinePhase& phase, const RooflineRow& row) {
  ordered_json j = machine_record(phase.about);
  j.update(limits_record(phase.about));
  j.update({{"test_time", phase.about.test_time},
            {"phase", phase_name(phase)},
            {"test", phase.about.test_name()},
            {"n_depth", phase.about.c.depth},
            {"n_seqs", phase.n_seqs},
            {"row", kind_name(row.kind)},
            {"stage", row.name},
            {"us_per_token", row.us},
            {"share_of_time", row.share},
            {"calls_per_token", row.calls},
            {"launches_per_token", row.launches},
            {"weight_bytes_per_token", row.weight_bytes},
            {"other_bytes_per_token", row.other_bytes},
            {"flops_per_token", row.flops},
            {"gbps", row.gbps()},
            {"gflops", row.gops()},
            {"share_of_bandwidth", row.gbps() / phase.about.bandwidth_gbps},
            {"share_of_peak", row.gops() / phase.peak_gops()},
            {"call_bytes", row.call_bytes},
            {"cache_bytes", phase.profile.cache_bytes},
            {"fits_cache", row.fits_cache}});
  if (phase.about.on_gpu()) add_kernels(row.kernels, j);
  const RooflineVerdict v = verdict(phase);
  ordered_json of_step = {{"bound", v.bound()},
                          {"explained_by_memory", v.memory},
                          {"explained_by_compute", v.compute},
                          {"explained_by_launches", v.launch},
                          {"explained_by_host", v.host},
                          {"sum_us_per_token", per_token(phase, phase.profile.step_seconds)},
                          {"sum_error", sum_error(phase.profile)},
                          {"prefixes", phase.profile.n_prefixes},
                          {"prefix_ops", phase.profile.n_prefix_ops},
                          {"device_us_per_token", per_token(phase, phase.profile.whole_seconds)},
                          {"wall_us_per_token", per_token(phase, phase.profile.wall_seconds)}};
  // All records have the same keys, as a table of csv wants it.
  if (row.kind != RooflineRow::Kind::step)
    for (auto& item : of_step) item = nullptr;
  j.update(of_step);
  return j;
}

}  // namespace

std::vector<RooflineRow> roofline_rows(const RooflinePhase& phase) {
  const StepProfile& p = phase.profile;
  const double tokens = static_cast<double>(std::max<int64_t>(1, p.n_tokens));
  std::vector<RooflineRow> rows;
  RooflineRow between, sum, step;
  step.kind = RooflineRow::Kind::step, step.name = "step";
  step.kernels = p.step_kernels;
  step.us = per_token(phase, p.whole_seconds), step.share = 1;
  step.launches = static_cast<double>(p.n_whole_launches) / tokens;
  double stage_seconds = 0;
  for (const StageProfile& s : p.stages) {
    RooflineRow row;
    row.name = s.stage;
    row.us = per_token(phase, s.seconds), row.share = s.seconds / p.whole_seconds;
    row.calls = static_cast<double>(s.n_calls) / tokens, row.launches = static_cast<double>(s.n_launches) / tokens;
    row.weight_bytes = s.weight_bytes / tokens, row.other_bytes = s.activation_bytes / tokens;
    row.flops = s.flops / tokens, row.call_bytes = s.call_bytes;
    row.kernels = s.kernels;
    row.fits_cache = s.call_bytes <= static_cast<double>(p.cache_bytes);
    stage_seconds += s.seconds;
    step.calls += row.calls, step.flops += row.flops;
    step.weight_bytes += row.weight_bytes, step.other_bytes += row.other_bytes;
    rows.push_back(row);
  }
  between.kind = RooflineRow::Kind::between, between.name = "between stages";
  between.us = per_token(phase, p.step_seconds - stage_seconds);
  between.share = (p.step_seconds - stage_seconds) / p.whole_seconds;
  sum.kind = RooflineRow::Kind::sum, sum.name = "sum";
  sum.us = per_token(phase, p.step_seconds), sum.share = p.step_seconds / p.whole_seconds;
  step.call_bytes = step.bytes() * tokens / static_cast<double>(std::max<int64_t>(1, p.n_steps));
  step.fits_cache = step.call_bytes <= static_cast<double>(p.cache_bytes);
  rows.insert(rows.end(), {between, sum, step});
  return rows;
}

double sum_error(const StepProfile& p) { return p.step_seconds / p.whole_seconds - 1; }

const char* RooflineVerdict::bound() const {
  const double most = this->most();
  return memory == most ? "memory" : compute == most ? "compute" : launch == most ? "launch" : "host";
}

double RooflineVerdict::most() const { return std::max({memory, compute, launch, host}); }

RooflineVerdict verdict(const RooflinePhase& phase) {
  const StepProfile& p = phase.profile;
  double bytes = 0, flops = 0;
  for (const StageProfile& s : p.stages) bytes += s.weight_bytes + s.activation_bytes, flops += s.flops;
  const double wall = p.wall_seconds;
  RooflineVerdict v;
  v.memory = bytes / (phase.about.bandwidth_gbps * 1e9) / wall;
  v.compute = flops / (phase.peak_gops() * 1e9) / wall;
  v.launch = static_cast<double>(p.n_whole_launches) * p.launch_seconds / wall;
  v.host = std::max(0.0, wall - p.whole_seconds) / wall;
  return v;
}

std::string roofline_text(const std::string& form, const std::vector<RooflinePhase>& phases) {
  RecordText records(form);
  std::string out;
  for (const RooflinePhase& phase : phases) {
    if (records.is_table()) {
      out += phase_table(phase);
      continue;
    }
    for (const RooflineRow& row : roofline_rows(phase)) out += records.add(record(phase, row));
  }
  if (!records.is_table()) return out + records.end();
  if (phases.empty()) return {};
  const RooflinePhase& any = phases.front();
  return out +
         fmt::format(
             "{}; an op with nothing to do takes {:.1f} us. Bytes of activations are those of a stage's "
             "definition: a fused one keeps some of them to itself.\n",
             any.profile.device, 1e6 * any.profile.launch_seconds) +
         last_lines(any.about);
}

std::string roofline_plot(const std::vector<RooflinePhase>& phases) {
  RooflineChart chart;
  if (phases.empty()) return roofline_svg(chart);
  const RooflinePhase& any = phases.front();
  chart.title = "Roofline: " + any.about.model_type;
  chart.bandwidth_gbps = any.about.bandwidth_gbps, chart.peak_gops = any.peak_gops();
  chart.peak_name = any.peak_name();
  for (const RooflinePhase& phase : phases)
    for (const RooflineRow& row : roofline_rows(phase)) {
      // What takes no time to speak of would only cover the rest.
      if (row.kind != RooflineRow::Kind::stage || row.share < 0.01 || row.bytes() == 0 || row.flops == 0) continue;
      chart.points.push_back({row.name, row.flops / row.bytes(), row.gops(), row.share, phase.about.c.n_gen > 0});
    }
  return roofline_svg(chart);
}

}  // namespace infer::tools
