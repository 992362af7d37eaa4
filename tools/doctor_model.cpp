// `infer doctor -m MODEL`: whether the model runs here, with which context, how quickly at most, and what bounds it.
#include <fmt/format.h>

#include <algorithm>

#include "tools/bench_records.h"
#include "tools/bench_run.h"
#include "tools/doctor.h"

namespace infer::tools {
namespace {

std::string megabytes(double bytes) {
  return bytes < 1e9 ? fmt::format("{:.1f} MB", bytes / 1e6) : fmt::format("{:.2f} GB", bytes / 1e9);
}

bool has_windows(const ModelInfo& info) {
  return std::any_of(info.metadata.begin(), info.metadata.end(), [](const auto& pair) {
    return pair.first.ends_with("attention.sliding_window") && pair.second != "0";
  });
}

void say_speed(const ModelInfo& info, const MemoryPlan& plan, const Measured& measured, Section& out) {
  const bool gpu = info.device.starts_with("cuda");
  const double gbps = gpu ? measured.gpu_gbps : measured.cpu_gbps;
  const double operations = gpu ? measured.gpu_tflops * 1e12 : measured.cpu_gops * 1e9;
  if (gbps <= 0 || info.device.starts_with("ref")) return;
  const auto per_token = 2 * static_cast<double>(matrix_params(info));
  const Reach r = reach(info.stream_bytes, plan.kv_bytes_per_token, plan.n_ctx, gbps, per_token, operations);
  const auto weights = static_cast<double>(info.stream_bytes);
  const double cache = static_cast<double>(plan.kv_bytes_per_token) * static_cast<double>(plan.n_ctx);
  // Weights that stay in a cache are not read from memory again.
  const bool cached = !gpu && info.stream_bytes < 2 * measured.cpu_cache_bytes;
  out.add("generation",
          fmt::format("{} {:.1f} tok/s: {} of weights to a token, at {:.1f} GB/s{}", cached ? "about" : "at most",
                      r.empty_tok_s, megabytes(weights), gbps,
                      cached ? "; more, as far as they stay in the CPU's last cache" : ""),
          {{"tok_s", r.empty_tok_s},
           {"stream_bytes", info.stream_bytes},
           {"read_bandwidth_gbps", gbps},
           {"in_cache", cached}},
          Mark::good);
  // Layers with a window read less than all of the cache, so this is no limit for them.
  out.add("generation_full",
          fmt::format("{} {:.1f} tok/s with {} tokens in the context, whose cache is {} more",
                      cached || has_windows(info) ? "about" : "at most", r.full_tok_s, plan.n_ctx, megabytes(cache)),
          {{"tok_s", r.full_tok_s}, {"n_ctx", plan.n_ctx}, {"kv_bytes", cache}}, Mark::good);
  if (operations > 0 && per_token > 0)
    out.add("prompt",
            fmt::format("at most {:.0f} tok/s: {:.2f} GOP to a token, at {:.4g} T{}/s", r.prompt_tok_s, per_token / 1e9,
                        operations / 1e12, gpu ? "FLOP" : "OP"),
            {{"tok_s", r.prompt_tok_s}, {"operations_per_token", per_token}, {"operations_per_s", operations}},
            Mark::good);
  out.add("bound_by",
          cache > weights ? "reads of memory, most of them of the cache when the context is full: -ctk q8_0 -ctv q8_0"
                          : "reads of weights when generating (fewer bits are quicker), arithmetic in prompts",
          cache > weights ? "cache" : "weights");
}

void say_room(const MemoryPlan& plan, Section& out) {
  const bool shorter = plan.n_ctx < plan.context_length && plan.largest_ctx < plan.context_length;
  out.add("memory",
          fmt::format("{} of {} with {} positions", size_text(plan.total_bytes), size_text(plan.available_bytes),
                      plan.n_ctx),
          {{"total_bytes", plan.total_bytes}, {"available_bytes", plan.available_bytes}, {"n_ctx", plan.n_ctx}},
          Mark::good);
  out.add("context", fmt::format("{} positions fit, {} trained", plan.largest_ctx, plan.context_length),
          {{"largest", plan.largest_ctx}, {"trained", plan.context_length}}, shorter ? Mark::warn : Mark::good,
          shorter ? "a smaller cache fits more: -ctk q8_0 -ctv q8_0, or fewer bits of weights" : "");
}

}  // namespace

Reach reach(size_t stream_bytes, size_t kv_bytes_per_token, int64_t n_ctx, double gbps, double operations_per_token,
            double operations_per_second) {
  Reach r;
  const auto weights = static_cast<double>(stream_bytes);
  const double cache = static_cast<double>(kv_bytes_per_token) * static_cast<double>(n_ctx);
  if (weights > 0) r.empty_tok_s = gbps * 1e9 / weights, r.full_tok_s = gbps * 1e9 / (weights + cache);
  if (operations_per_token > 0) r.prompt_tok_s = operations_per_second / operations_per_token;
  return r;
}

Section check_model(const DoctorFlags& flags, const Measured& measured, int& status) {
  Section out{"model", "Model", {}};
  const auto fail = [&](ErrorKind kind, const std::string& why, const char* advice) {
    status = static_cast<int>(kind);
    out.add("runs", why, why, Mark::bad, advice);
  };
  constexpr const char* kSmaller =
      "a smaller quantisation, or fewer positions: -c; infer plan says what takes how much";
  try {
    const Inspection seen = Model::inspect(flags.model.path, flags.engine.n_ctx, flags.model.load);
    const ModelInfo& info = seen.info;
    out.add("file",
            fmt::format("{}, {} {}, {}", escaped(flags.model.path, 100), escaped(info.arch), info.file_type,
                        size_text(info.tensor_bytes)),
            {{"path", flags.model.path}, {"arch", info.arch}, {"type", info.file_type}, {"bytes", info.tensor_bytes}});
    const MemoryPlan plan = Model::plan(flags.model.path, flags.engine.options(flags.model), flags.model.load);
    if (!plan.refusal.empty()) return fail(ErrorKind::does_not_fit, plan.refusal, kSmaller), out;
    if (!seen.refusal.empty()) return fail(ErrorKind::bad_file, seen.refusal, ""), out;  // what a plan does not look at
    out.add("runs", "on " + info.device, info.device, info.device_note.empty() ? Mark::good : Mark::warn,
            info.device_note);
    say_room(plan, out);
    say_speed(info, plan, measured, out);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::usage) throw;  // says nothing about machine or model
    fail(error.kind(), error.what(), "");
  }
  return out;
}

}  // namespace infer::tools
