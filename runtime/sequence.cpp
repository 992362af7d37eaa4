// From sampled ids to text and an end; see sequence.h.
#include "runtime/sequence.h"

#include <algorithm>
#include <random>

#include "kernels/sample.h"

namespace infer {
namespace {

uint64_t seed_of(const Sampling& sampling) {
  if (sampling.seed >= 0) return static_cast<uint64_t>(sampling.seed);
  std::random_device random;
  return uint64_t{random()} << 32 | random();
}

double seconds_since(Sequence::Clock::time_point start) {
  return std::chrono::duration<double>(Sequence::Clock::now() - start).count();
}

}  // namespace

Sequence::Sequence(RequestId request_id, Request request, std::vector<TokenId> prompt, const Tokenizer* tokenizer,
                   int64_t n_ctx, TokenCallback on_token, DoneCallback done)
    : id(request_id),
      ids(std::move(prompt)),
      sampler(request.sampling, seed_of(request.sampling)),
      on_done(std::move(done)),
      request_(std::move(request)),
      tokenizer_(tokenizer),
      n_ctx_(n_ctx),
      on_token_(std::move(on_token)),
      stop_(request_.stop) {
  result.timings.n_prompt = static_cast<int64_t>(ids.size());
  if (!request_.logprobs && request_.n_top_logprobs == 0) draw = sampler.row();
  // Room for all that can come, so that no token pays for a growing list.
  const int64_t n_new = n_ctx + 1 - static_cast<int64_t>(ids.size());
  const auto room = static_cast<size_t>(request_.max_tokens < 0 ? n_new : std::min(n_new, request_.max_tokens));
  ids.reserve(ids.size() + room);
  result.ids.reserve(room);
  pages.pages.reserve((ids.size() + room) / kPageTokens + 1);
}

std::span<const TokenId> Sequence::penalised_history() const {
  if (!penalises(*draw)) return {};
  return std::span(ids).last(std::min(ids.size(), static_cast<size_t>(draw->repeat_last_n)));
}

bool Sequence::ends_with_next() const {
  return (request_.max_tokens >= 0 && n_generated() + 1 >= request_.max_tokens) ||
         static_cast<int64_t>(ids.size()) + 1 > n_ctx_;
}

void Sequence::start(int64_t n_reused) {
  started_ = true;
  result.timings.n_reused = n_reused;
}

void Sequence::accept(Token token) {
  ids.push_back(token.id);
  result.ids.push_back(token.id);
  result.timings.n_generated = n_generated();
  if (n_generated() == 1) result.timings.first_token_seconds = seconds_since(submitted_);
  token.text = new_text(token.id);
  result.text += token.text;
  if (on_token_ && !on_token_(token) && !end) end = FinishReason::cancelled;
}

std::string Sequence::new_text(TokenId token) {
  const auto& stops = request_.stop_ids;
  // ignore_eos goes on past such a token instead of forbidding it: what the model would say stays what it says.
  const bool is_end = tokenizer_ && tokenizer_->is_eog(token) && !request_.sampling.ignore_eos;
  const bool is_stop = is_end || std::find(stops.begin(), stops.end(), token) != stops.end();
  std::string text;
  if (is_stop)
    end = FinishReason::stop;
  else if (tokenizer_)
    text = stop_.push(utf8_.feed(tokenizer_->piece(token)));
  if (!end && request_.max_tokens >= 0 && n_generated() >= request_.max_tokens) end = FinishReason::length;
  if (!end && static_cast<int64_t>(ids.size()) > n_ctx_) end = FinishReason::context;
  if (end && !stop_.matched()) text += stop_.push(utf8_.flush());
  if (stop_.matched()) {
    end = FinishReason::stop;
    result.stop_string = *stop_.matched();
  } else if (end) {
    text += stop_.finish();
  }
  return text;
}

void Sequence::finish(FinishReason reason, std::string error) {
  if (end) return;
  end = reason;
  result.error = std::move(error);
}

void Sequence::stop_clock() {
  result.reason = end.value_or(FinishReason::stop);
  result.timings.total_seconds = seconds_since(submitted_);
}

}  // namespace infer
