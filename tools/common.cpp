// Flags and steps shared by the subcommands; see common.h.
#include "tools/common.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <memory>

#include "tools/crossover_file.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

MetadataOverride parse_override(const std::string& text) {
  const size_t equals = text.find('='), colon = text.find(':', equals == std::string::npos ? 0 : equals);
  if (equals == std::string::npos || equals == 0 || colon == std::string::npos)
    throw Error(ErrorKind::usage, "--override-kv", "bad value", "'" + escaped(text) + "'", "KEY=TYPE:VALUE");
  MetadataOverride o{text.substr(0, equals), text.substr(equals + 1, colon - equals - 1), text.substr(colon + 1)};
  if (o.type != "int" && o.type != "float" && o.type != "bool" && o.type != "str")
    throw Error(ErrorKind::usage, "--override-kv", "unknown type", "'" + escaped(o.type) + "'",
                "int, float, bool, str");
  return o;
}

/// --no-fusion, of all stages or of those in a list.
void set_unfused(LoadOptions& load, const std::string& list) {
  if (list.empty()) return load.fusion = false, void();
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    const std::string name = list.substr(begin, end - begin);
    if (name != "attn_in" && name != "attn_out" && name != "ffn" && name != "logits")
      throw Error(ErrorKind::usage, "--no-fusion", "no such stage", "'" + escaped(name) + "'",
                  "attn_in, attn_out, ffn, logits");
    load.unfused.push_back(name);
    begin = end + 1;
  }
}

}  // namespace

void add_device_flags(Arguments& a, LoadOptions& load) {
  a.text({"-dev", "--device"}, "NAME", "auto, cuda, cuda:N, cpu, or ref (the slow float32 reference)", &load.device);
  const auto no_graphs = std::make_shared<bool>(false);
  const auto settle_mode = [&load, no_graphs] {  // whichever of the two flags comes first
    if (!*no_graphs) return;
    if (load.mode == "persistent" || load.mode == "graph")
      throw Error(ErrorKind::usage, "--no-graphs", "a mode that records steps was asked for", "--mode " + load.mode,
                  "--mode auto or eager");
    load.mode = "eager";
  };
  a.add({"--mode"}, "MODE", "how a GPU runs steps: auto, persistent, graph, eager", [=, &load](const std::string& t) {
    for (const char* known : {"auto", "persistent", "graph", "eager"})
      if (t == known) return load.mode = t, settle_mode();
    throw Error(ErrorKind::usage, "--mode", "unknown", "'" + escaped(t) + "'", "auto, persistent, graph, eager");
  });
  a.add({"--no-graphs"}, "", "record no steps of a GPU: as --mode eager",
        [=](const std::string&) { *no_graphs = true, settle_mode(); });
  a.add({"--act"}, "TYPE", "activations in products: auto (default, by the weights' format), f16, bf16, int8, fp8",
        [&load](const std::string& t) {
          for (const char* known : {"auto", "f16", "bf16", "int8", "fp8"})
            if (t == known) return load.act = t, void();
          throw Error(ErrorKind::usage, "--act", "unknown", "'" + escaped(t) + "'", "auto, f16, bf16, int8, fp8");
        });
  a.add({"--act8"}, "", "prompts in 8-bit floats on a Hopper GPU, quicker and less exact: as --act fp8",
        [&load](const std::string&) { load.act = "fp8"; });
  a.switch_or({"--no-fusion"}, "STAGE,..",
              "simple ops instead of fused stages: all, or of attn_in, attn_out, ffn, logits",
              [&load](const std::string& t) { set_unfused(load, t); });
  a.flag({"--deterministic"}, "the same bits whatever is computed beside a text: always on the CPU, slower on a GPU",
         &load.deterministic);
  a.flag({"--debug-sync"}, "wait for every kernel of a GPU, so that an error names the one that failed",
         &load.debug_sync);
  a.add({"-ngl", "--gpu-layers", "--n-gpu-layers"}, "N", "", [&load](const std::string& t) {
    const bool none = t != "auto" && t != "all" && parse_integer("--n-gpu-layers", t, -1, 1 << 20) == 0;
    if (none && load.device != "ref") load.device = "cpu";
  });
  a.add({"-fa", "--flash-attn"}, "on|off|auto", "", [](const std::string& t) {
    for (const char* known : {"on", "off", "auto", "1", "0"})
      if (t == known) return;
    throw Error(ErrorKind::usage, "--flash-attn", "bad value", "'" + escaped(t) + "'", "on, off, auto");
  });
}

void add_quant_flags(Arguments& a, LoadOptions& load) {
  a.text({"--quant"}, "TYPE", "quantise while loading, to the weights of infer quantize TYPE", &load.quant);
  a.flag({"--allow-requantize"}, "let --quant go from weights that are quantised already", &load.allow_requantize);
}

void ModelFlags::add_to(Arguments& a) {
  a.text({"-m", "--model"}, "FILE", "GGUF file (the first part of a split one) or Hugging Face folder", &path);
  add_device_flags(a, load);
  a.integer({"-t", "--threads"}, "N", "threads (default: one per physical core)", &n_threads, -1, 1024);
  a.flag({"--no-mmap"}, "read the file into memory instead of mapping it", &load.mmap, false);
  a.flag({"--check-tensors"}, "refuse NaN and Inf among the weights", &load.check_tensors);
  a.add({"--override-kv"}, "KEY=T:V", "replace a metadata value; T: int, float, bool, str",
        [this](const std::string& t) { load.overrides.push_back(parse_override(t)); });
  add_rope_flags(a, load.rope);
  a.text({"--isa"}, "NAME", "force a CPU level: scalar, avx2, avx512", &load.isa);
  a.flag({"--mmap"}, "", &load.mmap);
  a.add({"-tb", "--threads-batch"}, "N", "",
        [](const std::string& t) { parse_integer("--threads-batch", t, -1, 1024); });
  a.add({"-lm", "--load-mode"}, "MODE", "", [this](const std::string& t) {
    if (t != "auto" && t != "mmap" && t != "none")
      throw Error(ErrorKind::usage, "--load-mode", "bad value", "'" + escaped(t) + "'", "auto, mmap, none");
    load.mmap = t != "none";
  });
}

Model ModelFlags::open(bool vocab_only) {
  if (path.empty()) throw Error(ErrorKind::usage, "-m", "no model given; see --help");
  load.n_threads = n_threads > 0 ? static_cast<int>(n_threads) : 0;
  load.vocab_only = vocab_only;
  auto bar = std::make_shared<ProgressBar>("loading");
  load.progress = [bar](double fraction) {
    bar->update(fraction);
    return !interrupted();
  };
  if (load.mmap) explain_bus_error(path);
  if (saved_crossovers && !vocab_only) use_saved_crossovers(load);
  Model model = Model::load(path, load);
  load.progress = nullptr;
  bar.reset();
  for (const std::string& w : model.info().warnings)
    if (told_.insert(w).second) note("warning: {}\n", w);
  return model;
}

Model random_model(const std::string& shape, const ModelFlags& flags) {
  LoadOptions load = flags.load;
  if (flags.saved_crossovers) use_saved_crossovers(load);
  return Model::random(shape, load);
}

void EngineFlags::add_to(Arguments& a) {
  a.integer({"-c", "--ctx-size"}, "N", "context in tokens (default 0: the model's, or what fits)", &n_ctx, 0, 1 << 24);
  a.integer({"-b", "--batch-size"}, "N", "tokens scheduled at a time (default 2048)", &n_batch, 1, 1 << 20);
  a.integer({"-ub", "--ubatch-size"}, "N", "tokens computed at a time (default 512)", &n_ubatch, 1, 1 << 16);
  a.text({"-ctk", "--cache-type-k"}, "TYPE", "KV cache of keys: f32, f16, bf16, q8_0, q4_0 (default f16)", &k_type);
  a.text({"-ctv", "--cache-type-v"}, "TYPE", "KV cache of values (default f16)", &v_type);
}

EngineOptions EngineFlags::options(const ModelFlags& model) const {
  EngineOptions o;
  o.n_ctx = n_ctx;
  o.n_seqs = n_parallel;
  o.n_batch = n_batch;
  o.n_ubatch = n_ubatch;
  o.n_threads = model.n_threads > 0 ? static_cast<int>(model.n_threads) : 0;
  o.isa = model.load.isa;
  o.mode = model.load.mode;
  o.act = model.load.act;
  o.fusion = model.load.fusion, o.unfused = model.load.unfused;
  if (!k_type.empty()) o.k_type = k_type;
  if (!v_type.empty()) o.v_type = v_type;
  return o;
}

bool on_gpu(const Model& model) { return model.info().device.starts_with("cuda"); }

int64_t default_ubatch(const Model& model) { return on_gpu(model) ? 2048 : 512; }

void require_same_vocabulary(const Model& model, const Model& reference, const std::string& flag) {
  if (reference.vocab() == model.vocab()) return;
  throw Error(ErrorKind::usage, flag, "another vocabulary", fmt::format("{} tokens", reference.vocab()),
              fmt::format("{} tokens", model.vocab()));
}

size_t parse_size(const std::string& flag, const std::string& text) {
  const size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  std::string unit = text.substr(digits);
  if (unit.ends_with("iB")) unit.resize(unit.size() - 2);
  if (unit.ends_with("B")) unit.resize(unit.size() - 1);
  double factor = 1;
  if (!unit.empty()) {
    const size_t power = std::string("KMGT").find(static_cast<char>(std::toupper(static_cast<unsigned char>(unit[0]))));
    if (unit.size() != 1 || power == std::string::npos)
      throw Error(ErrorKind::usage, flag, "bad size", "'" + escaped(text) + "'", "a number with K, M, G or T");
    factor = std::pow(1024.0, static_cast<double>(power + 1));
  }
  return static_cast<size_t>(parse_real(flag, text.substr(0, digits), 1 / factor, 9e18 / factor) * factor);
}

void warn_slow_cache(const std::string& cache_note) {
  static std::set<std::string> told;
  if (!cache_note.empty() && told.insert(cache_note).second) note("warning: {}\n", cache_note);
}

void announce_device(const Model& model, const Engine& engine, const LoadOptions& load) {
  const ModelInfo& info = model.info();
  const EngineStats stats = engine.stats();
  warn_slow_cache(stats.cache_note);
  if (!info.device_note.empty()) note("device: {}; {}\n", info.device, info.device_note);
  if (stats.device_free_bytes == 0) {
    if (!load.fusion || !load.unfused.empty() || !load.act.empty()) note("device: {}\n", stats.backend);
    return;
  }
  const auto size = [](size_t bytes) {
    const bool small = bytes < size_t{1} << 30;
    return fmt::format("{:.{}f} {}", static_cast<double>(bytes) / (small ? 1048576.0 : 1073741824.0), small ? 0 : 1,
                       small ? "MiB" : "GiB");
  };
  note("device: {}, weights {}, KV {} ({} positions), {} free\n", stats.backend, size(info.packed_bytes),
       size(stats.kv_bytes), stats.n_ctx, size(stats.device_free_bytes));
}

Result generate(Engine& engine, const Request& request, const TokenCallback& on_token) {
  Result result;
  const RequestId id = engine.submit(
      request, [&](const Token& t) { return on_token(t) && !interrupted(); }, [&](const Result& r) { result = r; });
  while (engine.step())
    if (interrupted()) engine.cancel(id);
  return result;
}

bool parse_or_help(Arguments& arguments, const Args& args) {
  if (arguments.parse(args)) return true;
  fmt::print("{}", arguments.help());
  return false;
}

}  // namespace infer::tools
