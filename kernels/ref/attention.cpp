// Rotation, the write into the KV pages, and attention over them. The cache is read and written a head row at a time
// through quant/formats.h, so any format that can be encoded serves as a cache type.
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels/kv_format.h"
#include "kernels/ref/ref.h"
#include "quant/formats.h"

namespace infer::ref {
namespace {

/// Address of one head's row in a cache [n_pages, n_kv_heads, kPageTokens, head_dim].
char* cache_row(const Tensor& cache, int64_t page, int64_t head, int64_t offset) {
  const int64_t row = (page * cache.dims[1] + head) * kPageTokens + offset;
  return cache.as<char>() + row * row_bytes(cache.dtype, cache.dims[3]);
}

void rotate(float* x, const float* cos_sin, int64_t pairs, bool adjacent) {
  for (int64_t i = 0; i < pairs; ++i) {
    float& a = adjacent ? x[2 * i] : x[i];
    float& b = adjacent ? x[2 * i + 1] : x[i + pairs];
    const double c = cos_sin[2 * i], s = cos_sin[2 * i + 1], a0 = a, b0 = b;
    a = static_cast<float>(a0 * c - b0 * s);
    b = static_cast<float>(a0 * s + b0 * c);
  }
}

/// Norm (optional) and rotation (optional) of all heads of one token.
void finish_heads(float* x, int64_t n_heads, int64_t head_dim, const Tensor& norm, float eps, const RopeArgs& rope,
                  int64_t position) {
  const int64_t pairs = rope.cos_sin ? rope.cos_sin.dims[1] : 0;
  require(2 * pairs <= head_dim, "rope_store", "rotation wider than a head");
  require(!rope.cos_sin || (position >= 0 && position < rope.cos_sin.dims[0]), "rope_store", "position out of range");
  const bool whole = norm && norm.n_elements() != head_dim;  // see RopeStoreArgs::q_norm
  require(!whole || norm.n_elements() == n_heads * head_dim, "rope_store", "norm of another length");
  if (whole) norm_row(x, norm.as<float>(), eps, x, n_heads * head_dim);
  for (int64_t h = 0; h < n_heads; ++h) {
    float* head = x + h * head_dim;
    if (norm && !whole) norm_row(head, norm.as<float>(), eps, head, head_dim);
    if (pairs > 0) rotate(head, rope.cos_sin.as<float>() + position * pairs * 2, pairs, rope.adjacent);
  }
}

/// The Walsh-Hadamard transform of each `block` of n numbers, by its matrix: -1 where two indices share an odd number
/// of ones.
template <class T>
void hadamard(T* x, int64_t n, int64_t block) {
  if (block == 1) return;
  std::vector<double> from(static_cast<size_t>(block));
  for (int64_t begin = 0; begin < n; begin += block) {
    std::copy(x + begin, x + begin + block, from.begin());
    for (uint64_t i = 0; i < from.size(); ++i) {
      double sum = 0;
      for (uint64_t j = 0; j < from.size(); ++j) sum += std::popcount(i & j) % 2 ? -from[j] : from[j];
      x[begin + static_cast<int64_t>(i)] = static_cast<T>(sum / std::sqrt(static_cast<double>(block)));
    }
  }
}

void store(const Tensor& cache, int64_t slot, const float* heads) {
  const int64_t head_dim = cache.dims[3];
  require(slot >= 0 && slot < cache.dims[0] * kPageTokens, "rope_store", "slot out of range");
  for (int64_t h = 0; h < cache.dims[1]; ++h) {
    const bool stored = encode_row(cache.dtype, heads + h * head_dim,
                                   cache_row(cache, slot / kPageTokens, h, slot % kPageTokens), head_dim);
    require(stored, "rope_store", "no such cache format");
  }
}

/// One query row against positions [first, last] of its sequence, whose pages are listed in `pages`.
void attend(const AttentionArgs& a, const float* q, int64_t head, const int32_t* pages, int64_t first, int64_t last,
            float* out) {
  const int64_t head_dim = a.q.dims[2], kv_head = head / (a.q.dims[1] / a.k_cache.dims[1]);
  std::vector<float> row(static_cast<size_t>(head_dim));
  std::vector<double> weights(static_cast<size_t>(last - first + 1)), sum(static_cast<size_t>(head_dim), 0.0);
  double highest = a.sinks ? a.sinks.as<float>()[head] : -INFINITY;
  for (int64_t j = first; j <= last; ++j) {
    decode_row(a.k_cache.dtype, cache_row(a.k_cache, pages[j / kPageTokens], kv_head, j % kPageTokens), row.data(),
               head_dim);
    double score = 0;
    for (int64_t i = 0; i < head_dim; ++i) score += static_cast<double>(q[i]) * row[static_cast<size_t>(i)];
    score *= a.scale;
    if (a.softcap > 0) score = a.softcap * std::tanh(score / a.softcap);
    weights[static_cast<size_t>(j - first)] = score;
    highest = std::max(highest, score);
  }
  double total = a.sinks ? std::exp(a.sinks.as<float>()[head] - highest) : 0;
  for (int64_t j = first; j <= last; ++j) {
    const double weight = std::exp(weights[static_cast<size_t>(j - first)] - highest);
    total += weight;
    decode_row(a.v_cache.dtype, cache_row(a.v_cache, pages[j / kPageTokens], kv_head, j % kPageTokens), row.data(),
               head_dim);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += weight * row[i];
  }
  hadamard(sum.data(), head_dim, kv_rotation(a.v_cache.dtype, head_dim));
  for (int64_t i = 0; i < head_dim; ++i) out[i] = static_cast<float>(sum[static_cast<size_t>(i)] / total);
}

void check(const AttentionArgs& a) {
  const int64_t n_heads = a.q.dims[1], n_kv_heads = a.k_cache.dims[1];
  require(n_kv_heads > 0 && n_heads % n_kv_heads == 0, "attention", "heads are no multiple of KV heads");
  require(a.k_cache.dims[3] == a.q.dims[2] && a.v_cache.dims[3] == a.q.dims[2], "attention", "head sizes differ");
  require(a.k_cache.dims[2] == kPageTokens && a.v_cache.dims[2] == kPageTokens, "attention", "pages of another size");
  require(a.q_start.rows() == a.kv_len.rows() + 1, "attention", "q_start and kv_len differ in length");
  require(a.page_table.rows() >= a.kv_len.rows(), "attention", "page table has too few rows");
}

}  // namespace

void rope_store(const RopeStoreArgs& a) {
  const int64_t n_tokens = a.q.rows(), n_heads = a.q.dims[1], n_kv_heads = a.k.dims[1], head_dim = a.q.dims[2];
  require(a.k.dims[2] == head_dim && a.k_cache.dims[3] == head_dim && a.v_cache.dims[3] == head_dim, "rope_store",
          "head sizes differ");
  require(a.k_cache.dims[1] == n_kv_heads && a.v_cache.dims[1] == n_kv_heads, "rope_store", "KV heads differ");
  require(a.positions.rows() == n_tokens && a.slots.rows() == n_tokens, "rope_store", "token counts differ");
  for (int64_t t = 0; t < n_tokens; ++t) {
    const int64_t position = a.positions.as<int32_t>()[t], slot = a.slots.as<int32_t>()[t];
    float* q = a.q.as<float>() + t * n_heads * head_dim;
    float* k = a.k.as<float>() + t * n_kv_heads * head_dim;
    float* v = a.v.as<float>() + t * n_kv_heads * head_dim;
    finish_heads(q, n_heads, head_dim, a.q_norm, a.eps, a.rope, position);
    finish_heads(k, n_kv_heads, head_dim, a.k_norm, a.eps, a.rope, position);
    hadamard(q, n_heads * head_dim, kv_rotation(a.k_cache.dtype, head_dim));
    hadamard(k, n_kv_heads * head_dim, kv_rotation(a.k_cache.dtype, head_dim));
    hadamard(v, n_kv_heads * head_dim, kv_rotation(a.v_cache.dtype, head_dim));
    store(a.k_cache, slot, k);
    store(a.v_cache, slot, v);
  }
}

void attention(const AttentionArgs& a) {
  check(a);
  const int64_t n_heads = a.q.dims[1], head_dim = a.q.dims[2], max_pages = a.page_table.cols();
  for (int64_t s = 0; s < a.kv_len.rows(); ++s) {
    const int64_t begin = a.q_start.as<int32_t>()[s], end = a.q_start.as<int32_t>()[s + 1];
    const int64_t kv_len = a.kv_len.as<int32_t>()[s];
    require(
        begin >= 0 && begin <= end && end <= a.q.rows() && end - begin <= kv_len && kv_len <= max_pages * kPageTokens,
        "attention", "sequence bounds");
    const int32_t* pages = a.page_table.as<int32_t>() + s * max_pages;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t last = kv_len - (end - t);
      const int64_t first = a.window > 0 ? std::max<int64_t>(0, last - a.window + 1) : 0;
      for (int64_t h = 0; h < n_heads; ++h) {
        const int64_t at = (t * n_heads + h) * head_dim;
        attend(a, a.q.as<float>() + at, h, pages, first, last, a.out.as<float>() + at);
      }
    }
  }
}

}  // namespace infer::ref
