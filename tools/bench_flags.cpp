// Lists, ranges and combinations, as llama-bench takes them.
#include "tools/bench_flags.h"

namespace infer::tools {
namespace {

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

}  // namespace

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
  a.group("Levels: one row for each, to choose by");
  words({"--levels"}, "weights quantised from -m: f16,q8_0,q4_k_m ... or all", &f.levels);
  words({"--kv-levels"}, "types of the KV cache, K or K/V", &f.kv_levels);
  a.text({"--quality"}, "FILE", "also perplexity of this text, and KL divergence from the source (from an f16 cache)",
         &f.quality_file);
  a.text({"--reference"}, "M0", "compare with this model instead", &f.reference);
  a.integer({"-c", "--ctx-size"}, "N", "context of --quality (default 512, of a cache 2048)", &f.n_ctx, 8, 1 << 24);
  a.integer({"--chunks"}, "N", "windows of the text to score (default: all)", &f.n_windows, 1, 1 << 30);
  a.text({"--shape"}, "NAME", "no file: random weights in the shape of a published model: 1b, 3b, 8b ...", &f.shape);
  a.group("Why: tables that explain a speed");
  a.flag({"--roofline"}, "time, bytes, operations and limits of every stage of a prompt and of generation",
         &f.roofline);
  a.flag({"--ladder"}, "from plain F32 to INT4, a technique to a row (default -p 128 -n 32)", &f.ladder);
  a.flag({"--host-overhead"}, "what the host does while a device generates", &f.host_overhead);
  a.text({"--plot"}, "FILE", "draw --roofline, --ladder, -npl, several -d, or quality against speed, as SVG", &f.plot);
  a.flag({"--autotune"}, "measure from how many sequences on another way to multiply pays; kept for later runs",
         &f.autotune);
  declare(a, f.many);
  declare(a, f.modes);
  a.group("How");
  add_device_flags(a, f.model.load);
  add_quant_flags(a, f.model.load);
  add_rope_flags(a, f.model.load.rope);
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
    c.fusion = load.fusion, c.unfused = load.unfused;
  }
  return all;
}

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

}  // namespace infer::tools
