// Attention of a block of queries over the pages of one KV head (flash form, arXiv:2205.14135), and the plan that cuts
// a step into such blocks. It knows pages and rows; threads and the backend are the caller's.
//
// What a query gives depends on nothing but the query and its pages: keys are taken in ascending order, page by page,
// and every kSplit positions the running sums are closed and folded into the result. That fold happens at the same
// positions whether one thread does the whole range, or several do a split each (long decoding), or the query stands
// in a prompt of hundreds: a prompt in pieces gives the same bits as at once or token by token (within one Isa).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/ops.h"

namespace infer::cpu {

inline constexpr int64_t kSplitPages = 8;
inline constexpr int64_t kSplit = kSplitPages * kPageTokens;  ///< positions
inline constexpr int64_t kMaxHeadDim = 1024;

/// Rows of a block are (token, head) pairs, token by token: `group` heads that share the KV head.
struct AttentionBlock {
  const float* q = nullptr;  ///< row (t, g) at q + t * q_stride + g * head_dim
  float* out = nullptr;      ///< laid out like q
  int64_t q_stride = 0;
  int64_t n_tokens = 0, group = 0, head_dim = 0;
  int64_t first_position = 0;  ///< of the first token; the others follow
  const int32_t* pages = nullptr;
  const char *k = nullptr, *v = nullptr;       ///< this KV head in page 0
  int64_t k_page_bytes = 0, v_page_bytes = 0;  ///< from a page to the next, all heads
  DType k_type = DType::F32, v_type = DType::F32;
  int64_t v_rotation = 1;  ///< kv_rotation() of v_type, taken back from the result
  float scale = 1, softcap = 0;
  int64_t window = 0;
  const float* sinks = nullptr;  ///< f32 [group] or null
  int64_t split_begin = 0, split_end = 0;
  /// Not null: one split only, whose open sums go here, f32 [rows, partial_floats(head_dim)], instead of to `out`.
  float* partial = nullptr;
  float* scratch = nullptr;  ///< attention_scratch_floats(head_dim), aligned to 64
};

struct AttentionTable {
  int64_t max_rows;  ///< of a block
  void (*attend)(const AttentionBlock& block);
  /// Folds the partial sums of one row, `stride` floats apart, and writes its result. `sink` may be null.
  void (*merge)(const float* partials, int64_t n_splits, int64_t stride, int64_t head_dim, int64_t v_rotation,
                const float* sink, float* out);
};

const AttentionTable& attention_table(Isa isa);
extern const AttentionTable kScalarAttention, kAvx2Attention, kAvx512Attention;

inline int64_t partial_floats(int64_t head_dim) { return head_dim + 2; }
/// Enough for every instruction set.
int64_t attention_scratch_floats(int64_t head_dim);
bool attention_supports(DType kv_type, int64_t head_dim);

/// One step's attention, cut into units that any thread may run in any order, then merges likewise.
class AttentionPlan {
 public:
  AttentionPlan(const AttentionTable& table) : table_(&table) {}

  /// Room for `n_seqs` sequences and this many floats of open sums. More sequences than that make build() allocate.
  void reserve(int64_t n_seqs, int64_t partial_capacity);
  int64_t partial_capacity() const { return partial_capacity_; }

  /// `partials`: the reserved floats, or null.
  void build(const AttentionArgs& args, int n_threads, float* partials);
  int64_t n_units() const { return n_units_; }
  int64_t n_merges() const { return n_merges_; }
  void run_unit(int64_t unit, float* scratch) const;
  void run_merge(int64_t merge) const;

 private:
  struct Seq {
    int64_t begin, n_tokens, first_position;
    int64_t block_tokens, n_blocks, first_split, n_splits;  // n_splits 1: no merge
    int64_t first_unit, first_merge, first_partial;
  };
  AttentionBlock block_of(const Seq& seq, int64_t seq_index, int64_t token, int64_t n_tokens, int64_t kv_head,
                          int64_t part) const;

  const AttentionTable* table_;
  int64_t partial_capacity_ = 0;
  AttentionArgs args_;
  float* partials_ = nullptr;
  int64_t group_ = 1, part_heads_ = 1, n_parts_ = 1;  // heads that share a KV head, and how they are cut into blocks
  int64_t n_units_ = 0, n_merges_ = 0;
  std::vector<Seq> seqs_;
};

}  // namespace infer::cpu
