// The two halves of batch_run.h. The first leaves its prompts in the prefix index, where the second finds them: its
// requests have one more token to compute than the index holds, so that all of them talk from their first step on.
#include "tools/batch_run.h"

#include <algorithm>

namespace infer::tools {
namespace {

/// Room beside what a sequence fills: the page it begins, and the copy of a page that the index holds in part.
constexpr int64_t kRoom = 96;

Request greedy(std::vector<TokenId> ids, int64_t n) {
  Request r;
  r.ids = std::move(ids);
  r.max_tokens = n;
  r.sampling.temperature = 0;
  r.sampling.ignore_eos = true;
  return r;
}

/// Seconds of the forward passes of all requests together.
double run_all(Engine& engine, const std::vector<Request>& requests, int64_t n_reused,
               const std::function<bool()>& stop) {
  const double before = engine.stats().forward_seconds;
  std::string error;
  for (const Request& r : requests)
    engine.submit(r, nullptr, [&](const Result& result) {
      if (result.reason == FinishReason::error) error = result.error;
      // Then the second half would have computed prompts, too.
      if (result.timings.n_reused != n_reused && error.empty()) error = "a prompt was lost between prompts and answers";
    });
  while (!stop() && engine.step()) {
  }
  if (!error.empty()) throw Error(ErrorKind::run, error);
  return engine.stats().forward_seconds - before;
}

}  // namespace

void fit_to_batch(EngineOptions& o, const BatchCase& c) {
  o.n_seqs = c.n_seqs;
  o.n_ctx = c.n_prompt + c.n_gen + kRoom;
  o.n_pool = c.shared_prompt ? o.n_ctx + (c.n_seqs - 1) * (c.n_gen + kRoom) : 0;
}

std::vector<TokenId> random_ids(std::mt19937& random, int64_t n, int64_t vocab) {
  std::uniform_int_distribution<TokenId> draw(0, static_cast<TokenId>(vocab - 1));
  std::vector<TokenId> ids(static_cast<size_t>(n));
  for (TokenId& id : ids) id = draw(random);
  return ids;
}

BatchTimes run_batch(Engine& engine, const BatchCase& c, int64_t vocab, std::mt19937& random,
                     const std::function<bool()>& stop) {
  engine.clear_cache();
  BatchTimes times;
  std::vector<Request> prompts;
  if (c.n_prompt > 0) {
    for (int64_t i = 0; i < (c.shared_prompt ? 1 : c.n_seqs); ++i)
      prompts.push_back(greedy(random_ids(random, c.n_prompt, vocab), 0));
    times.prompt = run_all(engine, prompts, 0, stop);
  }
  if (c.n_gen == 0 || stop()) return times;
  std::vector<Request> answers;
  for (int64_t i = 0; i < c.n_seqs; ++i) {
    std::vector<TokenId> ids;
    if (!prompts.empty()) ids = prompts[c.shared_prompt ? 0 : static_cast<size_t>(i)].ids;
    ids.push_back(static_cast<TokenId>(i % vocab));
    answers.push_back(greedy(std::move(ids), c.n_gen));
  }
  times.gen = run_all(engine, answers, c.n_prompt, stop);
  return times;
}

}  // namespace infer::tools
