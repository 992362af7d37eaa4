// The arithmetic of plan.h.
#include "runtime/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "infer/error.h"
#include "kernels/kv_format.h"
#include "kernels/ops.h"

namespace infer {
namespace {

const char* const kNothingFits = "nothing; fewer sequences, fewer tokens at a time or smaller weights need less";

}  // namespace

DType kv_type(const std::string& option, const std::string& name) {
  const bool capitals = std::any_of(name.begin(), name.end(), [](char c) { return c >= 'A' && c <= 'Z'; });
  const FormatInfo* format = capitals ? nullptr : find_format(name);
  if (format && is_kv_format(format->id)) return format->id;
  throw Error(ErrorKind::usage, option, "unknown type of KV cache", '"' + escaped(name) + '"', kKvFormatNames);
}

size_t kv_bytes_per_token(const Config& config, DType k_type, DType v_type) {
  int64_t row_total = 0;
  for (DType type : {k_type, v_type}) {
    const int64_t row = row_bytes(type, config.head_dim);
    if (row < 0)
      throw Error(ErrorKind::usage, "KV cache", format_name(type) + " needs heads of a multiple of 32",
                  std::to_string(config.head_dim), "f32, f16, bf16");
    row_total += row;
  }
  return static_cast<size_t>(row_total * config.n_kv_heads * config.n_layers);
}

size_t rope_bytes_per_position(const Config& config) {
  size_t bytes = 0;
  for (const RopeConfig& rope : config.ropes) bytes += static_cast<size_t>(rope.dim) * sizeof(float);
  return bytes;
}

int64_t largest_context(const ContextCosts& costs, size_t available) {
  if (available < costs.fixed_bytes) return 0;
  const size_t fits = (available - costs.fixed_bytes) / std::max<size_t>(1, costs.bytes_per_position);
  return std::min(static_cast<int64_t>(std::min<size_t>(fits, kMaxContext)), kMaxContext) / kPageTokens * kPageTokens;
}

int64_t choose_context(int64_t wanted, int64_t ceiling, const ContextCosts& costs, size_t available) {
  if (wanted > 0) {
    const auto pages = static_cast<size_t>((wanted + kPageTokens - 1) / kPageTokens);
    const size_t needed = costs.fixed_bytes + pages * kPageTokens * costs.bytes_per_position;
    if (needed <= available) return wanted;
    const int64_t largest = largest_context(costs, available);
    throw Error(
        ErrorKind::does_not_fit, "context",
        fmt::format("{} positions need {}, and {} are available", wanted, human_size(needed), human_size(available)),
        std::to_string(wanted), largest > 0 ? fmt::format("at most {}", largest) : kNothingFits);
  }
  const size_t spared = available - std::min(available, costs.spare_bytes);
  const int64_t largest = largest_context(costs, spared);
  if (largest == 0)
    throw Error(ErrorKind::does_not_fit, "context",
                fmt::format("{} beside the weights are needed before the first token, and {} are available",
                            human_size(costs.fixed_bytes + kPageTokens * costs.bytes_per_position), human_size(spared)),
                "", kNothingFits);
  return std::min(ceiling, largest);
}

std::string human_size(size_t bytes) {
  const char* const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(units); ++unit) value /= 1024;
  return unit == 0 ? fmt::format("{} bytes", bytes) : fmt::format("{:.1f} {}", value, units[unit]);
}

}  // namespace infer
