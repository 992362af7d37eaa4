// `infer bench`: speed of prompts and of generation with llama-bench's flags. Times are those of the forward passes:
// neither tokenisation nor sampling is in them. Random token ids; the weights do not care.
#include "tools/bench.h"

#include <fmt/format.h>

#include <chrono>
#include <ctime>
#include <fstream>
#include <memory>
#include <random>
#include <thread>

#include "tools/terminal.h"

namespace infer::tools {
namespace {

struct BenchFlags {
  ModelFlags model;
  std::vector<std::string> models;
  std::vector<int64_t> n_prompt, n_gen, depth, n_batch, n_ubatch, n_threads;
  std::vector<std::pair<int64_t, int64_t>> both;  ///< -pg
  std::vector<std::string> k_types, v_types;
  int64_t repetitions = 5, delay = 0;
  std::string form = "md", tokenizer_file;
  bool warmup = true, bandwidth = false, tokenizer = false, progress = false;
};

template <class T>
void append(std::vector<T>& to, const std::vector<T>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (char c : text) {
    if (c == ',')
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

void declare(Arguments& a, BenchFlags& f) {
  auto list = [&](std::vector<std::string> names, std::string help, std::vector<int64_t>* target) {
    const std::string name = names.back();
    a.add(std::move(names), "N,..", std::move(help),
          [=](const std::string& t) { append(*target, parse_ranges(name, t)); });
  };
  auto words = [&](std::vector<std::string> names, std::string help, std::vector<std::string>* target) {
    a.add(std::move(names), "X,..", std::move(help), [=](const std::string& t) { append(*target, split(t)); });
  };
  words({"-m", "--model"}, "models; lists by comma or repetition", &f.models);
  list({"-p", "--n-prompt"}, "prompt lengths (default 512); ranges 1-8, 128-512+128, 1-64*2", &f.n_prompt);
  list({"-n", "--n-gen"}, "generated tokens (default 128)", &f.n_gen);
  a.add({"-pg"}, "PP,TG", "a prompt and generation in one test", [&f](const std::string& t) {
    const std::vector<std::string> p = split(t);
    if (p.size() != 2) throw Error(ErrorKind::usage, "-pg", "bad value", "'" + escaped(t) + "'", "PP,TG");
    f.both.emplace_back(parse_integer("-pg", p[0], 1, 1 << 24), parse_integer("-pg", p[1], 1, 1 << 24));
  });
  list({"-d", "--n-depth"}, "tokens already in the context (default 0)", &f.depth);
  list({"-b", "--batch-size"}, "tokens scheduled at a time (default 2048)", &f.n_batch);
  list({"-ub", "--ubatch-size"}, "tokens computed at a time (default 512, on a GPU 2048)", &f.n_ubatch);
  words({"-ctk", "--cache-type-k"}, "KV cache of keys (default f16)", &f.k_types);
  words({"-ctv", "--cache-type-v"}, "KV cache of values (default f16)", &f.v_types);
  list({"-t", "--threads"}, "threads (default: one per physical core)", &f.n_threads);
  a.integer({"-r", "--repetitions"}, "N", "repetitions (default 5)", &f.repetitions, 1, 1000);
  a.text({"-o", "--output"}, "FORM", "md, csv, json, jsonl (default md)", &f.form);
  a.flag({"--bw"}, "also GB/s and operations/s, and their share of the limits measured in this run", &f.bandwidth);
  a.flag({"--no-warmup"}, "do not run once before measuring", &f.warmup, false);
  a.integer({"--delay"}, "S", "seconds to wait between tests", &f.delay, 0, 3600);
  a.flag({"--progress"}, "say on stderr what is being measured", &f.progress);
  a.flag({"--tokenizer"}, "measure encoding speed instead; needs -f", &f.tokenizer);
  a.text({"-f", "--file"}, "FILE", "text for --tokenizer", &f.tokenizer_file);
  add_device_flags(a, f.model.load);
  add_quant_flags(a, f.model.load);
  a.text({"--isa"}, "NAME", "force a CPU level: scalar, avx2, avx512", &f.model.load.isa);
  a.flag({"--no-mmap"}, "read the file into memory instead of mapping it", &f.model.load.mmap, false);
  a.ignored({"-v", "--verbose"}, false);
}

std::vector<BenchCase> expand(const BenchFlags& f, const std::string& model) {
  auto or_default = [](const std::vector<int64_t>& v, int64_t d) { return v.empty() ? std::vector<int64_t>{d} : v; };
  auto types = [](const std::vector<std::string>& v) { return v.empty() ? std::vector<std::string>{"f16"} : v; };
  std::vector<std::pair<int64_t, int64_t>> tests;
  for (int64_t p : or_default(f.n_prompt, 512))
    if (p) tests.emplace_back(p, 0);
  for (int64_t n : or_default(f.n_gen, 128))
    if (n) tests.emplace_back(0, n);
  append(tests, f.both);
  std::vector<BenchCase> all;
  for (int64_t t : or_default(f.n_threads, 0))
    for (int64_t b : or_default(f.n_batch, 2048))
      for (int64_t ub : or_default(f.n_ubatch, 512))
        for (const std::string& k : types(f.k_types))
          for (const std::string& v : types(f.v_types))
            for (int64_t d : or_default(f.depth, 0))
              for (const auto& [p, n] : tests) all.push_back({model, p, n, d, b, ub, t, k, v});
  const LoadOptions& load = f.model.load;
  for (BenchCase& c : all) {
    if (!load.mode.empty()) c.mode = load.mode;
    if (!load.act.empty()) c.act = load.act;
    c.fusion = load.fusion;
  }
  return all;
}

class Runner {
 public:
  Runner(const Model& model, const BenchFlags& flags, const BenchCase& c)
      : model_(model), c_(c), random_(1234), engine_(model, options(flags, c)) {
    depth_ = ids(c.depth);
    // What the device lacks shows when it has been prepared, and is told once.
    static bool told = false;
    const std::string device = engine_.stats().backend;
    if (on_gpu(model_) && device != model_.info().device && !std::exchange(told, true)) note("device: {}\n", device);
  }

  /// On a GPU at full size: what is done at the first sight of a shape is not what is measured.
  void warm_up() {
    measure(on_gpu(model_) ? c_.n_prompt : std::min<int64_t>(c_.n_prompt, 32), std::min<int64_t>(c_.n_gen, 2));
  }
  double measure() { return measure(c_.n_prompt, c_.n_gen); }
  const Engine& engine() const { return engine_; }

 private:
  static EngineOptions options(const BenchFlags& f, const BenchCase& c) {
    EngineOptions o;
    o.n_ctx = c.depth + c.n_prompt + c.n_gen + 2;
    o.n_batch = c.n_batch, o.n_ubatch = std::min(c.n_batch, c.n_ubatch);
    o.n_threads = static_cast<int>(c.n_threads);
    o.k_type = c.k_type, o.v_type = c.v_type;
    o.isa = f.model.load.isa;
    o.mode = f.model.load.mode;
    o.act = f.model.load.act;
    o.fusion = f.model.load.fusion;
    return o;
  }

  std::vector<TokenId> ids(int64_t n) {
    std::uniform_int_distribution<TokenId> draw(0, static_cast<TokenId>(model_.vocab() - 1));
    std::vector<TokenId> out(static_cast<size_t>(n));
    for (TokenId& id : out) id = draw(random_);
    return out;
  }

  // Seconds of n_prompt tokens at once and n_gen one by one, after `depth` tokens that the prefix index provides.
  double measure(int64_t n_prompt, int64_t n_gen) {
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

  static Result check(Result r) {
    if (r.reason == FinishReason::error) throw Error(ErrorKind::run, r.error);
    return r;
  }

  const Model& model_;
  BenchCase c_;
  std::mt19937 random_;
  Engine engine_;
  std::vector<TokenId> depth_;
};

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
  // Weights in matrices that every prompt token meets: neither the embedding rows nor the head, which only one row
  // sees.
  for (const TensorInfo& t : info.tensors) {
    if (t.dims.size() < 2 || t.name == "token_embd.weight" || t.name == "output.weight") continue;
    int64_t elements = 1;
    for (int64_t d : t.dims) elements *= d;
    row.matrix_params += elements;
  }
  return row;
}

/// What this machine can do, measured when the first model asks: the CPU's limits or the GPU's.
struct Limits {
  double cpu_gbps = 0, cpu_gops = 0, gpu_gbps = 0, gpu_tflops = 0;
  void measure(bool gpu, int n_threads) {
    if (gpu && gpu_gbps == 0) gpu_gbps = measure_gpu_read_bandwidth(), gpu_tflops = measure_gpu_tensor_peak();
    if (!gpu && cpu_gbps == 0) cpu_gbps = measure_read_bandwidth(n_threads), cpu_gops = measure_int8_peak(n_threads);
  }
  void put_into(BenchRow& row) const {
    row.bandwidth_gbps = row.on_gpu() ? gpu_gbps : cpu_gbps;
    row.int8_peak_gops = row.on_gpu() ? 0 : cpu_gops;
    row.tensor_peak_tflops = row.on_gpu() ? gpu_tflops : 0;
  }
};

}  // namespace

std::vector<int64_t> parse_ranges(const std::string& flag, const std::string& text) {
  std::vector<int64_t> out;
  for (const std::string& part : split(text)) {
    const size_t dash = part.find('-', 1);
    if (dash == std::string::npos) {
      out.push_back(parse_integer(flag, part, 0, 1 << 24));
      continue;
    }
    const size_t op = part.find_first_of("+*", dash);
    const int64_t first = parse_integer(flag, part.substr(0, dash), 0, 1 << 24);
    const int64_t last =
        parse_integer(flag, part.substr(dash + 1, op == std::string::npos ? op : op - dash - 1), first, 1 << 24);
    const bool multiply = op != std::string::npos && part[op] == '*';
    const int64_t step =
        op == std::string::npos ? 1 : parse_integer(flag, part.substr(op + 1), multiply ? 2 : 1, 1 << 24);
    if (multiply && first == 0) throw Error(ErrorKind::usage, flag, "a range that multiplies cannot start at 0");
    if (!multiply && (last - first) / step > 10000) throw Error(ErrorKind::usage, flag, "more than 10000 values");
    for (int64_t v = first; v <= last; v = multiply ? v * step : v + step) out.push_back(v);
  }
  return out;
}

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
  if (f.models.empty()) throw Error(ErrorKind::usage, "-m", "no model given; see infer bench --help");
  if (f.tokenizer) {
    f.model.path = f.models[0];
    return bench_tokenizer(f.model, f.tokenizer_file, f.repetitions);
  }
  std::vector<BenchCase> cases;
  for (const std::string& path : f.models) append(cases, expand(f, path));
  BenchOutput output(f.form, cases, f.bandwidth);
  Limits limits;
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
      Runner runner(model, f, c);
      row.n_threads = runner.engine().stats().n_threads;
      limits.put_into(row);
      if (f.warmup) runner.warm_up();
      for (int64_t r = 0; r < f.repetitions && !interrupted(); ++r) row.seconds.push_back(runner.measure());
      if (interrupted()) break;
      fmt::print("{}", output.row(row));
      std::fflush(stdout);
      if (f.delay) std::this_thread::sleep_for(std::chrono::seconds(f.delay));
    }
  }
  fmt::print("{}", output.end());
  return 0;
}

}  // namespace infer::tools
