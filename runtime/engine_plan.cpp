// Checks EngineOptions and turns them into sizes.
#include "runtime/engine_plan.h"

#include <algorithm>

#include "runtime/memory.h"
#include "runtime/plan.h"

namespace infer {
namespace {

constexpr int64_t kMaxSeqs = 1024, kMaxBatch = 1 << 20, kMaxUbatch = 1 << 16, kMaxPool = int64_t{1} << 30;
constexpr int64_t kOutputs = 64;  // rows of logits at a time where EngineOptions leaves it open

void require_range(const char* option, int64_t value, int64_t min, int64_t max) {
  if (value < min || value > max)
    throw Error(ErrorKind::usage, option, "out of range", std::to_string(value),
                std::to_string(min) + " to " + std::to_string(max));
}

int64_t pages_for(int64_t positions) { return (positions + kPageTokens - 1) / kPageTokens; }

void check(const EngineOptions& o) {
  require_range("n_ctx", o.n_ctx, 0, kMaxContext);
  require_range("n_seqs", o.n_seqs, 1, kMaxSeqs);
  require_range("n_batch", o.n_batch, 1, kMaxBatch);
  require_range("n_ubatch", o.n_ubatch, 1, kMaxUbatch);
  require_range("n_outputs", o.n_outputs, 0, kMaxUbatch);
  require_range("n_threads", o.n_threads, 0, 1024);
  require_range("n_pool", o.n_pool, 0, kMaxPool);
  if (o.n_pool > 0 && o.n_pool < o.n_ctx)
    throw Error(ErrorKind::usage, "n_pool", "smaller than the context of one sequence", std::to_string(o.n_pool),
                "at least " + std::to_string(o.n_ctx));
}

}  // namespace

size_t memory_for_engine(const Backend& backend, size_t mapped_bytes) {
  if (const auto left = backend.memory_left()) return *left;
  const size_t available = available_memory();
  return available - std::min(available, mapped_bytes);
}

EnginePlan plan_engine(const Config& config, const std::string& device, const EngineOptions& options, size_t available,
                       Needs& needs) {
  check(options);
  EnginePlan plan;
  StepLimits& limits = plan.limits;
  plan.n_seqs = limits.max_seqs = options.n_seqs;
  const char* const usual = device == "ref" ? "f32" : "f16";
  limits.k_type = kv_type("k_type", options.k_type.empty() ? usual : options.k_type);
  limits.v_type = kv_type("v_type", options.v_type.empty() ? usual : options.v_type);
  // Every sequence gets its token in every step, however small the batch.
  limits.max_tokens = std::max(options.n_seqs, std::min(options.n_batch, options.n_ubatch));
  const int64_t n_outputs = options.n_outputs > 0 ? options.n_outputs : kOutputs;
  limits.max_outputs = std::max(options.n_seqs, std::min(limits.max_tokens, n_outputs));  // sequences need one each
  plan.kv_bytes_per_token = kv_bytes_per_token(config, limits.k_type, limits.v_type);
  const size_t rope_bytes = rope_bytes_per_position(config);
  ContextCosts& costs = plan.costs;
  needs.max_tokens = limits.max_tokens;
  needs.max_seqs = limits.max_seqs;
  const DeviceRow* const devices = find_backend(device).devices;
  if (devices) {
    plan.device_scratch_bytes = devices->scratch_bytes(needs);
    costs.spare_bytes = kDeviceSpareBytes;
  } else {
    plan.program_bytes = kProgramBytes;
  }
  // Devices with memory of their own draw the tokens there.
  const auto step_bytes = [&] {
    return StepRunner::scratch_bytes(config, limits) + (devices ? StepRunner::sampling_bytes(config, limits) : 0);
  };
  costs.fixed_bytes = step_bytes() + plan.program_bytes + plan.device_scratch_bytes;
  costs.bytes_per_position = rope_bytes;
  int64_t ceiling = config.n_ctx_train;
  if (options.n_pool > 0) {
    costs.fixed_bytes += static_cast<size_t>(pages_for(options.n_pool) * kPageTokens) * plan.kv_bytes_per_token;
    ceiling = std::min(ceiling, options.n_pool);
  } else {
    costs.bytes_per_position += static_cast<size_t>(options.n_seqs) * plan.kv_bytes_per_token;
    ceiling = std::min(ceiling, kMaxPool / options.n_seqs);
  }
  limits.n_ctx = choose_context(options.n_ctx, ceiling, costs, available);
  limits.n_pages = options.n_pool > 0 ? pages_for(options.n_pool) : options.n_seqs * pages_for(limits.n_ctx);
  if (limits.n_pages * kPageTokens > kMaxPool)
    throw Error(ErrorKind::usage, "n_ctx", "too many positions in all",
                std::to_string(options.n_seqs) + " sequences of " + std::to_string(limits.n_ctx),
                std::to_string(kMaxPool) + " positions");
  limits.max_tokens = std::min(limits.max_tokens, limits.n_pages * kPageTokens);
  limits.max_outputs = std::min(limits.max_outputs, limits.max_tokens);
  plan.kv_bytes = static_cast<size_t>(limits.n_pages * kPageTokens) * plan.kv_bytes_per_token;
  plan.rope_bytes = static_cast<size_t>(limits.n_ctx) * rope_bytes;
  plan.activation_bytes = step_bytes();
  needs.k_type = limits.k_type;
  needs.v_type = limits.v_type;
  needs.max_tokens = limits.max_tokens;
  needs.max_seqs = limits.max_seqs;
  needs.max_context = limits.n_ctx;
  if (devices) plan.cache_note = devices->slow_cache(needs);
  return plan;
}

}  // namespace infer
