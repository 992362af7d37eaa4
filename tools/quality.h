// How well a model predicts a text, and how far its predictions are from a reference's: what `infer perplexity` prints
// and `infer bench` puts beside the speed. llama.cpp's method and statistics: the text is cut into windows, the second
// half of every window is scored. Nats throughout; both models see the same windows at the same time, so no logits are
// ever written to a file.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "infer.h"

namespace infer::tools {

/// A mean or what was derived from means, with its standard error.
struct Estimate {
  double value = 0, error = 0;
};

/// Sums of a number that comes once for every scored token.
class Mean {
 public:
  void add(double v) { sum_ += v, squares_ += v * v, ++n_; }
  int64_t n() const { return n_; }
  Estimate estimate() const;

 private:
  double sum_ = 0, squares_ = 0;
  int64_t n_ = 0;
};

/// What one position says about a model, and about a reference where there is one.
struct Prediction {
  double nll = 0;         ///< -ln p(next token)
  double base_nll = 0;    ///< the same of the reference
  double kl = 0;          ///< KL divergence of the model's distribution from the reference's, Σ p_base ln(p_base / p)
  double delta_p = 0;     ///< p(next token) less the reference's
  bool same_top = false;  ///< both think the same token likeliest
};
/// `row`: logits [vocab] before token `next`. `base`: the reference's, or empty.
Prediction predict(std::span<const float> row, std::span<const float> base, TokenId next);

/// Statistics over all scored tokens, as llama.cpp's tool computes them. Those of a divergence need a reference.
class Quality {
 public:
  void add(const Prediction& p, bool has_base);
  int64_t n() const { return nll_.n(); }
  bool has_base() const { return !kl_.empty(); }

  Estimate ppl() const;
  Estimate base_ppl() const;
  double correlation() const;   ///< of ln PPL and the reference's ln PPL, in [-1, 1]
  Estimate log_ratio() const;   ///< ln(PPL / PPL of the reference)
  Estimate ratio() const;       ///< PPL / PPL of the reference
  Estimate difference() const;  ///< PPL - PPL of the reference
  Estimate kl() const { return kl_mean_.estimate(); }
  Estimate delta_p() const { return delta_mean_.estimate(); }
  Estimate rms_delta_p() const;
  Estimate same_top() const;  ///< fraction of tokens, [0, 1]
  /// The value below which a fraction `p` in [0, 1] of the tokens lies, linear between neighbours.
  double kl_percentile(double p) const;
  double delta_p_percentile(double p) const;

 private:
  double covariance() const;  ///< of the two means of -ln p

  Mean nll_, base_nll_, products_, kl_mean_, delta_mean_, delta_squares_;
  std::vector<double> kl_, delta_;
  int64_t n_same_ = 0;
};

/// The number at fraction `p` in [0, 1] of `values`, which it sorts in part; linear between neighbours.
double percentile(std::vector<double> values, double p);

/// The windows of a text. The logits after position i predict token i + 1; those of [first, n_ctx - 1) count.
struct Windows {
  std::vector<std::vector<TokenId>> ids;  ///< [n_ctx] each
  int64_t n_ctx = 0, first = 0;
};
/// Cuts the text into windows of n_ctx tokens; the first token of each is replaced by BOS where the model wants one.
/// `first` < 0: half of n_ctx. `max_windows` < 0: all. Throws Error: usage (n_ctx below 8, a text shorter than a
/// window), run (unreadable).
Windows cut_windows(const Model& model, const std::string& file, int64_t n_ctx, int64_t first = -1,
                    int64_t max_windows = -1);

/// What an engine for windows needs beyond the usual: as many sequences as fit a batch, and logits by the hundred.
void fit_to_windows(EngineOptions& options, const Windows& windows, int64_t vocab);

/// Computes all windows, several at a time. `base`: null, or an engine with the same options. `on_window` is called
/// after each, in order; returning false ends the measurement.
Quality measure_quality(Engine& engine, Engine* base, const Windows& windows, int64_t n_seqs,
                        const std::function<bool(int64_t n_done, const Quality& so_far)>& on_window);

}  // namespace infer::tools
