// Measuring for roofline.h, and for what --plot draws of it and of depths. The ladder is in bench_ladder.cpp.
#include "tools/bench_explain.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>

#include "tools/bench_run.h"
#include "tools/charts.h"
#include "tools/roofline.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

[[noreturn]] void refuse(const char* flag, const std::string& why, const std::string& found = {}) {
  throw Error(ErrorKind::usage, flag, why, found);
}

/// Of the flags for many sequences only -npl: lengths are -p and -n, as without it.
void check_flags_of_many(const ManyFlags& f) {
  const auto refuse_if = [](bool given, const char* flag, const char* why) {
    if (given) refuse(flag, why);
  };
  const char* const lengths = "means nothing with --roofline, whose lengths are -p and -n";
  const char* const load = "means nothing with --roofline";
  refuse_if(!f.n_prompt.empty(), "-npp", lengths);
  refuse_if(!f.n_gen.empty(), "-ntg", lengths);
  refuse_if(f.shared_prompt, "-pps", load);
  refuse_if(!f.arrivals.empty(), "--arrival", load);
  refuse_if(!f.targets.empty(), "--sla", load);
  refuse_if(!f.prompts_file.empty(), "--prompts", load);
  refuse_if(f.n_pool > 0, "--kv-pool", load);
  for (const int64_t n : f.n_seqs)
    if (n < 1 || n > 1024) throw Error(ErrorKind::usage, "-npl", "out of range", std::to_string(n), "1 to 1024");
}

void check_flags(const BenchFlags& f) {
  const int asked = f.roofline + f.ladder + f.host_overhead;
  const char* flag = f.roofline ? "--roofline" : f.ladder ? "--ladder" : "--host-overhead";
  if (asked > 1) refuse(flag, "one table at a time: --roofline, --ladder or --host-overhead");
  RecordText form(f.form);  // refuses an unknown one
  if (f.models.empty() && f.shape.empty()) refuse("-m", "no model given; see infer bench --help");
  if (!f.models.empty() && !f.shape.empty()) refuse("--shape", "needs no model, and -m names one");
  if (f.models.size() > 1) refuse(flag, "takes one model");
  if (!f.both.empty()) refuse("-pg", "prompts and generation are apart here: -p and -n");
  if (!f.levels.empty() || !f.kv_levels.empty()) refuse(flag, "not with --levels or --kv-levels");
  if (!f.quality_file.empty() || !f.reference.empty()) refuse(flag, "measures no quality");
  if (!f.plot.empty() && f.host_overhead) refuse("--plot", "draws nothing of --host-overhead");
  if (f.roofline) check_flags_of_many(f.many);
  if (!f.plot.empty()) require_writable(f.plot);
}

ProfileOptions profile_options(const BenchCase& c, const BenchFlags& f) {
  ProfileOptions o;
  o.n_prompt = c.n_prompt, o.n_gen = c.n_gen, o.depth = c.depth;
  o.repetitions = f.repetitions;
  o.go_on = [] { return !interrupted(); };
  return o;
}

/// Calls `measure` for every case of the flags; the model is open.
template <class Fn>
void for_cases(const BenchFlags& f, const Model& model, Fn measure) {
  const std::string name = f.models.empty() ? "random " + f.shape : f.models[0];
  for (BenchCase c : expand(f, name)) {
    if (interrupted()) return;
    if (f.n_ubatch.empty()) c.n_ubatch = default_ubatch(model);
    BenchRow row = describe(c, model);
    if (f.progress) note("{}: {}\n", escaped(name), row.test_name());
    measure(row);
  }
}

Model open_and_announce(const BenchFlags& f) {
  ModelFlags flags = f.model;
  Model model = open_model(flags, f.models.empty() ? "" : f.models[0], f.shape);
  if (!model.info().device_note.empty()) note("device: {}; {}\n", model.info().device, model.info().device_note);
  return model;
}

int bench_roofline(const BenchFlags& f) {
  const Model model = open_and_announce(f);
  Limits limits;
  std::vector<RooflinePhase> phases;
  const std::vector<int64_t> counts = f.many.n_seqs.empty() ? std::vector<int64_t>{1} : f.many.n_seqs;
  for_cases(f, model, [&](BenchRow& row) {
    for (const int64_t n_seqs : counts) {
      if (interrupted()) return;
      limits.measure(on_gpu(model), static_cast<int>(row.c.n_threads), true);
      ProfileOptions options = profile_options(row.c, f);
      options.n_seqs = n_seqs;
      RooflinePhase phase{row, {}, n_seqs};
      phase.profile = profile_steps(model, engine_options(f.model.load, row.c), options);
      phases.push_back(std::move(phase));
    }
  });
  limits.measure(on_gpu(model), f.n_threads.empty() ? 0 : static_cast<int>(f.n_threads[0]), true);
  for (RooflinePhase& phase : phases) {
    limits.put_into(phase.about);
    phase.about.n_threads = phase.profile.n_threads;
  }
  write_out(roofline_text(f.form, phases), true);
  if (!f.plot.empty() && !interrupted()) write_file(f.plot, roofline_plot(phases));
  return 0;
}

int bench_host_overhead(const BenchFlags& f) {
  const Model model = open_and_announce(f);
  std::vector<HostRow> rows;
  for_cases(f, model, [&](BenchRow& row) {
    if (row.c.n_gen == 0) return;  // a prompt is one step: nothing lies between
    rows.push_back({row, profile_host(model, engine_options(f.model.load, row.c), profile_options(row.c, f))});
    rows.back().about.n_threads = rows.back().profile.n_threads;
  });
  if (rows.empty() && !interrupted()) refuse("-n", "0 tokens: there is nothing to look at");
  write_out(host_text(f.form, rows), true);
  return 0;
}

}  // namespace

bool wants_explanation(const BenchFlags& f) { return f.roofline || f.ladder || f.host_overhead; }

int bench_explanation(const BenchFlags& f) {
  check_flags(f);
  if (f.ladder) return bench_ladder(f);
  return f.roofline ? bench_roofline(f) : bench_host_overhead(f);
}

bool wants_depth_curve(const BenchFlags& f) {
  return !f.plot.empty() && f.depth.size() > 1 && f.quality_file.empty() && f.levels.empty() && f.kv_levels.empty() &&
         f.shape.empty() && f.reference.empty();
}

void write_depth_curve(const std::string& path, const std::vector<BenchRow>& rows) {
  std::map<std::string, CurveChart::Line> lines;  // by what is measured, the depth left out
  std::vector<std::string> order;
  for (const BenchRow& row : rows) {
    BenchRow shallow = row;
    shallow.c.depth = 0;
    const std::string name = shallow.test_name();
    if (lines.insert({name, {name, {}}}).second) order.push_back(name);
    lines[name].points.emplace_back(static_cast<double>(row.c.depth), mean_deviation(row.rates()).mean);
  }
  CurveChart chart;
  chart.title = rows.empty() ? "Depth" : rows.front().model_type + ": tokens/s over the depth of the context";
  chart.x_title = "tokens in the context before the test", chart.y_title = "tokens/s";
  for (const std::string& name : order) chart.lines.push_back(lines[name]);
  write_file(path, curves_svg(chart));
}

Model open_model(ModelFlags& flags, const std::string& path, const std::string& shape) {
  if (!shape.empty()) return random_model(shape, flags);
  flags.path = path;
  return flags.open();
}

void require_writable(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  if (access(access(path.c_str(), F_OK) == 0 ? path.c_str() : folder.c_str(), W_OK) != 0)
    throw Error(ErrorKind::run, escaped(path), std::strerror(errno));
}

void write_file(const std::string& path, const std::string& text) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  const bool written = file && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if ((file && std::fclose(file) != 0) || !written) throw Error(ErrorKind::run, escaped(path), std::strerror(errno));
}

}  // namespace infer::tools
