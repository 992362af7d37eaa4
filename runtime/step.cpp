// One step of the engine: cancel, admit, schedule, compute, sample, end. What goes wrong with one sequence ends that
// one and leaves the others alone.
//
// Where the backend draws the tokens and nobody comes or goes, the next step is started before this one's tokens are
// looked at, so that the device never waits for the host. A step() then ends with one step under way. When somebody
// does end, the token computed ahead for it is dropped; those of the others are taken at once, and nothing is under way
// when pages change hands.
#include <algorithm>

#include "runtime/engine_impl.h"

namespace infer {

void Engine::Impl::require_outside_step() const {
  if (in_step_) throw Error(ErrorKind::usage, "engine", "called from a callback of the same engine's step");
}

bool Engine::Impl::step() {
  require_outside_step();
  struct Guard {
    bool& flag;
    explicit Guard(bool& f) : flag(f) { flag = true; }
    ~Guard() { flag = false; }
  } guard(in_step_);
  apply_cancellations();
  if (flight_.empty()) {
    end_finished();
    if (!sequences_.empty()) {
      start_waiting();
      make_schedule();
      start_scheduled();
    }
  }
  if (!flight_.empty()) {
    if (may_run_ahead()) run_ahead();
    take_results();
    if (somebody_ended()) {
      while (!flight_.empty()) take_results();
      end_finished();
    }
  }
  if (callback_error_) std::rethrow_exception(std::exchange(callback_error_, nullptr));
  return !sequences_.empty();
}

void Engine::Impl::apply_cancellations() {
  const std::lock_guard lock(cancel_mutex_);
  for (RequestId id : to_cancel_)
    for (const auto& sequence : sequences_)
      if (sequence->id == id) sequence->finish(FinishReason::cancelled);
  to_cancel_.clear();
}

void Engine::Impl::refresh_views() {
  views_.clear();
  for (const auto& s : sequences_)
    views_.push_back({s->running, static_cast<int64_t>(s->ids.size()), s->n_computed,
                      static_cast<int64_t>(s->pages.pages.size()), cache_.n_private(s->pages)});
}

std::optional<size_t> Engine::Impl::next_to_start() {
  refresh_views();
  const auto first = std::find_if(sequences_.begin(), sequences_.end(), [](auto& s) { return !s->running; });
  if (first == sequences_.end()) return std::nullopt;
  if ((*first)->request().reuse_prefix)
    views_[static_cast<size_t>(first - sequences_.begin())].n_shared = cache_.n_held(reusable_ids(**first));
  return admit(views_, cache_.n_available(), limits_);
}

// One by one: each takes pages, and claims others.
void Engine::Impl::start_waiting() {
  while (const std::optional<size_t> index = next_to_start()) {
    Sequence& sequence = *sequences_[*index];
    PrefixMatch match;
    if (sequence.request().reuse_prefix) match = cache_.match(reusable_ids(sequence), sequence.pages);
    if (match.copy_from != kNoPage) runner_.copy_page(match.copy_from, match.copy_to);
    sequence.n_computed = match.n_tokens;
    sequence.running = true;
    if (!sequence.started()) sequence.start(match.n_tokens);
  }
}

// Decides the work of this step; sequences that must give way lose their pages at once.
void Engine::Impl::make_schedule() {
  do {
    refresh_views();
    plan_step(views_, cache_.n_available(), limits_, schedule_);
    for (size_t index : schedule_.preempted) {
      Sequence& sequence = *sequences_[index];
      give_back_pages(sequence);
      sequence.running = false;
      sequence.n_computed = 0;
      ++counters_.n_preempted;
    }
  } while (schedule_.work.empty() && !schedule_.preempted.empty());
}

StepSequence Engine::Impl::step_sequence(const Share& share) const {
  const Sequence& s = *share.sequence;
  return {std::span(s.ids).subspan(static_cast<size_t>(share.position), static_cast<size_t>(share.n_tokens)),
          share.position, s.pages.pages, share.has_output ? 1 : 0};
}

void Engine::Impl::start_scheduled() {
  step_.clear();
  taken_.clear();
  int64_t n_tokens = 0;
  for (const Schedule::Work& work : schedule_.work) {
    Sequence& s = *sequences_[work.index];
    const int64_t n_after = s.n_computed + work.n_tokens;
    // Shared pages may not have become free as planned: then the sequence waits for the next step.
    if (!cache_.extend(s.pages, n_after)) continue;
    taken_.push_back({&s, s.n_computed, work.n_tokens, n_after == static_cast<int64_t>(s.ids.size())});
    step_.push_back(step_sequence(taken_.back()));
    if (s.draw && taken_.back().has_output) {
      s.draw->n_drawn = static_cast<uint64_t>(s.n_generated());
      step_.back().draw = &*s.draw;
      step_.back().history = s.penalised_history();
    }
    n_tokens += work.n_tokens;
  }
  if (step_.empty()) throw Error(ErrorKind::run, "engine", "no sequence can go on");
  runner_.start(step_);
  flight_.swap(taken_);
  ++counters_.n_steps;
  counters_.n_tokens += n_tokens;
}

// Everybody of the step under way certainly goes on by one token, nobody joins, and there are pages for it.
bool Engine::Impl::may_run_ahead() {
  if (!runner_.can_start_next() || !ahead_.empty()) return false;
  int64_t n_pages = 0;
  for (const Share& share : flight_) {
    const Sequence& s = *share.sequence;
    if (s.end || s.ends_with_next()) return false;
    n_pages += share.position + 1 == static_cast<int64_t>(s.pages.pages.size()) * kPageTokens ? 1 : 0;
  }
  return n_pages <= cache_.n_available() && !set_may_change();
}

bool Engine::Impl::set_may_change() {
  const auto n_running = std::count_if(sequences_.begin(), sequences_.end(), [](auto& s) { return s->running; });
  if (n_running != static_cast<int64_t>(flight_.size())) return true;
  if (sequences_.size() == flight_.size() || n_running >= limits_.max_running) return false;
  return next_to_start().has_value();
}

void Engine::Impl::run_ahead() {
  pages_ahead_.clear();
  for (const Share& share : flight_) {
    SequencePages& pages = share.sequence->pages;
    if (!cache_.extend(pages, share.position + 2)) throw Error(ErrorKind::run, "engine", "pages vanished");
    pages_ahead_.push_back(pages.pages);
  }
  runner_.start_next(pages_ahead_);
  for (const Share& share : flight_) ahead_.push_back({share.sequence, share.position + 1, 1, true});
  ++counters_.n_steps;
  ++counters_.n_steps_ahead;
  counters_.n_tokens += static_cast<int64_t>(ahead_.size());
}

void Engine::Impl::take_results() {
  runner_.finish();
  counters_.forward_seconds += runner_.seconds();
  taken_.clear();
  taken_.swap(flight_);
  flight_.swap(ahead_);
  not_finite_.clear();
  int64_t output = 0;
  for (size_t i = 0; i < taken_.size(); ++i) {
    Sequence& s = *taken_[i].sequence;
    const int64_t row = taken_[i].has_output ? output++ : 0;
    if (s.end) continue;  // since the step was started: what it computed is dropped
    // Tokens computed again after a preemption count for the answer, not for the prompt.
    (s.n_generated() == 0 ? s.result.timings.prompt_seconds : s.result.timings.decode_seconds) += runner_.seconds();
    s.n_computed += taken_[i].n_tokens;
    if (taken_[i].has_output) take_result(i, row);
  }
  // Only now, since it overwrites the logits of this step.
  for (size_t i : not_finite_) fail_non_finite(taken_[i]);
}

void Engine::Impl::take_result(size_t index, int64_t output) {
  Sequence& s = *taken_[index].sequence;
  Drawn drawn;
  if (s.draw) {
    drawn = runner_.drawn(output);
  } else {
    runner_.logits(output, row_);
    drawn.finite = all_finite(row_);
  }
  if (!drawn.finite) return not_finite_.push_back(index);
  if (s.request().reuse_prefix) cache_.index_full_pages(s.pages, computed_ids(s));
  if (s.request().max_tokens == 0) return s.finish(FinishReason::length);
  if (!s.draw) return sample_token(s);
  Token token;
  token.id = drawn.id;
  accept(s, std::move(token));
}

std::span<const TokenId> Engine::Impl::computed_ids(const Sequence& sequence) const {
  return std::span(sequence.ids).first(static_cast<size_t>(sequence.n_computed));
}

// All that is known but the last token, whose logits are wanted.
std::span<const TokenId> Engine::Impl::reusable_ids(const Sequence& sequence) const {
  return std::span(sequence.ids).first(sequence.ids.size() - 1);
}

void Engine::Impl::fail_non_finite(const Share& share) {
  Sequence& s = *share.sequence;
  s.finish(FinishReason::error, "logits are not finite after token " + std::to_string(s.ids.size()) +
                                    "; the first NaN or infinity is in " +
                                    runner_.find_non_finite(step_sequence(share)));
  s.spoilt = true;
}

void Engine::Impl::sample_token(Sequence& sequence) {
  Token token;
  try {
    token = make_token(sequence);
  } catch (const Error& error) {
    return sequence.finish(FinishReason::error, error.what());
  }
  accept(sequence, std::move(token));
}

void Engine::Impl::accept(Sequence& sequence, Token token) {
  try {
    sequence.accept(std::move(token));
  } catch (...) {  // the callback's own exception: it ends this request, and step() passes it on when all are served
    sequence.finish(FinishReason::cancelled);
    callback_error_ = std::current_exception();
  }
}

Token Engine::Impl::make_token(Sequence& sequence) {
  const auto start = Sequence::Clock::now();
  const Request& request = sequence.request();
  Token token;
  const bool wants_logprobs = request.logprobs || request.n_top_logprobs > 0;
  // Rows beyond the list of tokens are padding: they have no text and are never drawn.
  std::span<float> logits(row_);
  if (shared_.tokenizer) logits = logits.first(static_cast<size_t>(shared_.tokenizer->n_tokens()));
  double log_total = 0;
  if (wants_logprobs) log_total = log_sum_exp(row_, scratch_);
  if (request.n_top_logprobs > 0) {
    select_top(logits, request.n_top_logprobs, scratch_);
    for (const Candidate& c : scratch_.candidates)
      token.top_logprobs.emplace_back(c.id, static_cast<float>(c.logit - log_total));
  }
  // Bias and penalties change the row; one number of it is wanted as it was.
  std::vector<float> before;
  if (wants_logprobs) before.assign(logits.begin(), logits.end());
  token.id = sequence.sampler.sample(logits, sequence.ids, scratch_);
  if (wants_logprobs) token.logprob = static_cast<float>(before[static_cast<size_t>(token.id)] - log_total);
  sequence.result.timings.sample_seconds += std::chrono::duration<double>(Sequence::Clock::now() - start).count();
  return token;
}

void Engine::Impl::give_back_pages(Sequence& sequence) {
  if (sequence.spoilt) {
    // Nothing of this may be found by another request, nor lie about in pages that are handed out again.
    const std::vector<PageId> pages = sequence.pages.pages;
    cache_.discard(sequence.pages);
    for (PageId page : pages)
      if (cache_.ref_count(page) == 0) runner_.clear_page(page);
    return;
  }
  cache_.release(sequence.pages, sequence.request().reuse_prefix ? computed_ids(sequence) : std::span<const TokenId>());
}

bool Engine::Impl::somebody_ended() const {
  return std::any_of(sequences_.begin(), sequences_.end(), [](auto& s) { return s->end.has_value(); });
}

// What is under way is computed again if it is still wanted: the host knows all that it started from.
void Engine::Impl::drop_flights() {
  if (flight_.empty()) return;
  try {
    backend_->wait();
  } catch (const Error&) {  // every later call of this backend will say so
  }
  runner_.forget();
  flight_.clear();
  ahead_.clear();
}

// Sequences with a reason to end leave the list first, so that their callbacks find the engine in order and may submit.
void Engine::Impl::end_finished() {
  for (auto& sequence : sequences_)
    if (sequence->end) ended_.push_back(std::move(sequence));
  std::erase(sequences_, nullptr);
  for (auto& sequence : ended_) {
    give_back_pages(*sequence);
    sequence->stop_clock();
    try {
      if (sequence->on_done) sequence->on_done(sequence->result);
    } catch (...) {
      callback_error_ = std::current_exception();
    }
  }
  ended_.clear();
}

}  // namespace infer
