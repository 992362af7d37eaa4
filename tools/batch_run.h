// One measurement of llama-batched-bench's kind: all prompts first, then all answers, a token each in every step. Knows
// an engine and counts its forward passes; tables are in bench_batch.cpp.
#pragma once

#include <functional>
#include <random>
#include <vector>

#include "infer.h"

namespace infer::tools {

struct BatchCase {
  int64_t n_prompt = 0, n_gen = 0, n_seqs = 1;
  bool shared_prompt = false;  ///< computed once, for all of them
  int64_t prompt_tokens() const { return shared_prompt ? n_prompt : n_seqs * n_prompt; }
  int64_t gen_tokens() const { return n_seqs * n_gen; }
  int64_t kv_tokens() const { return prompt_tokens() + gen_tokens(); }
};

/// Seconds of the forward passes.
struct BatchTimes {
  double prompt = 0, gen = 0;
};

/// Sizes `options` so that nothing of a case gives way to anything else; the rest of them stays.
void fit_to_batch(EngineOptions& options, const BatchCase& c);

std::vector<TokenId> random_ids(std::mt19937& random, int64_t n, int64_t vocab);

/// Runs one case from an empty cache. `stop` is asked between steps; when it says so the times mean nothing.
BatchTimes run_batch(Engine& engine, const BatchCase& c, int64_t vocab, std::mt19937& random,
                     const std::function<bool()>& stop);

}  // namespace infer::tools
