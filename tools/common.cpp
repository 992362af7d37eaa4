// Flags and steps shared by the subcommands; see common.h.
#include "tools/common.h"

#include <fmt/format.h>

#include <memory>

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

}  // namespace

void add_habits(Arguments& a) {
  a.add({"-ngl", "--gpu-layers", "--n-gpu-layers"}, "N", "", [](const std::string& t) {
    if (t != "auto" && t != "all") parse_integer("--n-gpu-layers", t, -1, 1 << 20);
  });
  a.add({"-fa", "--flash-attn"}, "on|off|auto", "", [](const std::string& t) {
    for (const char* known : {"on", "off", "auto", "1", "0"})
      if (t == known) return;
    throw Error(ErrorKind::usage, "--flash-attn", "bad value", "'" + escaped(t) + "'", "on, off, auto");
  });
}

void ModelFlags::add_to(Arguments& a) {
  a.text({"-m", "--model"}, "FILE", "GGUF file (the first part of a split one)", &path);
  a.text({"-dev", "--device"}, "NAME", "auto, cpu, or ref (the slow float32 reference)", &load.device);
  a.integer({"-t", "--threads"}, "N", "threads (default: one per physical core)", &n_threads, -1, 1024);
  a.flag({"--no-mmap"}, "read the file into memory instead of mapping it", &load.mmap, false);
  a.flag({"--check-tensors"}, "refuse NaN and Inf among the weights", &load.check_tensors);
  a.add({"--override-kv"}, "KEY=T:V", "replace a metadata value; T: int, float, bool, str",
        [this](const std::string& t) { load.overrides.push_back(parse_override(t)); });
  a.text({"--isa"}, "NAME", "force a CPU level: scalar, avx2, avx512", &load.isa);
  a.flag({"--mmap"}, "", &load.mmap);
  add_habits(a);
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
  Model model = Model::load(path, load);
  load.progress = nullptr;
  bar.reset();
  for (const std::string& w : model.info().warnings) note("warning: {}\n", w);
  return model;
}

void EngineFlags::add_to(Arguments& a) {
  a.integer({"-c", "--ctx-size"}, "N", "context in tokens (default 0: the model's, or what fits)", &n_ctx, 0, 1 << 24);
  a.integer({"-b", "--batch-size"}, "N", "tokens scheduled at a time (default 2048)", &n_batch, 1, 1 << 20);
  a.integer({"-ub", "--ubatch-size"}, "N", "tokens computed at a time (default 512)", &n_ubatch, 1, 1 << 16);
  a.text({"-ctk", "--cache-type-k"}, "TYPE", "KV cache of keys: f32, f16, bf16, q8_0 (default f16)", &k_type);
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
  if (!k_type.empty()) o.k_type = k_type;
  if (!v_type.empty()) o.v_type = v_type;
  return o;
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
