// The bodies of the attention kernels, written once on Simd; included by attention_{scalar,avx2,avx512}.cpp only.
//
// Two shapes of the same arithmetic, equal bit for bit. Many rows: lanes are rows, scores are S^T[key][row], keys and
// values are broadcast, so that the softmax needs no sums across lanes. Few rows: lanes are keys for the scores (K is
// transposed) and head elements for the output. In both a score is one chain of fma over the head, an output element
// one chain over the keys, and the sum of a page's 32 weights one tree of halves.
#pragma once

#include "kernels/cpu/attention_narrow.h"
#include "kernels/cpu/attention_wide.h"

namespace infer::cpu {
namespace {

/// Runs the pages of one split that any row sees. Returns the sums, rows of head_dim; m and l are beside them.
const float* run_split(Work& w, int64_t split, bool wide) {
  const AttentionBlock& b = *w.b;
  const int64_t first = first_seen(b.first_position, b.window) / kKeys;
  const int64_t last = (b.first_position + b.n_tokens - 1) / kKeys;
  const int64_t begin = split * kSplitPages > first ? split * kSplitPages : first;
  const int64_t end = (split + 1) * kSplitPages < last + 1 ? (split + 1) * kSplitPages : last + 1;
  for (int64_t r = 0; r < w.padded; ++r) w.m[r] = kLowest;
  for (int64_t r = 0; r < w.padded; ++r) w.l[r] = 0;
  for (int64_t i = 0; i < w.padded * w.head_dim; ++i) w.o[i] = 0;
  for (int64_t page = begin; page < end; ++page) {
    open_page(w, page, last);
    if (wide) {
      with_vectors(w.row_vectors, [&]<int n>() { wide_page<n>(w); });
    } else {
      narrow_page(w);
    }
  }
  if (!wide) return w.o;
  wide_result(w);
  return w.result;
}

void write_partials(const Work& w, const float* sums) {
  for (int64_t r = 0; r < w.rows; ++r) {
    float* to = w.b->partial + r * partial_floats(w.head_dim);
    to[0] = w.m[r];
    to[1] = w.l[r];
    for (int64_t d = 0; d < w.head_dim; ++d) to[2 + d] = sums[r * w.head_dim + d];
  }
}

void attend(const AttentionBlock& b) {
  Work w = make_work(b);
  const int64_t head_dim = w.head_dim;
  const bool wide = w.rows > kFewRows;
  if (wide) {
    wide_queries(w);
  } else {
    narrow_queries(w);
  }
  if (b.partial != nullptr) return write_partials(w, run_split(w, b.split_begin, wide));
  for (int64_t r = 0; r < w.rows; ++r) {
    w.total_m[r] = kLowest;
    w.total_l[r] = 0;
  }
  for (int64_t i = 0; i < w.rows * head_dim; ++i) w.acc[i] = 0;
  for (int64_t split = b.split_begin; split < b.split_end; ++split) {
    const float* sums = run_split(w, split, wide);
    for (int64_t r = 0; r < w.rows; ++r) {
      fold(w.total_m[r], w.total_l[r], w.acc + r * head_dim, w.m[r], w.l[r], sums + r * head_dim, head_dim);
    }
  }
  for (int64_t r = 0; r < w.rows; ++r) {
    const float* sink = b.sinks != nullptr ? b.sinks + r % b.group : nullptr;
    float* out = b.out + r / b.group * b.q_stride + r % b.group * head_dim;
    finish(w.total_m[r], w.total_l[r], w.acc + r * head_dim, sink, head_dim, b.v_rotation, out);
  }
}

constexpr AttentionTable kAttentionHere = {kMaxRows, attend, merge};

}  // namespace
}  // namespace infer::cpu
