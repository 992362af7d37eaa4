// A request in flight: its tokens, how far they are computed, its pages, its sampler, and the text it has produced.
// Turns sampled ids into text and decides when the answer ends; which tokens are computed when is the scheduler's
// business.
#pragma once

#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "infer.h"
#include "kernels/ops.h"
#include "runtime/kv_cache.h"
#include "runtime/sampler.h"
#include "runtime/stop.h"
#include "runtime/tokenizer.h"
#include "runtime/utf8.h"

namespace infer {

class Sequence {
 public:
  using Clock = std::chrono::steady_clock;

  /// `request` is checked and moved from; `ids` is the prompt. `tokenizer` may be null: no text then, and no token ends
  /// the answer. `n_ctx`: positions the sequence may fill.
  Sequence(RequestId id, Request request, std::vector<TokenId> ids, const Tokenizer* tokenizer, int64_t n_ctx,
           TokenCallback on_token, DoneCallback on_done);

  const RequestId id;
  std::vector<TokenId> ids;  ///< prompt and generated tokens
  int64_t n_computed = 0;    ///< of these, with K and V in `pages`
  bool running = false;      ///< has been admitted and not been preempted since
  SequencePages pages;
  bool spoilt = false;  ///< what its pages hold must not be used again
  Sampler sampler;
  /// How a backend may draw its tokens instead of `sampler`; the engine takes it away where the backend cannot.
  std::optional<SampleRow> draw;
  Result result;  ///< its timings are kept up to date by the engine
  std::optional<FinishReason> end;
  DoneCallback on_done;

  const Request& request() const { return request_; }
  int64_t n_generated() const { return static_cast<int64_t>(result.ids.size()); }
  /// The tokens that the penalties of `draw` count now.
  std::span<const TokenId> penalised_history() const;
  /// Whether it certainly ends with the next token, whatever that is.
  bool ends_with_next() const;
  bool started() const { return started_; }
  /// First admission: counts what the prefix index provided.
  void start(int64_t n_reused);
  /// Appends a sampled token, sets `end` if it is the last one, and calls back with the text that has become certain.
  void accept(Token token);
  /// Sets the reason if there is none yet.
  void finish(FinishReason reason, std::string error = {});
  /// Total time, now.
  void stop_clock();

 private:
  std::string new_text(TokenId id);

  Request request_;
  const Tokenizer* tokenizer_;
  int64_t n_ctx_;
  TokenCallback on_token_;
  StopMatcher stop_;
  Utf8Stream utf8_;
  bool started_ = false;
  Clock::time_point submitted_ = Clock::now();
};

}  // namespace infer
