// Model::plan: what an engine takes of a device's memory, by purpose, whether or not the device is there.
#include <algorithm>
#include <new>
#include <set>

#include "models/arch.h"
#include "models/stack.h"
#include "quant/formats.h"
#include "runtime/engine_plan.h"
#include "runtime/loader.h"
#include "runtime/plan.h"

namespace infer {
namespace {

/// What is planned for: a backend that was made, or a row of the table and an amount of memory.
struct Target {
  std::string name;
  std::unique_ptr<Backend> backend;  ///< null: the device is only imagined
  const DeviceRow* devices = nullptr;
  size_t available = 0;

  size_t packed_bytes(const BoundTensor& t) const {
    return devices ? devices->packed_bytes(t.host, t.role) : infer::packed_bytes(t, *backend);
  }
};

Target choose_target(const LoadOptions& options, const Config& config, const std::vector<BoundTensor>& bound,
                     size_t memory_bytes, MemoryPlan& out) {
  Target target;
  DeviceName device = parse_device(options.device);
  if (memory_bytes == 0) {
    DeviceChoice choice = choose_device(options, config, bound);
    target.name = choice.device.name;
    target.backend = std::move(choice.backend);
    target.available = memory_for_engine(*target.backend, 0);
    out.device = target.backend->describe();
  } else {
    const auto& rows = backends();
    const auto own_memory = std::find_if(rows.begin(), rows.end(), [](const BackendRow& row) { return row.devices; });
    if (device.name == "auto") device.name = own_memory != rows.end() ? own_memory->name : rows.front().name;
    target.name = out.device = device.name;
    target.available = memory_bytes;
    if (!find_backend(device.name).devices) target.backend = make_backend(device.name, backend_options(options, 0));
  }
  target.devices = find_backend(target.name).devices;
  const std::string refusal = target.devices ? target.devices->refusal(model_needs(config, bound)) : "";
  if (!refusal.empty()) throw Error(ErrorKind::bad_file, "model", refusal);
  // The driver's own part is gone already where free memory was asked for.
  if (target.devices && memory_bytes > 0) out.program_bytes = target.devices->context_bytes;
  return target;
}

/// The engine has chosen the types of its cache, for which a device must have kernels too.
void require_cache_kernels(const Target& target, const Needs& needs) {
  const std::string refusal = target.devices ? target.devices->refusal(needs) : "";
  if (!refusal.empty()) throw Error(ErrorKind::usage, "KV cache", refusal);
}

void add_weights(const std::vector<BoundTensor>& bound, const Target& target, MemoryPlan& out) {
  std::set<const HostTensor*> in_place;
  for (const BoundTensor& t : bound) {
    const size_t bytes = target.packed_bytes(t);
    size_t& sum = is_matrix(t.role)                 ? out.matrix_bytes
                  : t.role == WeightRole::embedding ? out.embedding_bytes
                                                    : out.vector_bytes;
    sum += bytes;
    if (is_matrix(t.role) && t.host.n_dims == 3) out.expert_bytes += bytes;
    if (bytes == 0 && in_place.insert(t.source).second) out.mapped_bytes += t.source->bytes;
  }
}

void add_engine(const EnginePlan& plan, MemoryPlan& out) {
  out.n_ctx = plan.limits.n_ctx;
  out.n_seqs = plan.n_seqs;
  out.k_type = find_format(plan.limits.k_type)->name;
  out.v_type = find_format(plan.limits.v_type)->name;
  out.cache_note = plan.cache_note;
  out.kv_bytes_per_token = plan.kv_bytes_per_token;
  out.kv_bytes = plan.kv_bytes;
  out.rope_bytes = plan.rope_bytes;
  out.activation_bytes = plan.activation_bytes;
  out.scratch_bytes = plan.device_scratch_bytes;
  out.program_bytes += plan.program_bytes;
}

MemoryPlan plan_memory(const Checkpoint& checkpoint, EngineOptions engine, const LoadOptions& options,
                       size_t memory_bytes) {
  MemoryPlan out;
  const Config config = read_config(checkpoint);
  out.context_length = config.n_ctx_train;
  Weights weights;
  const std::vector<BoundTensor> bound = bind_weights(checkpoint, config, weights);
  const Target target = choose_target(options, config, bound, memory_bytes, out);
  out.available_bytes = target.available;
  add_weights(bound, target, out);
  const size_t held = out.mapped_bytes + out.matrix_bytes + out.embedding_bytes + out.vector_bytes;
  const size_t taken = held + out.program_bytes, left = target.available - std::min(target.available, taken);
  Needs needs = model_needs(config, bound);
  try {
    if (taken > target.available)
      throw Error(ErrorKind::does_not_fit, "weights",
                  "need " + human_size(taken) + ", and " + human_size(target.available) + " are available", "",
                  "a smaller quantisation, or a device with more memory");
    const EnginePlan plan = plan_engine(config, target.name, engine, left, needs);
    require_cache_kernels(target, needs);
    out.largest_ctx = largest_context(plan.costs, left);
    add_engine(plan, out);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::does_not_fit) throw;
    out.refusal = error.what();
    // The sizes are of interest all the same: those of what was asked for, or of the least there is.
    if (engine.n_ctx == 0) engine.n_ctx = std::min(config.n_ctx_train, kPageTokens);
    const EnginePlan plan = plan_engine(config, target.name, engine, SIZE_MAX / 2, needs);
    require_cache_kernels(target, needs);
    out.largest_ctx = largest_context(plan.costs, left);
    add_engine(plan, out);
  }
  out.total_bytes = held + out.kv_bytes + out.rope_bytes + out.activation_bytes + out.scratch_bytes + out.program_bytes;
  return out;
}

}  // namespace

MemoryPlan Model::plan(const std::string& path, const EngineOptions& engine, const LoadOptions& options,
                       size_t memory_bytes) {
  try {
    LoadOptions headers = options;
    headers.mmap = true;
    headers.vocab_only = false;
    return plan_memory(open_checkpoint(path, headers, Numbers::later), engine, options, memory_bytes);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::does_not_fit, escaped(path), "out of memory while reading headers");
  }
}

}  // namespace infer
