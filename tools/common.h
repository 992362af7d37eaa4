// What several subcommands share: the flags that choose and load a model, and loading it with a progress bar.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "infer.h"
#include "tools/arguments.h"

namespace infer::tools {

using Args = std::vector<std::string>;

/// -ngl and -fa, how a GPU runs steps, and the switches that show what a technique gains. -ngl 0 is the CPU, every
/// other number all layers; -fa has no effect.
void add_device_flags(Arguments& arguments, LoadOptions& load);

/// --rope-scaling, --rope-freq-base, --yarn-orig-ctx ...: other rotations than the file's, with llama.cpp's names.
void add_rope_flags(Arguments& arguments, RopeOptions& rope);

/// --quant TYPE: quantise while loading.
void add_quant_flags(Arguments& arguments, LoadOptions& load);

/// "24G", "24GiB", "800M" or bytes; units are powers of 1024, as those of GPUs are.
size_t parse_size(const std::string& flag, const std::string& text);

/// -m, --device, --no-mmap, --check-tensors, --override-kv, -t ...
struct ModelFlags {
  std::string path;
  LoadOptions load;
  int64_t n_threads = -1;
  bool saved_crossovers = true;  ///< use what `infer bench --autotune` has found out
  void add_to(Arguments& arguments);
  /// Checks that a path was given; progress bar; warnings to stderr, each once however many models are opened.
  Model open(bool vocab_only = false);

 private:
  std::set<std::string> told_;
};

/// -c -b -ub -np -ctk -ctv: options of an engine.
struct EngineFlags {
  int64_t n_ctx = 0, n_batch = 2048, n_ubatch = 512, n_parallel = 1;
  std::string k_type, v_type;
  void add_to(Arguments& arguments);
  EngineOptions options(const ModelFlags& model) const;
};

/// Model::random() as ModelFlags::open() loads a file: with what `infer bench --autotune` has found out.
Model random_model(const std::string& shape, const ModelFlags& flags);

/// Whether a GPU computes this model.
bool on_gpu(const Model& model);
/// Prompt tokens computed at a time where -ub is not given: a GPU wants more of them than a cache.
int64_t default_ubatch(const Model& model);
/// Throws Error(usage) naming `flag` when tokens of the two models are not the same.
void require_same_vocabulary(const Model& model, const Model& reference, const std::string& flag);

/// "1, 2, 3" (fmt::join would do, but g++ 12 warns of ghosts inside it).
template <class T>
std::string listed(const std::vector<T>& values, const char* separator = ", ") {
  std::string out;
  for (const T& v : values) {
    if (!out.empty()) out += separator;
    out += std::to_string(v);
  }
  return out;
}

/// One line on stderr where the types of the KV cache have no quick kernel, once; `cache_note` is that of EngineStats.
void warn_slow_cache(const std::string& cache_note);

/// One line on stderr when there is a GPU: what computes, what it holds, and why the GPU does not if it does not. Of
/// the CPU only where `load` wants it to compute in another way than the usual one. Before it warn_slow_cache().
void announce_device(const Model& model, const Engine& engine, const LoadOptions& load);

/// Engine::generate() that Ctrl-C ends at the next step, also while the prompt is being computed.
Result generate(Engine& engine, const Request& request, const TokenCallback& on_token);

/// Prints help to stdout and returns 0, or parses: true when the command should go on.
bool parse_or_help(Arguments& arguments, const Args& args);

// Subcommands; each returns the exit status and throws Error.
int run_command(const Args& args);
int logits_command(const Args& args);
int tokenize_command(const Args& args);
int detokenize_command(const Args& args);
int template_command(const Args& args);
int inspect_command(const Args& args);
int perplexity_command(const Args& args);
int bench_command(const Args& args);
int plan_command(const Args& args);
int doctor_command(const Args& args);
int selftest_command(const Args& args);
int quantize_command(const Args& args);
int imatrix_command(const Args& args);

}  // namespace infer::tools
