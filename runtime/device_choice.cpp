// Which device computes a model: names as people type them, and what "auto" means. A GPU is asked for its memory before
// a byte of the weights moves.
#include <algorithm>

#include "runtime/crossovers.h"
#include "runtime/engine_plan.h"
#include "runtime/loader.h"
#include "runtime/memory.h"
#include "runtime/plan.h"

namespace infer {
namespace {

/// Positions below which a GPU that holds the weights would be of little use; files may allow less.
constexpr int64_t kUsefulContext = 4096;

std::unique_ptr<Backend> make(const DeviceName& device, const LoadOptions& options) {
  return make_backend(device.name, backend_options(options, device.index));
}

Needs needs_of(const LoadOptions& options, const Config& config, const std::vector<BoundTensor>& bound) {
  Needs needs = model_needs(config, bound);
  needs.deterministic = options.deterministic;
  return needs;
}

/// What the file asks for comes first: it cannot be had in any way.
void require_kernels(const DeviceRow& devices, const Needs& needs) {
  const std::string refusal = devices.refusal(needs);
  if (!refusal.empty()) throw Error(ErrorKind::bad_file, "model", refusal);
}

/// Whether weights and a useful context fit; else why not.
std::string too_small(const Backend& backend, const std::string& name, const Config& config,
                      const std::vector<BoundTensor>& bound) {
  try {
    require_room_for_weights(backend, bound);
    EngineOptions engine;
    engine.n_ctx = std::min(kUsefulContext, std::max<int64_t>(config.n_ctx_train, 1));
    Needs needs = model_needs(config, bound);
    plan_engine(config, name, engine, *backend.memory_left() - planned_packed_bytes(bound, backend), needs);
    return {};
  } catch (const Error& error) {
    return error.what();
  }
}

/// The backend of a device with memory of its own if all of the model can go there; else null and the reason.
std::unique_ptr<Backend> try_device(const BackendRow& row, int index, const LoadOptions& options, const Config& config,
                                    const std::vector<BoundTensor>& bound, std::string& why_not) {
  why_not = row.devices->unusable_reason(index);
  if (why_not.empty()) why_not = row.devices->refusal(needs_of(options, config, bound));
  if (!why_not.empty()) return nullptr;
  try {
    auto backend = make({row.name, index}, options);
    backend->check_activations(needs_of(options, config, bound));
    why_not = too_small(*backend, row.name, config, bound);
    if (why_not.empty()) return backend;
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::usage) throw;
    why_not = error.what();
  }
  return nullptr;
}

}  // namespace

BackendOptions backend_options(const LoadOptions& options, int device_index) {
  return {.n_threads = options.n_threads,
          .isa = options.isa,
          .device_index = device_index,
          .mode = options.mode,
          .debug_sync = options.debug_sync,
          .fusion = options.fusion,
          .unfused = options.unfused,
          .act = options.act,
          .crossovers = checked_crossovers(options.crossovers)};
}

DeviceName parse_device(const std::string& text) {
  if (text.empty() || text == "auto") return {"auto", 0};
  const size_t colon = text.find(':');
  const std::string name = text.substr(0, colon);
  std::string known = "auto";
  for (const BackendRow& row : backends()) {
    known += std::string(", ") + row.name + (row.devices ? std::string(", ") + row.name + ":N" : "");
    if (name != row.name) continue;
    if (colon == text.npos) return {name, 0};
    const std::string digits = text.substr(colon + 1);
    const bool number = !digits.empty() && digits.size() <= 4 && digits.find_first_not_of("0123456789") == digits.npos;
    if (row.devices && number) return {name, std::stoi(digits)};
  }
  throw Error(ErrorKind::usage, "device", "no such device", '"' + escaped(text) + '"', known);
}

bool may_use_gpu(const std::string& device) {
  const std::string name = parse_device(device).name;
  for (const BackendRow& row : backends())
    if (row.devices && (name == row.name || (name == "auto" && row.devices->count() > 0))) return true;
  return false;
}

DeviceChoice choose_device(const LoadOptions& options, const Config& config, const std::vector<BoundTensor>& bound) {
  DeviceChoice choice;
  choice.device = parse_device(options.device);
  if (choice.device.name != "auto") {
    choice.backend = make(choice.device, options);
    choice.backend->check_activations(needs_of(options, config, bound));
    const DeviceRow* devices = find_backend(choice.device.name).devices;
    if (devices) require_kernels(*devices, needs_of(options, config, bound));
    return choice;
  }
  for (const BackendRow& row : backends()) {
    if (!row.devices) {
      choice.device = {row.name, 0};
      choice.backend = make(choice.device, options);
      choice.backend->check_activations(needs_of(options, config, bound));
      return choice;
    }
    const int count = row.devices->count();
    for (int index = 0; index < count; ++index) {
      std::string why_not;
      choice.device = {row.name, index};
      choice.backend = try_device(row, index, options, config, bound, why_not);
      if (choice.backend) return choice;
      const std::string number = count > 1 ? ":" + std::to_string(index) : "";
      choice.note += (choice.note.empty() ? "" : "; ") + choice.device.name + number + " is not used: " + why_not;
    }
  }
  throw Error(ErrorKind::run, "device", "none can be used", choice.note);
}

void require_room_for_weights(const Backend& backend, const std::vector<BoundTensor>& bound) {
  const auto left = backend.memory_left();
  const size_t wanted = planned_packed_bytes(bound, backend), available = left ? *left : available_memory();
  if (wanted > available)
    throw Error(ErrorKind::does_not_fit, "weights",
                "need " + human_size(wanted) + ", and " + human_size(available) + " are free on " + backend.describe(),
                "", left ? "a smaller quantisation, or the device cpu" : "a smaller quantisation");
}

}  // namespace infer
