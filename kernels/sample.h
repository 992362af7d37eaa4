// From a row of logits to a token where a backend draws by itself: the rule of one row in pieces that g++ and nvcc both
// compile, and the whole op in plain C++, against which kernels are tested. The chain and its order are those of the
// runtime's sampler: penalties, top-k, top-p, min-p, temperature, draw; filters look at the untempered distribution and
// ties go to the lower id. Random numbers are counted, not kept: number n of a seed is a function of the two.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/ops.h"
#include "quant/host_device.h"

namespace infer {

/// Candidates that a device can choose among.
inline constexpr int32_t kMaxSampleTopK = 64;

/// Tensor::as<T>(), on the device too.
template <class T>
INFER_HD T* sample_data(const Tensor& t) {
  return static_cast<T*>(t.data);
}

/// Whether the penalties change anything.
INFER_HD bool penalises(const SampleRow& row) {
  return row.repeat_last_n != 0 && (row.repeat_penalty != 1 || row.presence_penalty != 0 || row.frequency_penalty != 0);
}

/// What the op is defined for: the largest logit, or a draw among at most kMaxSampleTopK; penalties that look back on
/// at most kSampleHistory tokens.
INFER_HD bool sample_row_supported(const SampleRow& row) {
  if (penalises(row) && (row.repeat_last_n < 0 || row.repeat_last_n > kSampleHistory)) return false;
  return row.temperature == 0 || (row.top_k >= 1 && row.top_k <= kMaxSampleTopK);
}

INFER_HD bool is_finite_bits(uint32_t bits) { return (bits & 0x7F800000u) != 0x7F800000u; }

/// Bits of a finite float as an integer that grows with it; never 0, which stands for "nothing". Both zeros are one.
INFER_HD uint32_t sample_key(uint32_t bits) {
  if (bits == 0x80000000u) bits = 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
INFER_HD uint32_t sample_key_bits(uint32_t key) { return key & 0x80000000u ? key & 0x7FFFFFFFu : ~key; }

/// A logit after `count` occurrences of its token among those that count. Stays finite.
INFER_HD float penalised(float logit, int32_t count, const SampleRow& row) {
  const float less = multiply_then_add(static_cast<float>(count), row.frequency_penalty, row.presence_penalty);
  const float out = logit > 0 ? logit / row.repeat_penalty - less : multiply_then_add(logit, row.repeat_penalty, -less);
  const float largest = 3.402823466e38f;
  return out > largest ? largest : out < -largest ? -largest : out;
}

/// Uniform in [0, 1): output number n_drawn of SplitMix64 started at `seed`.
INFER_HD double sample_uniform(uint64_t seed, uint64_t n_drawn) {
  uint64_t z = seed + (n_drawn + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/// Weights of a candidate beside the largest logit: as it is, for top-p, and tempered, for the draw.
INFER_HD double plain_weight(float logit, float largest) {
  return exp(static_cast<double>(logit) - static_cast<double>(largest));
}
INFER_HD float tempered_weight(float logit, float largest, float temperature) {
  const float below = logit - largest;
  return below == 0 ? 1.0f : static_cast<float>(exp(below * (1.0 / static_cast<double>(temperature))));
}

/// Which of the n candidates left by top-k, largest first, is drawn: top-p, min-p and the draw, one after the other.
/// `least` is the smallest logit that min-p lets through.
INFER_HD int32_t pick_candidate(const float* logits, const double* plain, const float* tempered, int32_t n, float top_p,
                                float least, double uniform) {
  if (top_p < 1) {
    double total = 0, sum = 0;
    for (int32_t i = 0; i < n; ++i) total += plain[i];
    for (int32_t i = 0; i < n; ++i) {
      sum += plain[i];
      if (sum >= static_cast<double>(top_p) * total) n = i + 1;
    }
  }
  while (n > 1 && logits[n - 1] < least) --n;
  double total = 0;
  for (int32_t i = 0; i < n; ++i) total += tempered[i];
  double left = uniform * total;
  int32_t last = 0;
  for (int32_t i = 0; i < n; ++i) {
    if (tempered[i] > 0) last = i;
    left -= tempered[i];
    if (left < 0) break;
  }
  return last;
}

/// The smallest logit that min-p lets through; the largest itself stays whatever rounding does.
INFER_HD float min_p_bound(float largest, float min_p) {
  return min_p > 0 ? fminf(largest, largest + logf(min_p)) : -3.402823466e38f;
}

/// Moves a row on by the token drawn.
INFER_HD void advance_row(const SampleArgs& args, int64_t i, SampleRow& row, int32_t id) {
  if (penalises(row)) sample_data<int32_t>(args.history)[i * kSampleHistory + row.n_history % kSampleHistory] = id;
  row.n_history += 1;
  if (row.temperature > 0) row.n_drawn += 1;
  sample_data<int32_t>(args.out)[i] = id;
  if (!args.positions.data) return;
  sample_data<int32_t>(args.positions)[i] += 1;
  sample_data<int32_t>(args.slots)[i] += 1;
  sample_data<int32_t>(args.kv_len)[i] += 1;
}

/// Tokens of the row's ring that the penalties count; the oldest is at (n_history - this) % kSampleHistory.
INFER_HD int32_t n_penalised(const SampleRow& row) {
  return !penalises(row) ? 0 : row.n_history < row.repeat_last_n ? row.n_history : row.repeat_last_n;
}

// ---- the whole op in plain C++, for tensors in host memory; SampleArgs::group_max is not used -----------------------

inline void penalise_on_host(const SampleArgs& args, int64_t i, const SampleRow& row, float* logits) {
  const int32_t* ring = args.history.as<int32_t>() + i * kSampleHistory;
  std::vector<int32_t> recent;
  for (int32_t t = row.n_history - n_penalised(row); t < row.n_history; ++t)
    if (ring[t % kSampleHistory] < args.n_valid) recent.push_back(ring[t % kSampleHistory]);
  std::sort(recent.begin(), recent.end());
  for (size_t begin = 0, end; begin < recent.size(); begin = end) {
    for (end = begin; end < recent.size() && recent[end] == recent[begin];) ++end;
    float& logit = logits[recent[begin]];
    logit = penalised(logit, static_cast<int32_t>(end - begin), row);
  }
}

inline int32_t draw_on_host(const float* logits, int64_t n_valid, const SampleRow& row) {
  std::vector<int32_t> ids(static_cast<size_t>(n_valid));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  const size_t k = row.temperature == 0 ? 1 : std::min(ids.size(), static_cast<size_t>(row.top_k));
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(k), ids.end(),
                    [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  if (row.temperature == 0) return ids[0];
  std::vector<float> best(k), tempered(k);
  std::vector<double> plain(k);
  for (size_t i = 0; i < k; ++i) {
    best[i] = logits[ids[i]];
    plain[i] = plain_weight(best[i], best[0]);
    tempered[i] = tempered_weight(best[i], best[0], row.temperature);
  }
  const int32_t chosen = pick_candidate(best.data(), plain.data(), tempered.data(), static_cast<int32_t>(k), row.top_p,
                                        min_p_bound(best[0], row.min_p), sample_uniform(row.seed, row.n_drawn));
  return ids[static_cast<size_t>(chosen)];
}

inline void sample_on_host(const SampleArgs& args) {
  const int64_t vocab = args.logits.dims[1];
  for (int64_t i = 0; i < args.logits.dims[0]; ++i) {
    SampleRow& row = args.rows.as<SampleRow>()[i];
    if (!row.enabled) continue;
    float* logits = args.logits.as<float>() + i * vocab;
    Drawn drawn;
    drawn.finite =
        std::all_of(logits, logits + vocab, [](float x) { return is_finite_bits(std::bit_cast<uint32_t>(x)); });
    if (drawn.finite) {
      penalise_on_host(args, i, row, logits);
      drawn.id = draw_on_host(logits, args.n_valid, row);
    }
    advance_row(args, i, row, drawn.id);
    args.host_out.as<Drawn>()[i] = drawn;
  }
}

}  // namespace infer
