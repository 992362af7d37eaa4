// The public Model: loading, and text to ids and back. Chat templates are in chat.cpp, inspection in inspect.cpp.
#include "runtime/model.h"

#include <algorithm>
#include <chrono>
#include <new>

#include "models/arch.h"
#include "quant/formats.h"
#include "runtime/hf_folder.h"
#include "runtime/hf_tokenizer_config.h"
#include "runtime/loader.h"
#include "runtime/quantize_jobs.h"
#include "runtime/random_model.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace infer {
namespace {

// Small freed blocks stay with the process unless it is asked to let go of them.
void return_free_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

void load_tokenizer(const Checkpoint& checkpoint, Model::Impl& model) {
  std::optional<Vocabulary> vocabulary = open_vocabulary(checkpoint);
  if (!vocabulary) return;
  model.tokenizer.emplace(std::move(*vocabulary));
  model.info.has_tokenizer = true;
  const auto text = [&](int32_t id) {
    return id < 0 ? std::nullopt : std::optional<std::string>(model.tokenizer->text_of(id));
  };
  model.bos_text = text(model.tokenizer->bos());
  model.eos_text = text(model.tokenizer->eos());
  const auto& warnings = model.tokenizer->warnings();
  model.info.warnings.insert(model.info.warnings.end(), warnings.begin(), warnings.end());
}

using Clock = std::chrono::steady_clock;

double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

/// Ends a phase of loading, which began where the one before it ended.
void end_phase(const char* name, Clock::time_point start, ModelInfo& info) {
  double before = 0;
  for (const auto& [other, taken] : info.load_phases) before += taken;
  info.load_phases.emplace_back(name, seconds(Clock::now() - start) - before);
}

bool has_gpu_formats(const Needs& needs) { return !std::ranges::all_of(needs.all_matrix_formats(), decodable); }

/// Again, as it is read for this device: the first time it was for a GPU, which is not taken after all.
void read_for_host(Checkpoint& checkpoint, const LoadOptions& options, const std::string& device, ModelInfo& info) {
  LoadOptions host = options;
  host.device = device;
  const std::string path = checkpoint.path;
  checkpoint = {};  // before there are two of them
  double converting = 0;
  checkpoint = open_checkpoint(path, host, Numbers::later, &converting);
  for (auto& [phase, taken] : info.load_phases)
    if (phase == "convert") taken += converting;
  info.warnings.insert(info.warnings.end(), checkpoint.warnings.begin(), checkpoint.warnings.end());
}

void load_weights_of(Checkpoint& checkpoint, const LoadOptions& options, Clock::time_point start, Model::Impl& model) {
  model.config = read_config(checkpoint);
  describe_config(model.config, model.info);
  if (model.tokenizer && model.tokenizer->n_tokens() > model.config.vocab)
    checkpoint.refuse("tokenizer.ggml.tokens", "more tokens than rows of the embedding",
                      std::to_string(model.tokenizer->n_tokens()), "at most " + std::to_string(model.config.vocab));
  Weights unpacked;
  std::vector<BoundTensor> bound;
  const auto bind = [&] {
    unpacked = {};
    bound = bind_weights(checkpoint, model.config, unpacked);
    model.needs = model_needs(model.config, bound);
    model.needs.deterministic = options.deterministic;
  };
  bind();
  const DeviceChoice choice = choose_device(options, model.config, bound);
  Backend* const backend = choice.backend.get();
  if (!find_backend(choice.device.name).devices && has_gpu_formats(model.needs)) {
    bound.clear();
    read_for_host(checkpoint, options, choice.device.name, model.info);
    bind();
  }
  require_room_for_weights(*backend, bound);
  model.device = choice.device.name;
  model.backend_options = backend_options(options, choice.device.index);
  model.info.device_note = choice.note;
  // Tokens and merges by the hundred thousand, which the tokenizer has copied: make room before the peak.
  checkpoint.metadata.clear();
  return_free_memory();
  end_phase("device", start, model.info);
  model.weights = pack_weights(checkpoint, model.config, *backend, options);
  model.storage = checkpoint.storage;
  model.info.device = backend->describe();
  model.info.n_params = static_cast<int64_t>(model.weights.n_params);
  model.info.packed_bytes = model.weights.packed_bytes;
  model.info.stream_bytes = model.weights.stream_bytes;
  if (checkpoint.mapped) model.info.mapped_bytes = model.weights.file_bytes;
  end_phase("weights", start, model.info);
}

// Templates of a folder see the texts that its author names, whether or not they are tokens.
void take_template_texts(const std::string& folder, Model::Impl& model) {
  const HfTokenizerConfig config = read_hf_tokenizer_config(folder);
  model.bos_text = config.bos;
  model.eos_text = config.eos;
}

std::shared_ptr<const Model::Impl> load_checkpoint(Checkpoint checkpoint, const LoadOptions& options,
                                                   Clock::time_point start, double converting) {
  auto model = std::make_shared<Model::Impl>();
  model->info = describe_file(checkpoint);
  model->vocab_only = options.vocab_only;
  end_phase("open", start, model->info);
  model->info.load_phases.back().second -= converting;  // a part of it
  model->info.load_phases.emplace_back("convert", converting);
  load_tokenizer(checkpoint, *model);
  if (is_folder(checkpoint.path)) take_template_texts(checkpoint.path, *model);
  model->chat_template = checkpoint.find_string("tokenizer.chat_template").value_or("");
  const std::string fault = chat_template_fault(model->chat_template);  // no reason not to use the model otherwise
  if (!fault.empty()) model->info.warnings.push_back(fault);
  end_phase("tokenizer", start, model->info);
  if (!options.vocab_only)
    load_weights_of(checkpoint, options, start, *model);
  else if (model->tokenizer)
    model->info.vocab = model->tokenizer->n_tokens();
  model->info.load_seconds = seconds(Clock::now() - start);
  return model;
}

std::shared_ptr<const Model::Impl> load_impl(const std::string& path, const LoadOptions& options) {
  const auto start = Clock::now();
  double converting = 0;
  const bool quantise = !options.quant.empty() && !options.vocab_only;
  Checkpoint checkpoint = open_checkpoint(path, options, quantise ? Numbers::now : Numbers::later, &converting);
  const auto opened = Clock::now();
  if (quantise) quantize_checkpoint(checkpoint, options);
  converting += seconds(Clock::now() - opened);
  return load_checkpoint(std::move(checkpoint), options, start, converting);
}

}  // namespace

Model Model::load(const std::string& path, const LoadOptions& options) {
  try {
    return Model(load_impl(path, options));
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::does_not_fit, escaped(path), "out of memory while loading");
  }
}

Model Model::random(const std::string& shape, const LoadOptions& options) {
  try {
    const auto start = Clock::now();
    Checkpoint checkpoint = random_checkpoint(shape, options.quant);
    replace_rope(options.rope, checkpoint);
    return Model(load_checkpoint(std::move(checkpoint), options, start, 0));
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::does_not_fit, "random " + escaped(shape), "out of memory");
  }
}

std::vector<std::string> Model::shapes() { return random_shapes(); }

const Tokenizer& Model::Impl::require_tokenizer() const {
  if (!tokenizer) throw Error(ErrorKind::usage, escaped(info.path), "the model has no tokenizer");
  return *tokenizer;
}

const ModelInfo& Model::info() const { return impl_->info; }

std::vector<TokenId> Model::tokenize(std::string_view text, bool add_special, bool parse_special) const {
  return impl_->require_tokenizer().encode(text, add_special, parse_special);
}

std::string Model::detokenize(std::span<const TokenId> ids) const { return impl_->require_tokenizer().decode(ids); }

std::string Model::token_text(TokenId id) const { return impl_->require_tokenizer().piece(id); }

bool Model::is_end_of_generation(TokenId id) const { return impl_->tokenizer && impl_->tokenizer->is_eog(id); }

int64_t Model::vocab() const { return impl_->info.vocab; }

const std::string& Model::chat_template() const { return impl_->chat_template; }

}  // namespace infer
