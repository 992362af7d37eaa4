// Model::inspect: what a file holds and what it would need, from its headers alone.
#include <algorithm>
#include <new>
#include <set>

#include "models/arch.h"
#include "models/stack.h"
#include "runtime/convert.h"
#include "runtime/engine_plan.h"
#include "runtime/hf_folder.h"
#include "runtime/loader.h"
#include "runtime/model.h"
#include "runtime/plan.h"

namespace infer {
namespace {

/// A folder's tokenizer under the keys that GGUF files have for it.
void describe_vocabulary(Vocabulary v, ModelInfo& info) {
  for (std::string& merge : v.merges) std::replace(merge.begin(), merge.end(), v.merge_separator, ' ');
  Checkpoint keys;
  v.types_are_final = false;  // goes without saying here
  put_vocabulary(v, keys);
  for (const auto& [key, value] : keys.metadata) {
    info.metadata.emplace_back(key, value.text());
    info.metadata_types.emplace_back(key, value.type);
  }
}

// Goes the way of load() and of an engine with default options, but packs and allocates no more than scratch, which is
// never touched.
void plan_run(const Checkpoint& checkpoint, int64_t n_ctx, const LoadOptions& options, Inspection& out) {
  std::optional<Vocabulary> vocabulary = open_vocabulary(checkpoint);
  std::optional<Tokenizer> tokenizer;  // making it is what finds faults of merges and byte tokens
  if (vocabulary) tokenizer.emplace(std::move(*vocabulary));
  out.info.has_tokenizer = tokenizer.has_value();
  if (tokenizer && is_folder(checkpoint.path)) describe_vocabulary(tokenizer->vocabulary(), out.info);
  const Config config = read_config(checkpoint);
  describe_config(config, out.info);
  if (tokenizer && tokenizer->n_tokens() > config.vocab)
    checkpoint.refuse("tokenizer.ggml.tokens", "more tokens than rows of the embedding",
                      std::to_string(tokenizer->n_tokens()), "at most " + std::to_string(config.vocab));
  Weights weights;
  const std::vector<BoundTensor> bound = bind_weights(checkpoint, config, weights);
  const DeviceChoice choice = choose_device(options, config, bound);
  Backend* const backend = choice.backend.get();
  out.info.device_note = choice.note;
  out.info.device = backend->describe();
  out.packed_bytes = planned_packed_bytes(bound, *backend);
  std::set<const HostTensor*> used_in_place;
  for (const BoundTensor& tensor : bound)
    if (packed_bytes(tensor, *backend) == 0) used_in_place.insert(tensor.source);
  for (const BoundTensor& tensor : bound)
    out.info.stream_bytes += stream_bytes(tensor, packed_bytes(tensor, *backend), config.experts);
  size_t in_place = 0;
  for (const HostTensor* tensor : used_in_place) in_place += tensor->bytes;
  const size_t resident = options.mmap ? in_place : checkpoint.file_bytes;
  if (options.mmap) out.info.mapped_bytes = in_place;
  out.info.packed_bytes = out.packed_bytes;

  EngineOptions engine;
  engine.n_ctx = n_ctx;
  Needs needs = model_needs(config, bound);
  // A copy of the file is in memory already when it was read instead of mapped.
  const size_t wanted = out.packed_bytes + (options.mmap ? in_place : 0);
  const size_t available = memory_for_engine(*backend, 0);
  if (wanted > available)
    throw Error(ErrorKind::does_not_fit, "weights",
                "need " + human_size(wanted) + ", and " + human_size(available) + " are available");
  const EnginePlan plan = plan_engine(config, choice.device.name, engine, available - wanted, needs);
  if (plan.device_scratch_bytes == 0) backend->prepare(needs);
  out.n_ctx = plan.limits.n_ctx;
  out.kv_bytes_per_token = plan.kv_bytes_per_token;
  out.scratch_bytes =
      plan.activation_bytes + plan.rope_bytes + plan.device_scratch_bytes + static_cast<size_t>(backend->stats().bytes);
  out.peak_bytes = resident + out.packed_bytes + plan.kv_bytes + out.scratch_bytes + plan.program_bytes +
                   kTokenBytes * static_cast<size_t>(tokenizer ? tokenizer->n_tokens() : 0);
}

}  // namespace

Inspection Model::inspect(const std::string& path, int64_t n_ctx, const LoadOptions& options) {
  Inspection out;
  try {
    LoadOptions headers = options;
    headers.mmap = true;
    headers.vocab_only = false;
    const Checkpoint checkpoint = open_checkpoint(path, headers, Numbers::later);
    out.info = describe_file(checkpoint);
    try {
      plan_run(checkpoint, n_ctx, options, out);
    } catch (const Error& error) {
      // A wrong option or a device that is not there says nothing about the model.
      if (error.kind() == ErrorKind::usage || error.kind() == ErrorKind::run) throw;
      out.refusal = error.what();
    }
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::does_not_fit, escaped(path), "out of memory while reading headers");
  }
  return out;
}

}  // namespace infer
