// How a step's attention is cut into units: sequences, then blocks of queries, KV heads, and for few queries over a
// long past also its splits. The cut never changes a result (attention.h says why), so it may follow the number of
// threads.
#include "kernels/cpu/attention.h"

#include <algorithm>

#include "kernels/kv_format.h"

namespace infer::cpu {
namespace {

constexpr int64_t kMostRows = 48;  // of any instruction set

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t cache_row_bytes(const Tensor& cache) { return row_bytes(cache.dtype, cache.dims[3]); }

}  // namespace

const AttentionTable& attention_table(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return kAvx512Attention;
    case Isa::avx2:
      return kAvx2Attention;
    case Isa::scalar:
      break;
  }
  return kScalarAttention;
}

int64_t attention_scratch_floats(int64_t head_dim) {
  const int64_t dim = ceil_div(head_dim, 16) * 16;
  return (4 * kMostRows + 2 * kPageTokens) * dim + (kPageTokens + 6) * kMostRows;
}

bool attention_supports(DType kv_type, int64_t head_dim) {
  return is_kv_format(kv_type) && head_dim >= 2 && head_dim <= kMaxHeadDim && head_dim % 2 == 0 &&
         row_bytes(kv_type, head_dim) > 0;
}

void AttentionPlan::reserve(int64_t n_seqs, int64_t partial_capacity) {
  seqs_.reserve(static_cast<size_t>(n_seqs));
  partial_capacity_ = partial_capacity;
}

void AttentionPlan::build(const AttentionArgs& args, int n_threads, float* partials) {
  args_ = args;
  partials_ = partials;
  const int64_t n_heads = args.q.dims[1], head_dim = args.q.dims[2], n_kv_heads = args.k_cache.dims[1];
  group_ = n_heads / n_kv_heads;
  n_parts_ = ceil_div(group_, table_->max_rows);
  part_heads_ = ceil_div(group_, n_parts_);
  seqs_.clear();
  const int64_t n_seqs = args.kv_len.rows();
  const auto *starts = args.q_start.as<int32_t>(), *lengths = args.kv_len.as<int32_t>();
  n_units_ = 0;
  for (int64_t s = 0; s < n_seqs; ++s) {
    Seq seq{};
    seq.begin = starts[s];
    seq.n_tokens = starts[s + 1] - starts[s];
    seq.first_position = lengths[s] - seq.n_tokens;
    seq.block_tokens = std::max<int64_t>(1, table_->max_rows / part_heads_);
    seq.n_blocks = ceil_div(seq.n_tokens, seq.block_tokens);
    seq.n_splits = 1;
    seqs_.push_back(seq);
    n_units_ += seq.n_blocks * n_kv_heads * n_parts_;
  }
  const bool busy = n_threads == 1 || n_units_ >= 4 * n_threads;
  n_units_ = n_merges_ = 0;
  int64_t used = 0;
  for (size_t s = 0; s < seqs_.size(); ++s) {
    Seq& seq = seqs_[s];
    const int64_t first_seen = args.window > 0 ? std::max<int64_t>(0, seq.first_position - args.window + 1) : 0;
    seq.first_split = first_seen / kSplit;
    const int64_t n_splits = ceil_div(lengths[s], kSplit) - seq.first_split;
    const int64_t floats = seq.n_tokens * n_heads * n_splits * partial_floats(head_dim);
    if (!busy && n_splits > 1 && used + floats <= partial_capacity_) {
      seq.n_splits = n_splits;
      seq.first_partial = used;
      seq.first_merge = n_merges_;
      used += floats;
      n_merges_ += seq.n_tokens * n_kv_heads;
    }
    seq.first_unit = n_units_;
    n_units_ += seq.n_blocks * n_kv_heads * n_parts_ * seq.n_splits;
  }
}

AttentionBlock AttentionPlan::block_of(const Seq& seq, int64_t seq_index, int64_t token, int64_t n_tokens,
                                       int64_t kv_head, int64_t part) const {
  const AttentionArgs& a = args_;
  const int64_t n_heads = a.q.dims[1], head_dim = a.q.dims[2];
  const int64_t head = kv_head * group_ + part * part_heads_;
  const int64_t at = ((seq.begin + token) * n_heads + head) * head_dim;
  const int64_t k_head_bytes = kPageTokens * cache_row_bytes(a.k_cache);
  const int64_t v_head_bytes = kPageTokens * cache_row_bytes(a.v_cache);
  AttentionBlock b;
  b.q = a.q.as<float>() + at;
  b.out = a.out.as<float>() + at;
  b.q_stride = n_heads * head_dim;
  b.n_tokens = n_tokens;
  b.group = std::min(part_heads_, group_ - part * part_heads_);
  b.head_dim = head_dim;
  b.first_position = seq.first_position + token;
  b.pages = a.page_table.as<int32_t>() + seq_index * a.page_table.cols();
  b.k = a.k_cache.as<char>() + kv_head * k_head_bytes;
  b.v = a.v_cache.as<char>() + kv_head * v_head_bytes;
  b.k_page_bytes = a.k_cache.dims[1] * k_head_bytes;
  b.v_page_bytes = a.v_cache.dims[1] * v_head_bytes;
  b.k_type = a.k_cache.dtype;
  b.v_type = a.v_cache.dtype;
  b.v_rotation = kv_rotation(b.v_type, head_dim);
  b.scale = a.scale;
  b.softcap = a.softcap;
  b.window = a.window;
  b.sinks = a.sinks ? a.sinks.as<float>() + head : nullptr;
  const int64_t first_seen = a.window > 0 ? std::max<int64_t>(0, b.first_position - a.window + 1) : 0;
  b.split_begin = first_seen / kSplit;
  b.split_end = (b.first_position + n_tokens - 1) / kSplit + 1;
  return b;
}

void AttentionPlan::run_unit(int64_t unit, float* scratch) const {
  // Ascending first_unit; sequences without tokens share theirs with the next one.
  const auto after =
      std::upper_bound(seqs_.begin(), seqs_.end(), unit, [](int64_t u, const Seq& seq) { return u < seq.first_unit; });
  const Seq& seq = *(after - 1);
  const int64_t n_kv_heads = args_.k_cache.dims[1];
  int64_t rest = unit - seq.first_unit;
  const int64_t split = rest % seq.n_splits;
  rest /= seq.n_splits;
  const int64_t part = rest % n_parts_;
  rest /= n_parts_;
  const int64_t kv_head = rest % n_kv_heads;
  // Late queries see most: they go first, so that no thread is left alone with one of them.
  const int64_t token = (seq.n_blocks - 1 - rest / n_kv_heads) * seq.block_tokens;
  const int64_t n_tokens = std::min(seq.block_tokens, seq.n_tokens - token);
  AttentionBlock b = block_of(seq, after - 1 - seqs_.begin(), token, n_tokens, kv_head, part);
  if (b.group <= 0) return;  // the last part, where parts come out uneven
  b.scratch = scratch;
  if (seq.n_splits > 1) {
    const int64_t n_heads = args_.q.dims[1], floats = partial_floats(args_.q.dims[2]);
    b.split_begin = seq.first_split + split;
    b.split_end = b.split_begin + 1;
    // [split][token][head]; rows of this block are heads of one part, so a block with several tokens has only one part.
    const int64_t rows_of_split = seq.n_tokens * n_heads;
    const int64_t first_row = (kv_head * seq.n_tokens + token) * group_ + part * part_heads_;
    b.partial = partials_ + seq.first_partial + (split * rows_of_split + first_row) * floats;
  }
  table_->attend(b);
}

void AttentionPlan::run_merge(int64_t merge) const {
  size_t s = 0;
  while (!(seqs_[s].n_splits > 1 && merge >= seqs_[s].first_merge &&
           merge < seqs_[s].first_merge + seqs_[s].n_tokens * args_.k_cache.dims[1])) {
    ++s;
  }
  const Seq& seq = seqs_[s];
  const int64_t n_heads = args_.q.dims[1], head_dim = args_.q.dims[2], floats = partial_floats(head_dim);
  const int64_t kv_head = (merge - seq.first_merge) / seq.n_tokens, token = (merge - seq.first_merge) % seq.n_tokens;
  for (int64_t g = 0; g < group_; ++g) {
    const int64_t row = (kv_head * seq.n_tokens + token) * group_ + g, head = kv_head * group_ + g;
    const float* sink = args_.sinks ? args_.sinks.as<float>() + head : nullptr;
    table_->merge(partials_ + seq.first_partial + row * floats, seq.n_splits, seq.n_tokens * n_heads * floats, head_dim,
                  kv_rotation(args_.v_cache.dtype, head_dim), sink,
                  args_.out.as<float>() + ((seq.begin + token) * n_heads + head) * head_dim);
  }
}

}  // namespace infer::cpu
