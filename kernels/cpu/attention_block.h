// What a block of attention works on: its place in scratch, its pages as floats, and the running sums of its rows.
// Included by the files compiled for one instruction set only, like all of attention_*.h but attention.h.
#pragma once

#include "kernels/cpu/attention.h"
#include "kernels/cpu/hadamard.h"
#include "kernels/cpu/simd.h"

namespace infer::cpu {
namespace {

constexpr int kKeys = static_cast<int>(kPageTokens);
constexpr int kKeyVectors = kKeys / kLanes;
constexpr int kMaxRowVectors = 3;
constexpr int kMaxRows = kMaxRowVectors * kLanes;
constexpr int kFewRows = kLanes / 2;
constexpr float kLowest = -__builtin_inff();

/// e^x for x <= 0, and 0 where the result would be no normal float.
INFER_HD Vec weight_of(Vec x) { return Simd::select(Simd::less(x, Simd::set(-87.0f)), Simd::set(0.0f), exp(x)); }

/// What is taken off the scores. A row that has seen nothing yet has the maximum -inf, and -inf - -inf is no number.
INFER_HD Vec shift_of(Vec highest) {
  const Vec zero = Simd::set(0.0f);
  return Simd::select(Simd::less(highest, Simd::set(-3.4e38f)), zero, highest);
}

// ---- running state of a row -----------------------------------------------------------------------------------------

/// acc and (m, l) of a row take in the open sums (m1, l1, o) of the next split.
void fold(float& m, float& l, float* acc, float m1, float l1, const float* o, int64_t head_dim) {
  const Vec old_m = Simd::set(m), new_m = Simd::max(old_m, Simd::set(m1)), shift = shift_of(new_m);
  const Vec a = weight_of(Simd::sub(old_m, shift)), b = weight_of(Simd::sub(Simd::set(m1), shift));
  m = Simd::first(new_m);
  l = Simd::first(Simd::fma(Simd::set(l), a, Simd::mul(Simd::set(l1), b)));
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    Simd::store(acc + d, Simd::fma(Simd::load(acc + d), a, Simd::mul(Simd::load(o + d), b)));
  }
  const float a1 = Simd::first(a), b1 = Simd::first(b);
  for (; d < head_dim; ++d) acc[d] = Simd::first(Simd::fma(Simd::set(acc[d]), Simd::set(a1), Simd::set(o[d] * b1)));
}

void finish(float m, float l, const float* acc, const float* sink, int64_t head_dim, int64_t v_rotation, float* out) {
  float factor = 1.0f;
  if (sink != nullptr) {
    const Vec old_m = Simd::set(m), new_m = Simd::max(old_m, Simd::set(*sink));
    const Vec a = weight_of(Simd::sub(old_m, new_m)), b = weight_of(Simd::sub(Simd::set(*sink), new_m));
    l = Simd::first(Simd::fma(Simd::set(l), a, b));
    factor = Simd::first(a);
  }
  factor /= l;
  for (int64_t d = 0; d < head_dim; ++d) out[d] = acc[d] * factor;
  hadamard(out, head_dim, v_rotation);
}

void merge(const float* partials, int64_t n_splits, int64_t stride, int64_t head_dim, int64_t v_rotation,
           const float* sink, float* out) {
  float m = kLowest, l = 0;
  for (int64_t d = 0; d < head_dim; ++d) out[d] = 0;
  for (int64_t s = 0; s < n_splits; ++s) {
    const float* p = partials + s * stride;
    fold(m, l, out, p[0], p[1], p + 2, head_dim);
  }
  finish(m, l, out, sink, head_dim, v_rotation, out);
}

// ---- pages ----------------------------------------------------------------------------------------------------------

/// kLanes numbers from number i of a row, i a multiple of kLanes.
template <class F>
INFER_HD Vec load_numbers(const typename F::Block* row, int64_t i) {
  if constexpr (F::id == DType::Q8_0) {
    const typename F::Block& block = row[i / kGroup];
    return Simd::mul(Simd::set(f16_to_f32(block.d)), Simd::load_i8(block.code + i % kGroup));
  } else if constexpr (F::id == DType::Q4_0) {
    const typename F::Block& block = row[i / kGroup];
    const Vec code = Simd::load_u4(block.qs + i % 16, i % kGroup < 16 ? 0 : 4);
    return Simd::mul(Simd::set(f16_to_f32(block.d)), Simd::sub(code, Simd::set(8.0f)));
  } else if constexpr (F::id == DType::F16) {
    return Simd::load_f16(&row[i].bits);
  } else if constexpr (F::id == DType::BF16) {
    return Simd::load_bf16(&row[i].bits);
  } else {
    return Simd::load(&row[i].value);
  }
}

template <class F>
INFER_HD float load_number(const typename F::Block* row, int64_t i) {
  if constexpr (F::id == DType::Q8_0) {
    return f16_to_f32(row[i / kGroup].d) * row[i / kGroup].code[i % kGroup];
  } else if constexpr (F::id == DType::Q4_0) {
    const int q = bits::split_nibble(row[i / kGroup].qs, static_cast<int>(i % kGroup));
    return f16_to_f32(row[i / kGroup].d) * static_cast<float>(q - 8);
  } else {
    return F::decode(row[i]);
  }
}

/// Pages lie anywhere, so no hardware guesses the next one: asks for `bytes` of it at p, if there is one.
INFER_HD void fetch(const char* p, int64_t bytes) {
  if (p == nullptr) return;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

/// n numbers; meanwhile the same range of the page that comes next is fetched.
template <class F>
INFER_HD void decode_numbers(const typename F::Block* src, const char* next, int64_t n, float* dst) {
  constexpr int64_t kStep = 64;
  constexpr auto kStepBytes = kStep / F::block * static_cast<int64_t>(sizeof(typename F::Block));
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    fetch(next == nullptr ? nullptr : next + i / kStep * kStepBytes, kStepBytes);
    for (int64_t j = i; j < i + kStep; j += kLanes) Simd::store(dst + j, load_numbers<F>(src, j));
  }
  for (; i < n; ++i) dst[i] = load_number<F>(src, i);
}

/// Rows [begin, end) of a page as floats; the others become 0: they may hold anything.
void decode_page(DType dtype, const char* page, const char* next, int64_t begin, int64_t end, int64_t head_dim,
                 float* dst) {
  visit_in_list(KvFormats{}, dtype, [&]<class F>() {
    const int64_t skipped = begin * head_dim / F::block;
    const auto* src = reinterpret_cast<const typename F::Block*>(page) + skipped;
    const char* ahead = next;
    if (next != nullptr) ahead += skipped * static_cast<int64_t>(sizeof(typename F::Block));
    for (int64_t i = 0; i < begin * head_dim; ++i) dst[i] = 0;
    decode_numbers<F>(src, ahead, (end - begin) * head_dim, dst + begin * head_dim);
    for (int64_t i = end * head_dim; i < kKeys * head_dim; ++i) dst[i] = 0;
  });
}

// ---- the block ------------------------------------------------------------------------------------------------------

/// Everything of a block in scratch. R = rows, padded to whole vectors where lanes are rows.
struct Work {
  const AttentionBlock* b;
  int64_t rows, row_vectors, padded, head_dim;
  int64_t page_start, key_begin, key_end;         ///< of this page: the keys that any row sees
  bool edge;                                      ///< some row does not see all of [key_begin, key_end)
  bool masked;                                    ///< some row does not see all of the page
  const char *k_page, *v_page, *next_k, *next_v;  ///< next: null after the last page
  float *q, *k, *v, *s, *o, *acc, *result;
  float *m, *l, *total_m, *total_l, *position, *correction;
};

INFER_HD float* take(float*& from, int64_t n) {
  float* p = from;
  from += (n + 15) / 16 * 16;
  return p;
}

Work make_work(const AttentionBlock& b) {
  Work w{};
  w.b = &b;
  w.head_dim = b.head_dim;
  w.rows = b.n_tokens * b.group;
  w.row_vectors = (w.rows + kLanes - 1) / kLanes;
  w.padded = w.row_vectors * kLanes;
  float* p = b.scratch;
  w.q = take(p, kMaxRows * b.head_dim);
  w.o = take(p, kMaxRows * b.head_dim);
  w.acc = take(p, kMaxRows * b.head_dim);
  w.result = take(p, kMaxRows * b.head_dim);
  w.k = take(p, kKeys * b.head_dim);
  w.v = take(p, kKeys * b.head_dim);
  w.s = take(p, kKeys * kMaxRows);
  for (float** field : {&w.m, &w.l, &w.total_m, &w.total_l, &w.position, &w.correction}) *field = take(p, kMaxRows);
  return w;
}

/// The first position that a query at `position` sees.
INFER_HD int64_t first_seen(int64_t position, int64_t window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}

/// Notes where a page lies and who sees what of it. `last_page`: the one after which none is read.
void open_page(Work& w, int64_t page, int64_t last_page) {
  const AttentionBlock& b = *w.b;
  const int64_t last = b.first_position + b.n_tokens - 1;
  w.page_start = page * kKeys;
  const int64_t begin = first_seen(b.first_position, b.window) - w.page_start, end = last + 1 - w.page_start;
  w.key_begin = begin > 0 ? begin : 0;
  w.key_end = end < kKeys ? end : kKeys;
  w.edge = b.first_position < w.page_start + w.key_end - 1 || first_seen(last, b.window) > w.page_start + w.key_begin;
  w.masked = w.edge || w.key_begin > 0 || w.key_end < kKeys;
  const auto at = static_cast<int64_t>(b.pages[page]);
  const int64_t next = page < last_page ? b.pages[page + 1] : -1;
  w.k_page = b.k + at * b.k_page_bytes;
  w.v_page = b.v + at * b.v_page_bytes;
  w.next_k = next >= 0 ? b.k + next * b.k_page_bytes : nullptr;
  w.next_v = next >= 0 ? b.v + next * b.v_page_bytes : nullptr;
}

}  // namespace
}  // namespace infer::cpu
