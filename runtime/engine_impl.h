// The engine behind the public Engine: sequences in order of arrival, and the step that moves them on. It joins the
// scheduler's decisions, the page bookkeeping and the forward pass; each of these knows nothing of the others.
#pragma once

#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/engine_plan.h"
#include "runtime/kv_cache.h"
#include "runtime/model.h"
#include "runtime/scheduler.h"
#include "runtime/sequence.h"
#include "runtime/step_runner.h"

namespace infer {

/// A backend for a loaded model: its device, with the options it was loaded with unless the engine has its own.
std::unique_ptr<Backend> make_engine_backend(const Model::Impl& model, const EngineOptions& options);

struct Engine::Impl {
  /// A backend that is ready for steps of the sizes beside it. `backend`: as below.
  struct Prepared {
    std::unique_ptr<Backend> backend;
    EnginePlan plan;
  };
  static Prepared prepare(const Model::Impl& model, const EngineOptions& options, std::unique_ptr<Backend> backend);

  /// `backend`: null, or one that computes instead of a new one of the model's device, with weights in its form.
  Impl(const Model& model, const EngineOptions& options, std::unique_ptr<Backend> backend = nullptr);
  ~Impl();

  RequestId submit(const Request& request, TokenCallback on_token, DoneCallback on_done);
  bool step();
  void cancel(RequestId id);
  std::unique_ptr<Scoring::Impl> score(std::vector<std::vector<TokenId>> texts, int64_t first);
  bool score_step(Scoring::Impl& scoring, const Scoring::RowCallback& on_row);
  void release(SequencePages& pages) { cache_.release(pages, {}); }
  bool in_flight(RequestId id) const;
  /// Removes a request without a callback, if it is still there.
  void abandon(RequestId id);
  void require_outside_step() const;
  EngineStats stats() const;
  std::vector<Crossover> crossovers() const;
  void clear_cache() { cache_.clear(); }

 private:
  Impl(const Model& model, Prepared prepared);

  /// One sequence's part of a step that was started: n_tokens from `position` on.
  struct Share {
    Sequence* sequence;
    int64_t position, n_tokens;
    bool has_output;
  };
  using Flight = std::vector<Share>;

  void check(const Request& request, std::span<const TokenId> ids) const;
  void check_ids(std::span<const TokenId> ids) const;
  void apply_cancellations();
  std::optional<size_t> next_to_start();
  void start_waiting();
  void make_schedule();
  void refresh_views();
  void start_scheduled();
  bool may_run_ahead();
  bool set_may_change();
  void run_ahead();
  void take_results();
  void take_result(size_t index, int64_t output);
  void sample_token(Sequence& sequence);
  void accept(Sequence& sequence, Token token);
  Token make_token(Sequence& sequence);
  void fail_non_finite(const Share& share);
  bool somebody_ended() const;
  void end_finished();
  void drop_flights();
  StepSequence step_sequence(const Share& share) const;
  void give_back_pages(Sequence& sequence);
  std::span<const TokenId> computed_ids(const Sequence& sequence) const;
  std::span<const TokenId> reusable_ids(const Sequence& sequence) const;

  Model model_;  // keeps the weights alive
  const Model::Impl& shared_;
  std::unique_ptr<Backend> backend_;
  EnginePlan plan_;
  StepRunner runner_;
  KvCache cache_;
  SchedulerLimits limits_;
  std::vector<std::unique_ptr<Sequence>> sequences_;  // in order of arrival
  // Storage of a step, kept from one to the next.
  std::vector<SequenceView> views_;
  Schedule schedule_;
  std::vector<StepSequence> step_;
  std::vector<std::span<const PageId>> pages_ahead_;
  // Steps under way: flight_ is the next to be taken, ahead_ the one started after it, if any. While one of them is not
  // empty every sequence in it stays in sequences_ and keeps its pages. taken_ is the one whose results are looked at.
  Flight flight_, ahead_, taken_;
  std::vector<size_t> not_finite_;  ///< of taken_
  std::vector<std::unique_ptr<Sequence>> ended_;
  std::vector<float> row_;
  SamplerScratch scratch_;
  std::exception_ptr callback_error_;
  bool in_step_ = false;
  RequestId next_id_ = 1;
  EngineStats counters_;
  std::mutex cancel_mutex_;
  std::vector<RequestId> to_cancel_;
};

}  // namespace infer
