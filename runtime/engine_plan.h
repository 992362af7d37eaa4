// What an engine with given options will need: the sizes of its steps, pages and buffers, checked and fitted to memory.
// Shared by Engine, which then allocates it, and inspect(), which only says it.
#pragma once

#include "infer.h"
#include "kernels/backend.h"
#include "models/config.h"
#include "runtime/plan.h"
#include "runtime/step_runner.h"

namespace infer {

struct EnginePlan {
  StepLimits limits;
  int64_t n_seqs = 1;
  size_t kv_bytes_per_token = 0;
  size_t kv_bytes = 0, rope_bytes = 0, activation_bytes = 0;
  size_t device_scratch_bytes = 0;  ///< at most what a device with memory of its own takes for its kernels
  size_t program_bytes = 0;         ///< of the program, where it shares the memory
  ContextCosts costs;               ///< what it was fitted by
  std::string cache_note;           ///< as in EngineStats
};

/// Bytes that an engine on this backend may take: what a device has left, or what is available of host memory beside
/// the part of a mapped file that is in use and must stay there although the system counts it as available.
size_t memory_for_engine(const Backend& backend, size_t mapped_bytes);

/// `ref` caches in float32 unless told otherwise, everything else in f16. `needs` receives the engine's part.
/// `available`: bytes that may be taken beside the weights. Throws Error: usage names the option, does_not_fit the
/// largest context.
EnginePlan plan_engine(const Config& config, const std::string& device, const EngineOptions& options, size_t available,
                       Needs& needs);

}  // namespace infer
