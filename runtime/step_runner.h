// Computes one step of many sequences on a backend: fills the batch's fixed buffers, runs the forward pass, hands out
// rows of logits, or the tokens that the backend drew from them. Owns the KV pages' memory, the activations and the
// rotation tables. It is told which tokens go into which pages and has no opinion about it; nothing in it allocates
// after construction.
//
// On a backend that draws tokens one step may be started before the results of the one before are known: the ids, where
// they go and what the next draw needs stay on the device, and the host learns of them through pinned memory.
#pragma once

#include <chrono>
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
  std::span<const PageId> pages;    ///< all pages of the sequence
  int64_t n_outputs = 0;            ///< logits after the last n_outputs of `ids`
  const SampleRow* draw = nullptr;  ///< how the backend draws from the one output; null: it does not
  /// Tokens that the draw's penalties count, oldest first; at most kSampleHistory.
  std::span<const int32_t> history = {};
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
  /// Ids from n_valid on are never drawn.
  StepRunner(const Config& config, const Weights& weights, Backend& backend, const StepLimits& limits, int64_t n_valid);

  /// Bytes of activations and batch buffers, which do not depend on the context but for the page table.
  static size_t scratch_bytes(const Config& config, const StepLimits& limits);

  /// Bytes for draws, which only a backend that draws has.
  static size_t sampling_bytes(const Config& config, const StepLimits& limits);

  /// Returns when the logits are there. Totals must be within the limits. Draws nothing. An `observer` sees every
  /// stage, and every row goes through all of them but the head.
  void run(std::span<const StepSequence> sequences, const StageObserver& observer = nullptr);
  /// Starts a step and returns; finish() waits for it. At most two steps are under way.
  void start(std::span<const StepSequence> sequences);
  /// Whether start_next() may follow: the step started last has a token drawn for each of its sequences, which gave one
  /// id each, and nothing has touched the batch since.
  bool can_start_next() const { return continuable_; }
  /// Starts the step in which all sequences of the last one go on, with the tokens drawn for them. `pages`: of each.
  void start_next(std::span<const std::span<const PageId>> pages);
  /// Waits for the oldest step that was started. Its draws are there until two more are started; its logits, if it is
  /// the last one, until then.
  void finish();
  /// Forgets steps that were started, when their results are not wanted any more.
  void forget() { n_finished_ = n_started_, continuable_ = false; }
  /// Of the finished step, from its start or the end of the step before it, whichever was later.
  double seconds() const { return seconds_; }
  /// Row `output` of the last step; outputs are numbered through all sequences in order.
  void logits(int64_t output, std::span<float> row);
  /// What was drawn from row `output` of the step finished last.
  Drawn drawn(int64_t output) const;
  /// Computes one sequence's share of a step again, by itself, and names where its first NaN or infinity appears:
  /// "layer 3, attention".
  std::string find_non_finite(const StepSequence& sequence);

  void copy_page(PageId from, PageId to);
  void clear_page(PageId page);
  size_t kv_bytes() const { return kv_bytes_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct KvPlane {
    char* data;
    size_t page_bytes;
  };

  void allocate_kv();
  void allocate_batch();
  void allocate_sampling();
  void upload_batch(std::span<const StepSequence> sequences);
  void put(Tensor& target, const Tensor& room, const std::vector<int32_t>& values);
  void upload_draws(std::span<const StepSequence> sequences);
  void launch(bool draws);
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
  std::vector<int32_t> ids_, positions_, slots_, q_start_, kv_len_, outputs_;
  std::vector<float> staging_;
  size_t kv_bytes_ = 0;
  double seconds_ = 0;

  // Draws and steps under way: step number n uses place n % 2 of what is there twice.
  int64_t n_valid_;
  SampleArgs draw_args_;  ///< with room for the largest step; rows is null on a backend that does not draw
  std::vector<SampleRow> draw_rows_;
  Buffer drawn_;  ///< pinned: Drawn [2, max_seqs]
  uint64_t marks_[2] = {};
  Clock::time_point started_at_[2], finished_at_;
  int64_t n_started_ = 0, n_finished_ = 0;
  bool continuable_ = false;
};

}  // namespace infer
