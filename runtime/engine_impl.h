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

struct Engine::Impl {
  Impl(const Model& model, const EngineOptions& options);

  RequestId submit(const Request& request, TokenCallback on_token, DoneCallback on_done);
  bool step();
  void cancel(RequestId id);
  void score(std::span<const TokenId> ids, int64_t first,
             const std::function<void(int64_t, std::span<const float>)>& on_row);
  bool in_flight(RequestId id) const;
  /// Removes a request without a callback, if it is still there.
  void abandon(RequestId id);
  void require_outside_step() const;
  EngineStats stats() const;
  void clear_cache() { cache_.clear(); }

 private:
  struct Prepared {
    std::unique_ptr<Backend> backend;
    EnginePlan plan;
  };
  static Prepared prepare(const Model::Impl& model, const EngineOptions& options);
  Impl(const Model& model, Prepared prepared);

  void check(const Request& request, std::span<const TokenId> ids) const;
  void check_ids(std::span<const TokenId> ids) const;
  void apply_cancellations();
  void start_waiting();
  void make_schedule();
  void refresh_views();
  void compute_scheduled();
  void take_results();
  void take_result(Sequence& sequence, int64_t output, size_t index, double forward_seconds);
  void sample_token(Sequence& sequence);
  Token make_token(Sequence& sequence);
  void fail_non_finite(Sequence& sequence, size_t index);
  void end_finished();
  void give_back_pages(Sequence& sequence);
  std::span<const TokenId> computed_ids(const Sequence& sequence) const;

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
  std::vector<Sequence*> step_owners_;
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
