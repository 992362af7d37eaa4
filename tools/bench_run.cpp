// Forward passes against the clock, and what is known of the machine. Neither tokenisation nor sampling is in the
// times; the weights do not care which tokens they meet.
#include "tools/bench_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <fstream>

#include "tools/terminal.h"

namespace infer::tools {
namespace {

Result check(Result r) {
  if (r.reason == FinishReason::error) throw Error(ErrorKind::run, r.error);
  return r;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos)
      return line.substr(line.find(": ") + 2);
  return "unknown CPU";
}

// Like 2026-11-22T10:20:30Z. (fmt/chrono.h would do, but g++ 12 warns of ghosts inside it.)
std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &parts))};
}

}  // namespace

EngineOptions engine_options(const LoadOptions& load, const BenchCase& c) {
  EngineOptions o;
  o.n_ctx = c.depth + c.n_prompt + c.n_gen + 2;
  o.n_batch = c.n_batch, o.n_ubatch = std::min(c.n_batch, c.n_ubatch);
  o.n_threads = static_cast<int>(c.n_threads);
  o.k_type = c.k_type, o.v_type = c.v_type;
  o.isa = load.isa;
  o.mode = load.mode;
  o.act = load.act;
  o.fusion = load.fusion, o.unfused = load.unfused;
  o.deterministic = load.deterministic;
  return o;
}

BenchRunner::BenchRunner(const Model& model, const LoadOptions& load, const BenchCase& c)
    : model_(model), c_(c), random_(1234), engine_(model, engine_options(load, c)) {
  depth_ = ids(c.depth);
  warn_slow_cache(engine_.stats().cache_note);
  // What the device lacks shows when it has been prepared, and is told once.
  static bool told = false;
  const std::string device = engine_.stats().backend;
  if (on_gpu(model_) && device != model_.info().device && !std::exchange(told, true)) note("device: {}\n", device);
}

void BenchRunner::warm_up() {
  measure(on_gpu(model_) ? c_.n_prompt : std::min<int64_t>(c_.n_prompt, 32), std::min<int64_t>(c_.n_gen, 2));
}

std::vector<TokenId> BenchRunner::ids(int64_t n) {
  std::uniform_int_distribution<TokenId> draw(0, static_cast<TokenId>(model_.vocab() - 1));
  std::vector<TokenId> out(static_cast<size_t>(n));
  for (TokenId& id : out) id = draw(random_);
  return out;
}

double BenchRunner::measure(int64_t n_prompt, int64_t n_gen) {
  Request r;
  r.sampling.temperature = 0;
  r.sampling.ignore_eos = true;
  r.max_tokens = 1;
  if (c_.depth) {
    r.ids = depth_;
    check(generate(engine_, r, [](const Token&) { return true; }));
  }
  // A generation needs one token to start from; it is computed before the clock starts.
  const std::vector<TokenId> fresh = ids(std::max<int64_t>(n_prompt, 1));
  r.ids = depth_;
  r.ids.insert(r.ids.end(), fresh.begin(), fresh.end());
  r.max_tokens = n_gen + 1;
  const Timings t = check(generate(engine_, r, [](const Token&) { return true; })).timings;
  double seconds = 0;
  if (n_prompt)
    seconds += t.prompt_seconds * static_cast<double>(n_prompt) / static_cast<double>(t.n_prompt - t.n_reused);
  if (n_gen) seconds += t.decode_seconds;
  return seconds;
}

int64_t matrix_params(const ModelInfo& info) {
  int64_t n = 0;
  for (const TensorInfo& t : info.tensors) {
    if (t.dims.size() < 2 || t.name == "token_embd.weight" || t.name == "output.weight") continue;
    int64_t elements = 1;
    for (int64_t d : t.dims) elements *= d;
    // Of a stack of experts, those that a token meets.
    n += t.dims.size() == 3 && info.n_experts > 0 ? elements / info.n_experts * info.n_active : elements;
  }
  return n;
}

BenchRow describe(const BenchCase& c, const Model& model) {
  const ModelInfo& info = model.info();
  BenchRow row;
  row.c = c;
  const double n = static_cast<double>(info.n_params);
  row.model_type =
      fmt::format("{} {} {}", escaped(info.arch),
                  n < 1e9 ? fmt::format("{:.0f}M", n / 1e6) : fmt::format("{:.2f}B", n / 1e9), info.file_type);
  const size_t open = info.device.find('('), comma = info.device.find(',');
  const std::string kind = info.device.substr(0, info.device.find_first_of(" :"));
  row.backend = kind == "cpu" ? "CPU" : kind == "cuda" ? "CUDA" : info.device;
  if (on_gpu(model) && comma != std::string::npos) row.gpu_info = info.device.substr(open + 1, comma - open - 1);
  row.cpu_info = cpu_name();
  row.test_time = utc_now();
  row.model_size = info.tensor_bytes, row.stream_bytes = info.stream_bytes, row.n_params = info.n_params;
  row.matrix_params = matrix_params(info);
  return row;
}

bool measure_row(BenchRow& row, const Model& model, const LoadOptions& load, bool warmup, int64_t repetitions,
                 EnergyMeter* energy) {
  BenchRunner runner(model, load, row.c);
  const EngineStats stats = runner.engine().stats();
  row.n_threads = stats.n_threads;
  row.kv_bytes_per_token = stats.kv_bytes_per_token;
  if (warmup) runner.warm_up();
  PowerAverage power(energy);
  for (int64_t r = 0; r < repetitions && !interrupted(); ++r) row.seconds.push_back(runner.measure());
  if (energy)
    row.joules_per_token = power.watts().value_or(0) * mean_deviation(row.seconds).mean / std::max(1.0, row.tokens());
  return !interrupted();
}

void Limits::measure(bool gpu, int n_threads, bool again) {
  if (gpu && gpu_gbps == 0) gpu_gbps = measure_gpu_read_bandwidth(), gpu_tflops = measure_gpu_tensor_peak();
  if (gpu || (cpu_gbps > 0 && !again)) return;
  cpu_gbps = std::max(cpu_gbps, measure_read_bandwidth(n_threads));
  cpu_gops = std::max(cpu_gops, measure_int8_peak(n_threads));
}

void Limits::put_into(BenchRow& row) const {
  row.bandwidth_gbps = row.on_gpu() ? gpu_gbps : cpu_gbps;
  row.int8_peak_gops = row.on_gpu() ? 0 : cpu_gops;
  row.tensor_peak_tflops = row.on_gpu() ? gpu_tflops : 0;
}

}  // namespace infer::tools
