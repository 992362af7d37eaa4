// The sampler chain of sampler.h. The vocabulary is walked in blocks of a fixed number of lanes, which compilers turn
// into vector code; a block whose maximum is too small for the candidates found so far is skipped whole.
#include "runtime/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include <fmt/format.h>

namespace infer {
namespace {

constexpr size_t kLanes = 16, kBlock = 64;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

bool before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

// Maximum of each block of kBlock logits into scratch.block_max; returns the maximum of all.
float scan_blocks(std::span<const float> logits, SamplerScratch& scratch) {
  scratch.block_max.resize((logits.size() + kBlock - 1) / kBlock);
  float max = kMinusInfinity;
  for (size_t b = 0; b < scratch.block_max.size(); ++b) {
    const float* x = logits.data() + b * kBlock;
    const size_t n = std::min(kBlock, logits.size() - b * kBlock);
    float lanes[kLanes];
    std::fill(lanes, lanes + kLanes, kMinusInfinity);
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      for (size_t l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
    for (; i < n; ++i) lanes[0] = std::max(lanes[0], x[i]);
    scratch.block_max[b] = *std::max_element(lanes, lanes + kLanes);
    max = std::max(max, scratch.block_max[b]);
  }
  return max;
}

TokenId first_with(std::span<const float> logits, float max, const SamplerScratch& scratch) {
  const auto block = std::find(scratch.block_max.begin(), scratch.block_max.end(), max) - scratch.block_max.begin();
  const auto begin = logits.begin() + block * static_cast<std::ptrdiff_t>(kBlock);
  return static_cast<TokenId>(std::find(begin, logits.end(), max) - logits.begin());
}

// exp(x) for x <= 0 with a relative error below 1e-6: 2^n * e^r, |r| <= ln(2) / 2.
inline float fast_exp(float x) {
  // Not below -87. Bits of negative floats grow with their size, and compilers turn a comparison of integers, not one
  // of floats, into vector code.
  x = std::bit_cast<float>(std::min(std::bit_cast<uint32_t>(x), std::bit_cast<uint32_t>(-87.0f)));
  const float n = static_cast<float>(static_cast<int32_t>(x * 1.44269504f - 0.5f));
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
}

// exp(value - max) of every value into `out`; returns their sum. Lanes of floats, added up in double every 1024 values.
double exp_all(std::span<const float> values, float max, std::vector<float>& out) {
  out.resize(values.size());
  double sum = 0;
  for (size_t begin = 0; begin < values.size(); begin += 1024) {
    const size_t n = std::min<size_t>(1024, values.size() - begin);
    const float* x = values.data() + begin;
    float* e = out.data() + begin;
    for (size_t i = 0; i < n; ++i) e[i] = fast_exp(x[i] - max);
    float lanes[kLanes] = {};
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      for (size_t l = 0; l < kLanes; ++l) lanes[l] += e[i + l];
    for (; i < n; ++i) lanes[0] += e[i];
    for (float lane : lanes) sum += lane;
  }
  return sum;
}

// Keeps the leading candidates (largest first) until their share of `total`, a sum of exp(logit - max), reaches p; at
// least one.
void cut_top_p(std::vector<Candidate>& candidates, float max, double total, double p) {
  double sum = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    sum += std::exp(static_cast<double>(candidates[i].logit) - max);
    if (sum >= p * total) return candidates.resize(i + 1);
  }
}

double total_of(const std::vector<Candidate>& candidates, float max) {
  double total = 0;
  for (const Candidate& c : candidates) total += std::exp(static_cast<double>(c.logit) - max);
  return total;
}

// Locally typical sampling, arXiv:2202.00666: the candidates whose surprise is nearest to the expected one.
void cut_typical(std::vector<Candidate>& candidates, float max, double p) {
  const double log_total = std::log(total_of(candidates, max)) + max;
  double entropy = 0;
  for (const Candidate& c : candidates) {
    const double log_p = c.logit - log_total;
    if (c.logit != kMinusInfinity) entropy -= std::exp(log_p) * log_p;
  }
  auto distance = [&](const Candidate& c) { return std::abs(log_total - c.logit - entropy); };
  std::sort(candidates.begin(), candidates.end(), [&](const Candidate& a, const Candidate& b) {
    const double da = distance(a), db = distance(b);
    return da != db ? da < db : a.id < b.id;
  });
  double sum = 0;
  size_t n = 0;
  while (n < candidates.size() && (n == 0 || sum < p)) sum += std::exp(candidates[n++].logit - log_total);
  candidates.resize(n);
  std::sort(candidates.begin(), candidates.end(), before);
}

void take_all(std::span<const float> logits, float least, std::vector<Candidate>& candidates) {
  candidates.clear();
  for (size_t i = 0; i < logits.size(); ++i)
    if (logits[i] >= least && logits[i] != kMinusInfinity) candidates.push_back({logits[i], static_cast<TokenId>(i)});
}

// The candidates among which the nucleus lies, largest first; with their share of the whole as in cut_top_p. Sorting a
// vocabulary is slow and the nucleus is small as a rule: a histogram of the probability by logit finds where it ends.
void select_top_p(std::span<const float> logits, float max, double p, SamplerScratch& scratch) {
  constexpr size_t kBins = 512;
  constexpr float kPerUnit = 16;  // bins to a unit of logit: beyond 32 below the maximum nothing counts
  const double total = exp_all(logits, max, scratch.values);
  double mass[kBins] = {};
  for (size_t i = 0; i < logits.size(); ++i) {
    const float bin = (max - logits[i]) * kPerUnit;
    if (bin < static_cast<float>(kBins)) mass[static_cast<size_t>(bin)] += scratch.values[i];
  }
  size_t n = 0;
  // A little beyond p, since the cut adds up with another rounding.
  for (double sum = 0; n < kBins && sum < p * total * (1 + 1e-5); ++n) sum += mass[n];
  const bool open = n == kBins;
  take_all(logits, open ? kMinusInfinity : max - static_cast<float>(n + 1) / kPerUnit, scratch.candidates);
  std::sort(scratch.candidates.begin(), scratch.candidates.end(), before);
  cut_top_p(scratch.candidates, max, total, p);
}

void select_from_blocks(std::span<const float> logits, size_t k, SamplerScratch& scratch) {
  std::vector<Candidate>& heap = scratch.candidates;  // its front is the least of the best k so far
  heap.clear();
  for (size_t b = 0; b < scratch.block_max.size(); ++b) {
    if (heap.size() == k && scratch.block_max[b] <= heap.front().logit) continue;
    const size_t end = std::min((b + 1) * kBlock, logits.size());
    for (size_t i = b * kBlock; i < end; ++i) {
      if (logits[i] == kMinusInfinity || (heap.size() == k && logits[i] <= heap.front().logit)) continue;
      if (heap.size() == k) {
        std::pop_heap(heap.begin(), heap.end(), before);
        heap.pop_back();
      }
      heap.push_back({logits[i], static_cast<TokenId>(i)});
      std::push_heap(heap.begin(), heap.end(), before);
    }
  }
  std::sort_heap(heap.begin(), heap.end(), before);
}

// The k largest, largest first, of logits whose blocks are scanned; minus infinity is never among them.
void select_scanned(std::span<const float> logits, size_t k, SamplerScratch& scratch) {
  if (k < logits.size() / 8) return select_from_blocks(logits, k, scratch);
  take_all(logits, kMinusInfinity, scratch.candidates);
  k = std::min(k, scratch.candidates.size());
  if (k < scratch.candidates.size())
    std::nth_element(scratch.candidates.begin(), scratch.candidates.begin() + static_cast<std::ptrdiff_t>(k),
                     scratch.candidates.end(), before);
  scratch.candidates.resize(k);
  std::sort(scratch.candidates.begin(), scratch.candidates.end(), before);
}

void require(bool good, const char* field, double found, const char* allowed) {
  if (!good) throw Error(ErrorKind::usage, field, "out of range", fmt::format("{}", found), allowed);
}

bool within(double value, double low, double high) { return value >= low && value <= high; }  // false for NaN

}  // namespace

void validate(const Sampling& s) {
  require(s.temperature >= 0 && std::isfinite(s.temperature), "temperature", s.temperature, "finite numbers >= 0");
  require(s.top_k >= 0, "top_k", s.top_k, "integers >= 0 (0: off)");
  require(within(s.top_p, 0, 1), "top_p", s.top_p, "0 to 1");
  require(within(s.min_p, 0, 1), "min_p", s.min_p, "0 to 1");
  require(within(s.typical_p, 0, 1), "typical_p", s.typical_p, "0 to 1");
  require(s.repeat_last_n >= -1, "repeat_last_n", s.repeat_last_n, "integers >= -1 (-1: whole context)");
  require(s.repeat_penalty > 0 && within(s.repeat_penalty, 0, 1000), "repeat_penalty", s.repeat_penalty,
          "above 0, at most 1000");
  require(within(s.presence_penalty, -100, 100), "presence_penalty", s.presence_penalty, "-100 to 100");
  require(within(s.frequency_penalty, -100, 100), "frequency_penalty", s.frequency_penalty, "-100 to 100");
  require(s.seed >= -1, "seed", static_cast<double>(s.seed), "integers >= -1 (-1: random)");
  for (const auto& [id, bias] : s.logit_bias) {
    require(id >= 0, "logit_bias", id, "token ids >= 0");
    require(bias == kMinusInfinity || within(bias, -1e6, 1e6), "logit_bias", bias, "-infinity, or -1e6 to 1e6");
  }
}

bool all_finite(std::span<const float> values) {
  float lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes)
    for (size_t l = 0; l < kLanes; ++l) lanes[l] += values[i + l] * 0.0f;  // NaN unless finite
  for (; i < values.size(); ++i) lanes[0] += values[i] * 0.0f;
  return std::all_of(lanes, lanes + kLanes, [](float lane) { return lane == 0; });
}

double log_sum_exp(std::span<const float> values, SamplerScratch& scratch) {
  const float max = scan_blocks(values, scratch);
  return std::log(exp_all(values, max, scratch.values)) + max;
}

void select_top(std::span<const float> logits, int64_t k, SamplerScratch& scratch) {
  scan_blocks(logits, scratch);
  select_scanned(logits, static_cast<size_t>(k), scratch);
}

Sampler::Sampler(const Sampling& sampling, uint64_t seed) : sampling_(sampling), random_state_(seed) {}

TokenId Sampler::sample(std::span<float> logits, std::span<const TokenId> history, SamplerScratch& scratch) {
  apply_bias_and_penalties(logits, history, scratch);
  const float max = scan_blocks(logits, scratch);
  if (max == kMinusInfinity) throw Error(ErrorKind::run, "sampling", "no token is left to choose from");
  if (sampling_.temperature == 0) return first_with(logits, max, scratch);
  choose_candidates(logits, max, scratch);
  return draw(scratch);
}

std::optional<SampleRow> Sampler::row() const {
  if (!sampling_.logit_bias.empty() || (sampling_.temperature > 0 && sampling_.typical_p < 1)) return std::nullopt;
  SampleRow row;
  row.seed = random_state_;
  row.temperature = sampling_.temperature;
  row.top_k = sampling_.top_k;
  row.top_p = sampling_.top_p;
  row.min_p = sampling_.min_p;
  row.repeat_penalty = sampling_.repeat_penalty;
  row.presence_penalty = sampling_.presence_penalty;
  row.frequency_penalty = sampling_.frequency_penalty;
  row.repeat_last_n = sampling_.repeat_last_n;
  return row;
}

void Sampler::apply_bias_and_penalties(std::span<float> logits, std::span<const TokenId> history,
                                       SamplerScratch& scratch) const {
  for (const auto& [id, bias] : sampling_.logit_bias)
    if (static_cast<size_t>(id) < logits.size()) logits[static_cast<size_t>(id)] += bias;
  const bool penalties =
      sampling_.repeat_penalty != 1 || sampling_.presence_penalty != 0 || sampling_.frequency_penalty != 0;
  if (!penalties || sampling_.repeat_last_n == 0) return;
  if (sampling_.repeat_last_n > 0 && history.size() > static_cast<size_t>(sampling_.repeat_last_n))
    history = history.last(static_cast<size_t>(sampling_.repeat_last_n));
  scratch.counts.resize(std::max(scratch.counts.size(), logits.size()));
  auto known = [&](TokenId id) { return static_cast<size_t>(id) < logits.size(); };
  for (TokenId id : history)
    if (known(id)) ++scratch.counts[static_cast<size_t>(id)];
  for (TokenId id : history) {
    if (!known(id) || scratch.counts[static_cast<size_t>(id)] == 0) continue;
    const auto count = static_cast<float>(std::exchange(scratch.counts[static_cast<size_t>(id)], 0));
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / sampling_.repeat_penalty : logit * sampling_.repeat_penalty;
    logit -= count * sampling_.frequency_penalty + sampling_.presence_penalty;
  }
}

// Leaves in scratch.candidates what top-k, typical, top-p and min-p let through.
void Sampler::choose_candidates(std::span<const float> logits, float max, SamplerScratch& scratch) const {
  std::vector<Candidate>& candidates = scratch.candidates;
  const double top_p = sampling_.top_p;
  bool top_p_done = top_p >= 1;
  if (sampling_.top_k > 0) {
    select_scanned(logits, static_cast<size_t>(sampling_.top_k), scratch);
  } else if (sampling_.typical_p < 1) {
    take_all(logits, kMinusInfinity, candidates);
  } else if (!top_p_done) {
    select_top_p(logits, max, top_p, scratch);
    top_p_done = true;
  } else {
    take_all(logits, sampling_.min_p > 0 ? max + std::log(sampling_.min_p) : kMinusInfinity, candidates);
  }
  if (sampling_.typical_p < 1) cut_typical(candidates, max, sampling_.typical_p);
  float largest = kMinusInfinity;
  for (const Candidate& c : candidates) largest = std::max(largest, c.logit);
  if (!top_p_done) cut_top_p(candidates, largest, total_of(candidates, largest), top_p);
  if (sampling_.min_p > 0) {
    // The largest itself stays whatever rounding does.
    const float least = std::min(largest, largest + std::log(sampling_.min_p));
    std::erase_if(candidates, [&](const Candidate& c) { return c.logit < least; });
  }
}

TokenId Sampler::draw(SamplerScratch& scratch) {
  const std::vector<Candidate>& candidates = scratch.candidates;
  float max = kMinusInfinity;
  for (const Candidate& c : candidates) max = std::max(max, c.logit);
  const double inverse = 1.0 / sampling_.temperature;
  scratch.values.resize(candidates.size());
  double total = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const float logit = candidates[i].logit;
    scratch.values[i] = logit == max ? 1.0f : static_cast<float>(std::exp((logit - max) * inverse));
    total += scratch.values[i];
  }
  double left = uniform() * total;
  const Candidate* last = nullptr;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (scratch.values[i] > 0) last = &candidates[i];
    left -= scratch.values[i];
    if (left < 0) break;
  }
  return last->id;
}

// SplitMix64: one 64-bit state, every output a bijection of a counter; 53 bits make the double.
double Sampler::uniform() {
  uint64_t z = random_state_ += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

}  // namespace infer
