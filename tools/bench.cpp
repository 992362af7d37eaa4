// `infer bench`: speed of prompts and of generation with llama-bench's flags. Tables of levels are in bench_levels.cpp.
#include "tools/bench.h"

#include <fmt/format.h>

#include <chrono>
#include <thread>

#include "tools/bench_explain.h"
#include "tools/bench_flags.h"
#include "tools/bench_levels.h"
#include "tools/bench_run.h"
#include "tools/terminal.h"

namespace infer::tools {

int bench_tokenizer(ModelFlags& flags, const std::string& file, int64_t repetitions) {
  if (file.empty()) throw Error(ErrorKind::usage, "-f", "--tokenizer needs a text file");
  const Model model = flags.open(true);
  const std::string text = read_text_file(file);
  if (text.empty()) throw Error(ErrorKind::usage, escaped(file), "the file is empty");
  std::vector<double> rates;
  size_t n = 0;
  for (int64_t r = 0; r < repetitions + 1 && !interrupted(); ++r) {
    const auto start = std::chrono::steady_clock::now();
    n = model.tokenize(text, false, false).size();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (r > 0) rates.push_back(static_cast<double>(text.size()) / 1e6 / seconds);  // the first is the warm-up
  }
  const MeanDeviation m = mean_deviation(rates);
  fmt::print("{} bytes, {} tokens, {:.2f} bytes/token, one thread: {:.2f} ± {:.2f} MB/s\n", text.size(), n,
             static_cast<double>(text.size()) / static_cast<double>(n), m.mean, m.deviation);
  return 0;
}

int bench_command(const Args& args) {
  BenchFlags f;
  Arguments a("infer bench -m MODEL [-p 512] [-n 128] [-r 5]",
              "Tokens per second, as llama-bench prints them. Tokenisation and sampling are not in the times.\n");
  a.positional("MODEL", [&f](const std::string& t) { f.models.push_back(t); });
  declare(a, f);
  if (!parse_or_help(a, args)) return 0;
  if (wants_explanation(f)) return bench_explanation(f);
  const bool depth_curve = wants_depth_curve(f);
  if (!depth_curve && wants_levels(f)) return bench_levels(f);
  if (f.models.empty()) throw Error(ErrorKind::usage, "-m", "no model given; see infer bench --help");
  if (f.tokenizer) {
    f.model.path = f.models[0];
    return bench_tokenizer(f.model, f.tokenizer_file, f.repetitions);
  }
  std::vector<BenchCase> cases;
  for (const std::string& path : f.models)
    for (const BenchCase& c : expand(f, path)) cases.push_back(c);
  BenchOutput output(f.form, cases, f.bandwidth);
  Limits limits;
  std::vector<BenchRow> measured;
  if (depth_curve) require_writable(f.plot);
  for (const std::string& path : f.models) {
    f.model.path = path;
    const Model model = f.model.open();
    if (!model.info().device_note.empty()) note("device: {}; {}\n", model.info().device, model.info().device_note);
    if (f.bandwidth) limits.measure(on_gpu(model), f.n_threads.empty() ? 0 : static_cast<int>(f.n_threads[0]));
    for (BenchCase c : expand(f, path)) {
      if (interrupted()) break;
      if (f.n_ubatch.empty()) c.n_ubatch = default_ubatch(model);
      BenchRow row = describe(c, model);
      if (f.progress) note("{}: {}\n", path, row.test_name());
      limits.put_into(row);
      if (!measure_row(row, model, f.model.load, f.warmup, f.repetitions)) break;
      fmt::print("{}", output.row(row));
      if (depth_curve) measured.push_back(row);
      std::fflush(stdout);
      if (f.delay) std::this_thread::sleep_for(std::chrono::seconds(f.delay));
    }
  }
  fmt::print("{}", output.end());
  if (depth_curve && !interrupted()) write_depth_curve(f.plot, measured);
  return 0;
}

}  // namespace infer::tools
