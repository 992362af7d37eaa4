// The CPU backend: the ops of kernels/ops.h over the row and tile kernels of this folder, on the threads of a pool. A
// stage is one parallel region of two or three phases. Cuts into chunks follow the number of threads and the size of
// the step, results never do: a row of the residual stream gets the same bits whatever stands beside it in the step.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/expert_plan.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/pointwise.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/workspace.h"

namespace infer::cpu {

/// A matmul inside a stage.
struct Product {
  Tensor w;
  const float* bias = nullptr;
  float* out = nullptr;  ///< f32 [n_tokens, w.rows()]
  ActivationForm form = ActivationForm::f32;
  bool fine = false;  ///< int8 activations in two terms: twice the work where 8 bits cost most
  int64_t tiles = 0;
};

/// Tensor::layout of packed weights; fine: int8 activations that meet them have two terms in every stage.
inline constexpr uint32_t kPacked = 1, kPackedFine = 2;

/// A few products of the same activations, cut into chunks for the threads to claim.
/// Few tokens: the weights are a stream, which a thread reads fastest in long runs, so that chunks are long at first
/// and shrink towards the end, where they even out who is done when. Many tokens: equal chunks of the four tiles that a
/// kernel unpacks together, and where a matrix has few of those, of some of the tokens.
struct ProductPlan {
  static constexpr int kMost = 5;
  static constexpr int64_t kMostRuns = 256;
  Product products[kMost];
  int n_products = 0;
  int64_t n_tokens = 0, n_chunks = 0;
  bool fine = false;  ///< of the products

  struct Chunk {
    int product;
    int64_t tile_begin, tile_end, token_begin, token_end;
    int64_t row_begin, row_end;  ///< of the weight, which are columns of the result
  };
  Chunk chunk(int64_t index) const;

  void cut_stream(int n_threads, int64_t tile_multiple);
  void cut_blocks(int n_threads);

  int64_t token_blocks = 1;
  int64_t chunk_tiles = 0;              ///< 0: the runs below
  int64_t first_tile[kMost + 1] = {};   ///< of each product, when their tiles are numbered through
  int64_t first_chunk[kMost + 1] = {};  ///< likewise, not counting token blocks
  int64_t run_begin[kMostRuns + kMost + 1];
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options);

  const char* name() const override { return "cpu"; }
  std::string describe() const override;
  int n_threads() const override { return pool_.n_threads(); }
  void check_activations(const Needs& needs) const override;
  void prepare(const Needs& needs) override;

  Buffer allocate(size_t bytes) override;
  void upload(void* dst, const void* src, size_t bytes) override;
  void download(void* dst, const void* src, size_t bytes) override;
  size_t packed_bytes(const Tensor& host, WeightRole role) const override;
  Tensor pack(const Tensor& host, WeightRole role, void* dst) const override;

  void embed(const EmbedArgs& args) override;
  void norm(const NormArgs& args) override;
  void matmul(const MatmulArgs& args) override;
  void activate(const ActivateArgs& args) override;
  void add(const AddArgs& args) override;
  void rope_store(const RopeStoreArgs& args) override;
  void attention(const AttentionArgs& args) override;
  void gather(const Tensor& x, const Tensor& rows, const Tensor& out) override;
  void scale_softcap(const Tensor& x, float scale, float softcap) override;

  // cpu_experts.cpp
  void route(const RouteArgs& args) override;
  void expert_matmul(const ExpertMatmulArgs& args) override;
  void combine(const CombineArgs& args) override;
  void moe_ffn(const MoeFfnArgs& args) override;

  void attn_in(const AttnInArgs& args) override;
  void attn_out(const AttnOutArgs& args) override;
  void ffn(const FfnArgs& args) override;
  void logits(const LogitsArgs& args) override;

  void run(uint64_t key, const std::function<void()>& fn) override;
  BackendStats stats() const override;

 private:
  /// The rows that a stage's products read: x, gathered and normed on the way as far as asked for.
  struct Source {
    const float* x = nullptr;
    int64_t n_tokens = 0, k = 0;
    const float* norm = nullptr;    ///< f32 [k] or null
    const int32_t* rows = nullptr;  ///< i32 [n_tokens] or null: all of x in order
    float eps = 0;
  };

  void ensure(WorkspaceSize size);
  WorkspaceSize size_of(const Source& source, std::initializer_list<const Tensor*> weights, int64_t inner_width) const;
  ProductPlan plan(int64_t n_tokens, std::initializer_list<Product> products, int64_t tile_multiple,
                   bool fine = false) const;
  static Product product(const Tensor& w, const Tensor& bias, const Tensor& out);

  // Phases. Those of small steps that have nothing to do have no chunks.
  int64_t prepare_chunks(const Source& source) const;
  void prepare_chunk(const Source& source, const ProductPlan& plan, int64_t chunk, int thread);
  void prepare_part(const Prepared& to, ActivationForm form, bool fine, const float* x, int64_t n, int64_t row,
                    int64_t cols, int64_t begin) const;
  void prepare_row(const Source& source, const ProductPlan& plan, int64_t token, const Prepared& to, int thread);
  /// The activations of the stage's source for this thread to read.
  const Prepared& prepared(const Source& source, const ProductPlan& plan, int thread);
  void multiply(const Product& product, const ProductPlan::Chunk& chunk, const Prepared& from, int thread);
  void add_chunk(const AddArgs& add, const ProductPlan::Chunk& chunk);
  void close_branch(const AddArgs& add, int64_t token);
  void rope_store_head(const RopeStoreArgs& args, int64_t token, int64_t kv_head);
  /// The norms that span all heads of a token; rope_store_head() does those of single heads.
  void norm_heads(const RopeStoreArgs& args, int64_t token);

  // cpu_experts.cpp
  static Product expert_product(const Tensor& w, const Tensor& bias, const Tensor& out, int64_t expert);
  static void route_row(const RouteArgs& args, int64_t token);
  void combine_row(const CombineArgs& args, const int32_t* places, const float* x, int64_t token);
  WorkspaceSize moe_size(const MoeFfnArgs& args, const Source& source) const;
  ProductPlan choose_experts(const MoeFfnArgs& args, const Source& source);
  void cut_experts(const MoeFfnArgs& args, int64_t n_tokens);
  void expert_up(const MoeFfnArgs& args, const ExpertPlan::Chunk& chunk, const Prepared& input, int thread);
  void expert_down(const MoeFfnArgs& args, const ExpertPlan::Chunk& chunk, int thread);
  /// A few rows to a chunk, so that threads share the work evenly and chunks cost more than their claim.
  int64_t row_chunks(int64_t rows) const { return std::min<int64_t>(rows, 8 * n_threads()); }
  /// fn(row) for every row, on all threads.
  template <class Fn>
  void for_rows(int64_t rows, Fn fn) {
    const int64_t chunks = row_chunks(rows);
    pool_.parallel(chunks, [&](int64_t chunk, int) {
      for (int64_t r = rows * chunk / chunks; r < rows * (chunk + 1) / chunks; ++r) fn(r);
    });
  }

  Isa isa_;
  FusedStages fusion_;
  std::string act_;
  ThreadPool pool_;
  const PointwiseTable& pointwise_;
  std::shared_ptr<std::atomic<int64_t>> live_ = std::make_shared<std::atomic<int64_t>>(0);
  Workspace workspace_;
  AttentionPlan attention_plan_;
  ExpertPlan experts_;
  uint64_t stage_ = 0;  ///< counts stages, for Workspace::Thread::own_stage
  BackendStats stats_;
};

}  // namespace infer::cpu
