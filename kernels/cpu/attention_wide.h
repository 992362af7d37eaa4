// Attention of many rows: lanes are rows. Scores are S^T[key][row] and sums O^T[d][row], keys and values are broadcast
// from memory, so that neither K is transposed nor the softmax needs a sum across lanes. Work per page and 16 rows: 64
// fma a head element, 32 exp. Bound by the fma units: 160 GFLOP/s on a core whose peak is 235 at head size 256, 140 at
// 64 (EPYC 9005, 2026-11-22).
#pragma once

#include "kernels/cpu/attention_block.h"

namespace infer::cpu {
namespace {

/// Calls fn.operator()<n>() for n in 1..kMaxRowVectors.
template <class Fn>
INFER_HD void with_vectors(int64_t n, Fn fn) {
  if (n == 1) {
    fn.template operator()<1>();
  } else if (n == 2) {
    fn.template operator()<2>();
  } else {
    fn.template operator()<3>();
  }
}

/// S^T[key][row] = sum_d K[key][d] * Q^T[d][row] for `keys` keys at a time.
template <int n, int keys>
void wide_scores(const Work& w, int key) {
  Vec acc[keys][n];
  for (int j = 0; j < keys; ++j) {
    for (int v = 0; v < n; ++v) acc[j][v] = Simd::set(0.0f);
  }
  const float* k = w.k + key * w.head_dim;
  const float* q = w.q;
  const int64_t head_dim = w.head_dim;
  for (int64_t d = 0; d < head_dim; ++d, q += n * kLanes) {
    Vec x[n];
    for (int v = 0; v < n; ++v) x[v] = Simd::load(q + v * kLanes);
    for (int j = 0; j < keys; ++j) {
      const Vec y = Simd::set(k[j * head_dim + d]);
      for (int v = 0; v < n; ++v) acc[j][v] = Simd::fma(y, x[v], acc[j][v]);
    }
  }
  for (int j = 0; j < keys; ++j) {
    for (int v = 0; v < n; ++v) Simd::store(w.s + ((key + j) * n + v) * kLanes, acc[j][v]);
  }
}

/// Whether the rows at positions `p` see the key at position `key`.
INFER_HD Simd::Mask sees(Vec p, int64_t key, int64_t window) {
  const auto at = static_cast<float>(key);
  const Simd::Mask causal = Simd::less(Simd::set(at - 0.5f), p);
  if (window <= 0) return causal;
  return Simd::both(causal, Simd::less(p, Simd::set(at + static_cast<float>(window) - 0.5f)));
}

/// Scores become weights, in place; m, l and correction of the rows move on by this page.
template <int n>
void wide_softmax(const Work& w, int v) {
  const Vec lowest = Simd::set(kLowest), p = Simd::load(w.position + v * kLanes);
  float* s = w.s + v * kLanes;
  Vec highest = lowest;
  for (int j = 0; j < kKeys; ++j) {
    Vec x = Simd::load(s + j * n * kLanes);
    if (w.b->softcap > 0) x = capped(x, w.b->softcap);
    if (w.masked) x = Simd::select(sees(p, w.page_start + j, w.b->window), x, lowest);
    if (w.masked || w.b->softcap > 0) Simd::store(s + j * n * kLanes, x);
    highest = Simd::max(highest, x);
  }
  const Vec old_m = Simd::load(w.m + v * kLanes), new_m = Simd::max(old_m, highest), shift = shift_of(new_m);
  const Vec correction = weight_of(Simd::sub(old_m, shift));
  Vec sum[8];
  for (int j = 0; j < 8; ++j) {
    Vec x[4];
    for (int i = 0; i < 4; ++i) {
      float* at = s + (j + 8 * i) * n * kLanes;
      x[i] = weight_of(Simd::sub(Simd::load(at), shift));
      Simd::store(at, x[i]);
    }
    sum[j] = Simd::add(Simd::add(x[0], x[2]), Simd::add(x[1], x[3]));
  }
  for (int half = 4; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) sum[j] = Simd::add(sum[j], sum[j + half]);
  }
  Simd::store(w.l + v * kLanes, Simd::fma(Simd::load(w.l + v * kLanes), correction, sum[0]));
  Simd::store(w.m + v * kLanes, new_m);
  Simd::store(w.correction + v * kLanes, correction);
}

/// O^T[d][row] = O^T[d][row] * correction[row] + sum_key V[key][d] * S^T[key][row] for `ds` elements at a time.
template <int n, int ds, bool guarded>
void wide_values(const Work& w, int64_t d) {
  Vec acc[ds][n];
  float* o = w.o + d * n * kLanes;
  for (int i = 0; i < ds; ++i) {
    for (int v = 0; v < n; ++v) {
      acc[i][v] = Simd::mul(Simd::load(o + (i * n + v) * kLanes), Simd::load(w.correction + v * kLanes));
    }
  }
  const float *value = w.v + d, *s = w.s;
  const int64_t head_dim = w.head_dim;
  for (int j = 0; j < kKeys; ++j, value += head_dim, s += n * kLanes) {
    Vec x[n];
    Simd::Mask seen[n];
    for (int v = 0; v < n; ++v) x[v] = Simd::load(s + v * kLanes);
    if constexpr (guarded) {
      for (int v = 0; v < n; ++v) {
        seen[v] = sees(Simd::load(w.position + v * kLanes), w.page_start + j, w.b->window);
      }
    }
    for (int i = 0; i < ds; ++i) {
      const Vec y = Simd::set(value[i]);
      for (int v = 0; v < n; ++v) {
        const Vec next = Simd::fma(y, x[v], acc[i][v]);
        if constexpr (guarded) {
          acc[i][v] = Simd::select(seen[v], next, acc[i][v]);
        } else {
          acc[i][v] = next;
        }
      }
    }
  }
  for (int i = 0; i < ds; ++i) {
    for (int v = 0; v < n; ++v) Simd::store(o + (i * n + v) * kLanes, acc[i][v]);
  }
}

/// What fits the registers: 24 or 12 accumulators beside the operands.
constexpr int kWideTile = kLanes == 16 ? 8 : 4;

template <int n, bool guarded>
INFER_HD void all_wide_values(const Work& w) {
  int64_t d = 0;
  for (; d + kWideTile <= w.head_dim; d += kWideTile) wide_values<n, kWideTile, guarded>(w, d);
  for (; d < w.head_dim; ++d) wide_values<n, 1, guarded>(w, d);
}

/// An infinity or a NaN among the values must reach only the rows that see it; 0 * inf would reach all.
bool all_finite(const float* x, int64_t n) {
  Vec sum = Simd::set(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sum = Simd::fma(Simd::load(x + i), Simd::set(0.0f), sum);
  for (; i < n; ++i) sum = Simd::fma(Simd::set(x[i]), Simd::set(0.0f), sum);
  const float all = Simd::first(Simd::sum_all(sum));
  return all == 0.0f;
}

template <int n>
void wide_page(const Work& w) {
  const AttentionBlock& b = *w.b;
  decode_page(b.k_type, w.k_page, w.next_k, w.key_begin, w.key_end, w.head_dim, w.k);
  decode_page(b.v_type, w.v_page, w.next_v, w.key_begin, w.key_end, w.head_dim, w.v);
  for (int j = 0; j < kKeys; j += kWideTile) wide_scores<n, kWideTile>(w, j);
  for (int v = 0; v < n; ++v) wide_softmax<n>(w, v);
  if (!w.edge || all_finite(w.v, kKeys * w.head_dim)) {
    all_wide_values<n, false>(w);
  } else {
    all_wide_values<n, true>(w);
  }
}

/// Q^T[d][row], scaled. Rows of the padding repeat the last one: what they give is thrown away.
void wide_queries(const Work& w) {
  const AttentionBlock& b = *w.b;
  for (int64_t r = 0; r < w.padded; ++r) {
    const int64_t row = r < w.rows ? r : w.rows - 1, t = row / b.group;
    const float* q = b.q + t * b.q_stride + row % b.group * w.head_dim;
    for (int64_t d = 0; d < w.head_dim; ++d) w.acc[r * w.head_dim + d] = q[d] * b.scale;
    w.position[r] = static_cast<float>(b.first_position + t);
  }
  for (int64_t r = 0; r < w.padded; r += kLanes) {
    const float* from = w.acc + r * w.head_dim;
    int64_t d = 0;
    for (; d + kLanes <= w.head_dim; d += kLanes) {
      Simd::transpose([&](int i) { return Simd::load(from + i * w.head_dim + d); }, w.q + d * w.padded + r, w.padded);
    }
    for (; d < w.head_dim; ++d) {
      for (int i = 0; i < kLanes; ++i) w.q[d * w.padded + r + i] = from[i * w.head_dim + d];
    }
  }
}

/// result[row][d] from O^T[d][row].
void wide_result(const Work& w) {
  for (int64_t r = 0; r < w.padded; r += kLanes) {
    int64_t d = 0;
    for (; d + kLanes <= w.head_dim; d += kLanes) {
      const float* from = w.o + d * w.padded + r;
      Simd::transpose([&](int i) { return Simd::load(from + i * w.padded); }, w.result + r * w.head_dim + d,
                      w.head_dim);
    }
    for (; d < w.head_dim; ++d) {
      for (int i = 0; i < kLanes; ++i) w.result[(r + i) * w.head_dim + d] = w.o[d * w.padded + r + i];
    }
  }
}

}  // namespace
}  // namespace infer::cpu
