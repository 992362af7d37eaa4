// Computes one step of many sequences on a backend: fills the batch's fixed buffers, runs the forward pass, hands out
// rows of logits. Owns the KV pages' memory, the activations and the rotation tables. It is told which tokens go into
// which pages and has no opinion about it; nothing in it allocates after construction.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "models/decoder.h"
#include "runtime/kv_cache.h"

namespace infer {

/// One sequence's share of a step: `ids` take the positions from `position` on, in `pages`.
struct StepSequence {
  std::span<const int32_t> ids;
  int64_t position = 0;
  std::span<const PageId> pages;  ///< all pages of the sequence
  int64_t n_outputs = 0;          ///< logits after the last n_outputs of `ids`
};

struct StepLimits {
  int64_t max_tokens = 0, max_seqs = 0, max_outputs = 0;  ///< of a step
  int64_t n_ctx = 0;                                      ///< positions of a sequence
  int64_t n_pages = 0;                                    ///< of the pool
  DType k_type = DType::F16, v_type = DType::F16;
};

class StepRunner {
 public:
  /// `backend` is prepared for these limits; all references outlive the runner.
  StepRunner(const Config& config, const Weights& weights, Backend& backend, const StepLimits& limits);

  /// Bytes of activations and batch buffers, which do not depend on the context but for the page table.
  static size_t scratch_bytes(const Config& config, const StepLimits& limits);

  /// Returns when the logits are there. Totals must be within the limits.
  void run(std::span<const StepSequence> sequences);
  double seconds() const { return seconds_; }  ///< of the last step's forward pass
  /// Row `output` of the last step; outputs are numbered through all sequences in order.
  void logits(int64_t output, std::span<float> row);
  /// Repeats the last step and names where the first NaN or infinity of sequence `index` appears: "layer 3, attention".
  std::string find_non_finite(size_t index);

  void copy_page(PageId from, PageId to);
  void clear_page(PageId page);
  size_t kv_bytes() const { return kv_bytes_; }

 private:
  struct KvPlane {
    char* data;
    size_t page_bytes;
  };

  void allocate_kv();
  void allocate_batch();
  void upload_batch(std::span<const StepSequence> sequences);
  void fill_ropes(int64_t n_positions);
  void compute(const StageObserver& observer);
  bool finite_rows(const Tensor& result, int64_t from, int64_t to);

  const Config& config_;
  const Weights& weights_;
  Backend& backend_;
  StepLimits limits_;
  int64_t max_pages_;  ///< of a sequence
  Activations activations_;
  KvTensors kv_;
  std::vector<KvPlane> planes_;
  std::vector<Buffer> buffers_;
  std::vector<Tensor> ropes_;
  std::vector<int64_t> rope_rows_;  ///< filled so far
  Batch batch_, full_;              ///< of the last step; with room for the largest
  std::vector<int32_t> ids_, positions_, slots_, q_start_, kv_len_, outputs_, output_start_;
  std::vector<float> staging_;
  size_t kv_bytes_ = 0;
  double seconds_ = 0;
};

}  // namespace infer
