// Rotation tables: plain, linearly stretched, YaRN (arXiv:2309.00071), dynamic NTK and per-frequency divisors
// (Llama 3.x, longrope). Where a scaling depends on how long a text is, the size of the context decides, once and for
// all: keys that are in the cache already could not follow. Angles are made in double, since a float angle is off by
// 1e-2 radians at position 2^17. Knows nothing of heads or backends.
#include <algorithm>
#include <cmath>

#include "models/decoder.h"

namespace infer {
namespace {

constexpr double kPi = 3.14159265358979323846;

/// YaRN: the (fractional) pair whose wave turns `turns` times within the original context.
double yarn_pair(const RopeConfig& rope, double turns) {
  return static_cast<double>(rope.dim) * std::log(static_cast<double>(rope.original_context) / (turns * 2 * kPi)) /
         (2 * std::log(rope.base));
}

/// YaRN: how much of pair i keeps its frequency, from 1 (fast waves) down to 0 (slow ones, stretched whole).
double yarn_kept(const RopeConfig& rope, double i) {
  const double last = static_cast<double>(rope.dim - 1);
  const double fast = yarn_pair(rope, rope.beta_fast), slow = yarn_pair(rope, rope.beta_slow);
  const double low = std::max(0.0, rope.whole_pairs ? std::floor(fast) : fast);
  const double high = std::min(last, rope.whole_pairs ? std::ceil(slow) : slow);
  return 1 - std::clamp((i - low) / std::max(0.001, high - low), 0.0, 1.0);
}

/// Dynamic NTK: the base whose slowest wave, in a context of n_ctx positions, is stretched by as much as linear scaling
/// would stretch it, with the stretch growing from 1 at the original context by `factor` for each further one.
double dynamic_base(const RopeConfig& rope, int64_t n_ctx) {
  const double original = static_cast<double>(rope.original_context), dim = static_cast<double>(rope.dim);
  const double contexts = std::max(1.0, static_cast<double>(n_ctx) / original);
  return rope.base * std::pow(rope.factor * contexts - (rope.factor - 1), dim / (dim - 2));
}

/// Radians per position of pair i.
double frequency(const RopeConfig& rope, int64_t n_ctx, int64_t i) {
  const double pair = static_cast<double>(i);
  const double base = rope.scaling == RopeScaling::dynamic ? dynamic_base(rope, n_ctx) : rope.base;
  double plain = std::pow(base, -2 * pair / static_cast<double>(rope.dim));
  const bool is_long = !rope.long_divisors.empty() && n_ctx > rope.original_context;
  const std::vector<float>& divisors = is_long ? rope.long_divisors : rope.divisors;
  if (!divisors.empty()) plain /= static_cast<double>(divisors[static_cast<size_t>(i)]);
  if (rope.scaling == RopeScaling::none || rope.scaling == RopeScaling::dynamic) return plain;
  const double kept = rope.scaling == RopeScaling::yarn ? yarn_kept(rope, pair) * rope.ext_factor : 0;
  return plain / rope.factor * (1 - kept) + plain * kept;
}

}  // namespace

std::vector<float> llama3_divisors(int64_t dim, double base, double factor, double low, double high,
                                   double original_context) {
  std::vector<float> out;
  for (int64_t i = 0; i < dim / 2; ++i) {
    const double plain = std::pow(base, -2 * static_cast<double>(i) / static_cast<double>(dim));
    const double turns = original_context * plain / (2 * kPi);
    const double kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    out.push_back(static_cast<float>(1 / (kept + (1 - kept) / factor)));
  }
  return out;
}

void fill_rope_table(const RopeConfig& rope, int64_t n_ctx, int64_t from, int64_t to, float* rows) {
  const int64_t pairs = rope.dim / 2;
  std::vector<double> frequencies;
  for (int64_t i = 0; i < pairs; ++i) frequencies.push_back(frequency(rope, n_ctx, i));
  // YaRN sharpens attention by a factor that grows with the stretch, unless it is switched off by ext_factor 0.
  const bool sharpen = rope.scaling == RopeScaling::yarn && rope.ext_factor != 0 && rope.factor > 1;
  const double length = rope.attn_factor * (sharpen ? 1 + 0.1 * std::log(rope.factor) : 1);
  for (int64_t position = from; position < to; ++position) {
    float* row = rows + (position - from) * rope.dim;
    for (int64_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(position) * frequencies[static_cast<size_t>(i)];
      row[2 * i] = static_cast<float>(std::cos(angle) * length);
      row[2 * i + 1] = static_cast<float>(std::sin(angle) * length);
    }
  }
}

}  // namespace infer
