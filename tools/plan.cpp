// `infer plan`: what a model takes of memory, by purpose, at a context and a number of sequences; for the device that
// would be used here, or for one of a given size that need not be there.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/common.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

ordered_json to_json(const MemoryPlan& p) {
  return {{"device", p.device},
          {"fits", p.refusal.empty()},
          {"refusal", p.refusal},
          {"n_ctx", p.n_ctx},
          {"n_seqs", p.n_seqs},
          {"context_length", p.context_length},
          {"largest_ctx", p.largest_ctx},
          {"type_k", p.k_type},
          {"type_v", p.v_type},
          {"cache_note", p.cache_note},
          {"available_bytes", p.available_bytes},
          {"mapped_bytes", p.mapped_bytes},
          {"matrix_bytes", p.matrix_bytes},
          {"expert_bytes", p.expert_bytes},
          {"embedding_bytes", p.embedding_bytes},
          {"vector_bytes", p.vector_bytes},
          {"kv_bytes_per_token", p.kv_bytes_per_token},
          {"kv_bytes", p.kv_bytes},
          {"rope_bytes", p.rope_bytes},
          {"activation_bytes", p.activation_bytes},
          {"scratch_bytes", p.scratch_bytes},
          {"program_bytes", p.program_bytes},
          {"total_bytes", p.total_bytes}};
}

std::string mebibytes(size_t bytes) { return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / 1048576.0); }

void print(const MemoryPlan& p) {
  fmt::print("memory of {}, {} sequence{} of {} positions:\n", p.device, p.n_seqs, p.n_seqs == 1 ? "" : "s", p.n_ctx);
  const auto line = [](const char* what, size_t bytes, const std::string& more = {}) {
    if (bytes > 0) fmt::print("  {:24} {:>16}{}{}\n", what, mebibytes(bytes), more.empty() ? "" : "   ", more);
  };
  line("weights, mapped", p.mapped_bytes, "in the file's pages");
  line("weights, packed", p.matrix_bytes, p.expert_bytes > 0 ? "experts " + mebibytes(p.expert_bytes) : "");
  line("embedding", p.embedding_bytes);
  line("norms and biases", p.vector_bytes);
  line("KV cache", p.kv_bytes,
       fmt::format("{:.1f} KiB a token, {} and {}", static_cast<double>(p.kv_bytes_per_token) / 1024, p.k_type,
                   p.v_type));
  line("rotation tables", p.rope_bytes);
  line("activations", p.activation_bytes);
  line("scratch of kernels", p.scratch_bytes, "at most");
  line("program", p.program_bytes, "at most");
  line("in all", p.total_bytes);
  line("available", p.available_bytes);
  if (!p.refusal.empty()) return;
  fmt::print("largest context that fits: {} ({} trained)\n", p.largest_ctx, p.context_length);
}

}  // namespace

int plan_command(const Args& args) {
  ModelFlags model;
  EngineFlags engine;
  size_t memory_bytes = 0;
  bool json = false;
  Arguments a(
      "infer plan -m MODEL.gguf [-c N] [-np K] [--vram 24G]",
      "What an engine takes of a device's memory, from the file's headers alone. Exit status 4: it does not fit.\n");
  a.positional("MODEL", [&](const std::string& t) { model.path = t; });
  model.add_to(a);
  engine.add_to(a);
  a.integer({"-np", "--parallel"}, "N", "sequences in flight at once (default 1)", &engine.n_parallel, 1, 1024);
  a.add({"--vram"}, "SIZE", "plan for a GPU with this much memory, which need not be here: 24G, 800M",
        [&](const std::string& t) { memory_bytes = parse_size("--vram", t); });
  a.flag({"--json"}, "machine-readable", &json);
  if (!parse_or_help(a, args)) return 0;
  if (model.path.empty()) throw Error(ErrorKind::usage, "-m", "no model given; see infer plan --help");
  const MemoryPlan plan = Model::plan(model.path, engine.options(model), model.load, memory_bytes);
  if (json)
    fmt::print("{}\n", to_json(plan).dump(1, ' ', false, ordered_json::error_handler_t::replace));
  else
    print(plan);
  warn_slow_cache(plan.cache_note);
  if (!plan.refusal.empty()) throw Error(ErrorKind::does_not_fit, plan.refusal);
  return 0;
}

}  // namespace infer::tools
