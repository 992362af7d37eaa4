// See hf_folder.h.
#include "runtime/hf_folder.h"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "infer/error.h"
#include "kernels/cpu/thread_pool.h"
#include "runtime/hf_config.h"
#include "runtime/hf_owned.h"
#include "runtime/hf_quant_tensors.h"
#include "runtime/hf_tokenizer_config.h"
#include "runtime/json_file.h"
#include "runtime/loader.h"
#include "runtime/mapped_file.h"
#include "runtime/overrides.h"
#include "runtime/safetensors.h"

namespace infer {
namespace {

Json read_json_file(const std::string& path) { return parse_json(read_small_file(path), shown_path(path)); }

/// The folder's own name; of a downloaded snapshot that of the model, which stands two levels higher.
std::string name_of(const std::string& folder) {
  std::error_code ignored;
  std::filesystem::path path = std::filesystem::absolute(folder, ignored).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  if (path.parent_path().filename() == "snapshots") path = path.parent_path().parent_path();
  const std::string name = path.filename().string();
  const size_t dashes = name.starts_with("models--") ? name.rfind("--") + 2 : 0;
  return name.substr(dashes);
}

void require_weights(const std::string& folder) {
  if (has_safetensors(folder)) return;
  std::string others;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    const bool weights =
        name.ends_with(".bin") || name.ends_with(".pth") || name.ends_with(".gguf") || name.ends_with(".safetensors");
    if (weights && others.size() < 200) others += (others.empty() ? "" : ", ") + escaped(name);
  }
  throw Error(ErrorKind::bad_file, shown_path(folder), "no weights that can be read", others.empty() ? "none" : others,
              "model.safetensors or model.safetensors.index.json");
}

/// Quantised matrices in formats that kernels know, yet to be made, under the names that they have unquantised.
void adopt_quantised(const std::string& folder, Checkpoint& checkpoint, HfQuant quant, const LoadOptions& options,
                     int n_threads) {
  const std::string path = folder + "/quantize_config.json";
  if (is_file(path)) {
    const Json json = read_json_file(path);
    quant = with_quantize_config(quant, JsonObject(json, shown_path(path)));
  }
  // The reference device is there to say what a model is: it gets every weight as it is.
  unpack_quantised(
      checkpoint, quant,
      {.n_threads = n_threads,
       .keep = {.exact = options.device == "ref", .for_gpu = options.quant.empty() && may_use_gpu(options.device)},
       // What takes its time is told by those who make the numbers.
       .progress = [&](double) { return !options.progress || options.progress(0); }});
}

/// Tensors with GGUF's names, and vectors that config.json holds as numbers.
void adopt_weights(Checkpoint& checkpoint, const HfConfig& config) {
  rename_tensors(checkpoint, *config.names, config.rename);
  if (!config.rename.tied && !checkpoint.find_tensor("output.weight"))
    checkpoint.refuse("lm_head.weight", "required tensor is missing", "",
                      "the tensor, or tie_word_embeddings true in config.json");
  if (config.vectors.empty()) return;
  const std::shared_ptr<OwnedBytes> owned = own_storage(checkpoint);
  for (const HfVector& vector : config.vectors) {
    HostTensor like;
    like.name = vector.name;
    like.dims = {static_cast<int64_t>(vector.values.size())};
    checkpoint.tensors.push_back(owned_tensor(*owned, like, vector.values));
  }
  checkpoint.index_tensors();
}

void add_generation_config(const std::string& folder, Checkpoint& checkpoint) {
  const std::string path = folder + "/generation_config.json";
  if (!is_file(path)) return;
  const Json json = read_json_file(path);
  translate_generation(JsonObject(json, shown_path(path)), checkpoint.metadata);
}

}  // namespace

bool is_folder(const std::string& path) {
  struct stat info = {};
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

Checkpoint read_hf_folder(const std::string& folder, const LoadOptions& options, Numbers numbers, double* converting) {
  Checkpoint checkpoint;
  HfConfig config;
  const std::string config_path = folder + "/config.json";
  if (!options.vocab_only) {
    if (!is_file(config_path))
      throw Error(ErrorKind::bad_file, shown_path(folder), "not a model", "a folder without config.json",
                  "a GGUF file, or a Hugging Face folder with config.json and safetensors");
    const Json json = read_json_file(config_path);
    config = translate_config(JsonObject(json, shown_path(config_path)));
    require_weights(folder);
    checkpoint = read_safetensors(folder, {.mmap = options.mmap});
  }
  checkpoint.path = folder;
  checkpoint.format = "Hugging Face folder";
  checkpoint.metadata = std::move(config.metadata);
  if (!options.vocab_only) {
    const auto start = std::chrono::steady_clock::now();
    const int n_threads = options.n_threads > 0 ? options.n_threads : cpu::default_threads();
    adopt_quantised(folder, checkpoint, config.quant, options, n_threads);
    adopt_weights(checkpoint, config);
    if (numbers == Numbers::now) make_numbers(checkpoint, n_threads, options.progress);
    if (converting) *converting = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  add_generation_config(folder, checkpoint);
  checkpoint.metadata.emplace("general.name", Value{name_of(folder), "string"});
  const std::string chat_template = read_hf_tokenizer_config(folder).chat_template;
  if (!chat_template.empty()) checkpoint.metadata.emplace("tokenizer.chat_template", Value{chat_template, "string"});
  apply_overrides(checkpoint, options.overrides);
  return checkpoint;
}

}  // namespace infer
