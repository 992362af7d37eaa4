// From logits to a token. The chain is the one people know: bias, penalties, top-k, typical, top-p, min-p, temperature,
// draw. One Sampler belongs to one request and draws from its own generator, so what else is in the batch changes
// nothing; ties are broken by id, so the same request and seed give the same tokens every time. Knows no tensors and no
// text.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "infer.h"
#include "kernels/ops.h"

namespace infer {

struct Candidate {
  float logit;
  TokenId id;
};

/// Storage that all samplers of an engine share; grows to the size of the vocabulary once.
struct SamplerScratch {
  std::vector<float> block_max;
  std::vector<Candidate> candidates;
  std::vector<float> values;
  std::vector<int32_t> counts;  ///< zero between uses
};

class Sampler {
 public:
  /// `sampling` has passed validate().
  Sampler(const Sampling& sampling, uint64_t seed);

  /// Draws a token. `logits` are finite and are changed by bias and penalties; `history` is the prompt and what was
  /// generated since. Throws Error(run) when bias leaves nothing to draw.
  TokenId sample(std::span<float> logits, std::span<const TokenId> history, SamplerScratch& scratch);
  /// The same chain for a backend that draws, beginning with the random number that would come next here. Nothing where
  /// only the host has all links of it: logit bias, typical sampling.
  std::optional<SampleRow> row() const;

 private:
  void apply_bias_and_penalties(std::span<float> logits, std::span<const TokenId> history,
                                SamplerScratch& scratch) const;
  void choose_candidates(std::span<const float> logits, float max, SamplerScratch& scratch) const;
  TokenId draw(SamplerScratch& scratch);
  double uniform();

  Sampling sampling_;
  uint64_t random_state_;
};

/// False when a NaN or an infinity is among the values.
bool all_finite(std::span<const float> values);
/// log(sum(exp(values))) of finite values.
double log_sum_exp(std::span<const float> values, SamplerScratch& scratch);
/// The k largest in scratch.candidates, largest first, lower ids first among equals.
void select_top(std::span<const float> logits, int64_t k, SamplerScratch& scratch);

}  // namespace infer
