// Attention of few rows, as in decoding: lanes are keys for the scores (K is transposed once for all rows), then
// elements of the head for the sums. Bound by loads and shuffles: 25 GB/s of F16 cache a core at head size 64 with
// three rows, against 34 GB/s that a core reads at most (EPYC 9005, 2026-11-22).
#pragma once

#include "kernels/cpu/attention_block.h"

namespace infer::cpu {
namespace {

constexpr int kRowTile = kLanes == 16 ? 4 : 2;

/// Calls fn.operator()<n>(row) for tiles of at most kRowTile rows of [begin, end).
template <class Fn>
INFER_HD void for_row_tiles(int64_t begin, int64_t end, Fn fn) {
  int64_t r = begin;
  for (; r + kRowTile <= end; r += kRowTile) fn.template operator()<kRowTile>(r);
  if constexpr (kRowTile == 4) {
    if (end - r == 3) return fn.template operator()<3>(r);
    if (end - r == 2) return fn.template operator()<2>(r);
  }
  if (end - r == 1) fn.template operator()<1>(r);
}

template <int n>
void narrow_scores(const Work& w, int64_t row) {
  Vec acc[n][kKeyVectors];
  for (int r = 0; r < n; ++r) {
    for (int v = 0; v < kKeyVectors; ++v) acc[r][v] = Simd::set(0.0f);
  }
  const float *q = w.q + row * w.head_dim, *kt = w.k;
  const int64_t head_dim = w.head_dim;
  for (int64_t d = 0; d < head_dim; ++d, kt += kKeys) {
    for (int v = 0; v < kKeyVectors; ++v) {
      const Vec y = Simd::load(kt + v * kLanes);
      for (int r = 0; r < n; ++r) acc[r][v] = Simd::fma(y, Simd::set(q[r * head_dim + d]), acc[r][v]);
    }
  }
  for (int r = 0; r < n; ++r) {
    for (int v = 0; v < kKeyVectors; ++v) Simd::store(w.s + (row + r) * kKeys + v * kLanes, acc[r][v]);
  }
}

/// The keys [begin, end) of this page that the row sees.
INFER_HD void seen_keys(const Work& w, int64_t row, int64_t& begin, int64_t& end) {
  const int64_t position = w.b->first_position + row / w.b->group;
  begin = first_seen(position, w.b->window) - w.page_start;
  end = position + 1 - w.page_start;
  begin = begin < 0 ? 0 : begin;
  end = end > kKeys ? kKeys : end;
}

void narrow_softmax(const Work& w, int64_t row) {
  float* s = w.s + row * kKeys;
  Vec x[kKeyVectors];
  if (w.b->softcap > 0) {
    for (int v = 0; v < kKeyVectors; ++v) Simd::store(s + v * kLanes, capped(Simd::load(s + v * kLanes), w.b->softcap));
  }
  if (w.masked) {
    int64_t begin, end;
    seen_keys(w, row, begin, end);
    for (int64_t j = 0; j < kKeys; ++j) s[j] = j >= begin && j < end ? s[j] : kLowest;
  }
  Vec highest = Simd::load(s);
  for (int v = 1; v < kKeyVectors; ++v) highest = Simd::max(highest, Simd::load(s + v * kLanes));
  const Vec old_m = Simd::set(w.m[row]), new_m = Simd::max(old_m, Simd::max_all(highest)), shift = shift_of(new_m);
  const Vec correction = weight_of(Simd::sub(old_m, shift));
  for (int v = 0; v < kKeyVectors; ++v) {
    x[v] = weight_of(Simd::sub(Simd::load(s + v * kLanes), shift));
    Simd::store(s + v * kLanes, x[v]);
  }
  for (int half = kKeyVectors / 2; half > 0; half /= 2) {
    for (int v = 0; v < half; ++v) x[v] = Simd::add(x[v], x[v + half]);
  }
  w.l[row] = Simd::first(Simd::fma(Simd::set(w.l[row]), correction, Simd::sum_all(x[0])));
  w.m[row] = Simd::first(new_m);
  w.correction[row] = Simd::first(correction);
}

/// K^T[d][key] of a page, and a look ahead to the next. Keys that nobody sees come out as whatever lies there: each
/// stays in its own lane until its score is replaced.
template <class F>
void transpose_keys(const Work& w) {
  const auto* src = reinterpret_cast<const typename F::Block*>(w.k_page);
  const int64_t head_dim = w.head_dim, row_blocks = head_dim / F::block;
  const int64_t row_bytes = row_blocks * static_cast<int64_t>(sizeof(typename F::Block));
  // As many lines at a time as there are squares to transpose, so that the requests are spread over the work.
  const int64_t squares = head_dim / kLanes * kKeyVectors, share = squares > 0 ? row_bytes * kKeys / squares : 0;
  int64_t square = 0, d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    for (int v = 0; v < kKeyVectors; ++v, ++square) {
      fetch(w.next_k == nullptr ? nullptr : w.next_k + square * share, share);
      const auto* rows = src + v * kLanes * row_blocks;
      Simd::transpose([&](int r) { return load_numbers<F>(rows + r * row_blocks, d); }, w.k + d * kKeys + v * kLanes,
                      kKeys);
    }
  }
  for (; d < head_dim; ++d) {
    for (int j = 0; j < kKeys; ++j) w.k[d * kKeys + j] = load_number<F>(src + j * row_blocks, d);
  }
}

/// `width` vectors from element d on of O[row][d] = O[row][d] * correction[row] + sum_key S[row][key] * V[key][d] for n
/// rows and the keys in [begin, end).
template <class F, int n, int width>
INFER_HD void narrow_values_at(const Work& w, int64_t row, int64_t d, int64_t begin, int64_t end) {
  const int64_t head_dim = w.head_dim, row_blocks = head_dim / F::block;
  const int64_t row_bytes = row_blocks * static_cast<int64_t>(sizeof(typename F::Block));
  const auto* value = reinterpret_cast<const typename F::Block*>(w.v_page) + begin * row_blocks;
  const char* next = row == 0 && d == 0 && w.next_v != nullptr ? w.next_v + begin * row_bytes : nullptr;
  float* o = w.o + row * head_dim + d;
  const float* s = w.s + row * kKeys;
  Vec acc[n][width];
  for (int r = 0; r < n; ++r) {
    const Vec c = Simd::set(w.correction[row + r]);
    for (int v = 0; v < width; ++v) acc[r][v] = Simd::mul(Simd::load(o + r * head_dim + v * kLanes), c);
  }
  for (int64_t j = begin; j < end; ++j, value += row_blocks) {
    if (next != nullptr) {
      fetch(next, row_bytes);
      next += row_bytes;
    }
    Vec y[width];
    for (int v = 0; v < width; ++v) y[v] = load_numbers<F>(value, d + v * kLanes);
    for (int r = 0; r < n; ++r) {
      const Vec p = Simd::set(s[r * kKeys + j]);
      for (int v = 0; v < width; ++v) acc[r][v] = Simd::fma(y[v], p, acc[r][v]);
    }
  }
  for (int r = 0; r < n; ++r) {
    for (int v = 0; v < width; ++v) Simd::store(o + r * head_dim + v * kLanes, acc[r][v]);
  }
}

template <class F, int n>
void narrow_values(const Work& w, int64_t row, int64_t begin, int64_t end) {
  constexpr int kWidth = 4;
  const int64_t head_dim = w.head_dim, row_blocks = head_dim / F::block;
  int64_t d = 0;
  for (; d + kWidth * kLanes <= head_dim; d += kWidth * kLanes) {
    narrow_values_at<F, n, kWidth>(w, row, d, begin, end);
  }
  for (; d + kLanes <= head_dim; d += kLanes) narrow_values_at<F, n, 1>(w, row, d, begin, end);
  const auto* values = reinterpret_cast<const typename F::Block*>(w.v_page);
  for (; d < head_dim; ++d) {
    for (int64_t r = row; r < row + n; ++r) {
      Vec acc = Simd::set(w.o[r * head_dim + d] * w.correction[r]);
      for (int64_t j = begin; j < end; ++j) {
        const Vec y = Simd::set(load_number<F>(values + j * row_blocks, d));
        acc = Simd::fma(y, Simd::set(w.s[r * kKeys + j]), acc);
      }
      w.o[r * head_dim + d] = Simd::first(acc);
    }
  }
}

void narrow_page(const Work& w) {
  visit_in_list(KvFormats{}, w.b->k_type, [&]<class F>() { transpose_keys<F>(w); });
  for_row_tiles(0, w.rows, [&]<int n>(int64_t r) { narrow_scores<n>(w, r); });
  for (int64_t r = 0; r < w.rows; ++r) narrow_softmax(w, r);
  visit_in_list(KvFormats{}, w.b->v_type, [&]<class F>() {
    if (!w.edge) {
      for_row_tiles(0, w.rows, [&]<int n>(int64_t r) { narrow_values<F, n>(w, r, w.key_begin, w.key_end); });
      return;
    }
    // Each row takes just what it sees: a weight of 0 would not stop an infinity.
    for (int64_t r = 0; r < w.rows; ++r) {
      int64_t begin, end;
      seen_keys(w, r, begin, end);
      narrow_values<F, 1>(w, r, begin, end);
    }
  });
}

void narrow_queries(const Work& w) {
  const AttentionBlock& b = *w.b;
  for (int64_t r = 0; r < w.rows; ++r) {
    const float* q = b.q + r / b.group * b.q_stride + r % b.group * w.head_dim;
    for (int64_t d = 0; d < w.head_dim; ++d) w.q[r * w.head_dim + d] = q[d] * b.scale;
  }
}

}  // namespace
}  // namespace infer::cpu
