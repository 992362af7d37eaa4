// The arithmetic of quality.h, and the loop that takes two engines through the same windows.
#include "tools/quality.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <thread>

#include "tools/terminal.h"

namespace infer::tools {
namespace {

constexpr size_t kLogitsBytes = size_t{128} << 20;  // of one step, of one model

struct Distribution {
  double log_total = 0;  ///< ln Σ exp(logit)
  size_t top = 0;
};

// Single exponentials, which err by 1e-7 of themselves, summed in double.
Distribution distribution_of(std::span<const float> row) {
  const auto top = std::max_element(row.begin(), row.end());
  double sum = 0;
  for (float v : row) sum += std::exp(v - *top);
  return {*top + std::log(sum), static_cast<size_t>(top - row.begin())};
}

// Rows of one step, predicted by as many threads as the engine has.
class RowBatch {
 public:
  explicit RowBatch(int n_threads) : n_threads_(n_threads) {}
  void add(size_t text, int64_t position, std::span<const float> row) {
    places_.push_back({text, position});
    rows_.insert(rows_.end(), row.begin(), row.end());
  }
  void clear() { places_.clear(), rows_.clear(); }

  struct Place {
    size_t text;
    int64_t position;
    bool operator==(const Place&) const = default;
  };
  const std::vector<Place>& places() const { return places_; }

  std::vector<Prediction> predict(const RowBatch* base, const std::vector<std::vector<TokenId>>& texts) const {
    std::vector<Prediction> out(places_.size());
    if (out.empty()) return out;
    const size_t vocab = rows_.size() / places_.size();
    std::atomic<size_t> next = 0;
    const auto work = [&] {
      for (size_t i = next++; i < out.size(); i = next++) {
        const TokenId token = texts[places_[i].text][static_cast<size_t>(places_[i].position) + 1];
        const auto row = [&](const RowBatch& batch) { return std::span(batch.rows_).subspan(i * vocab, vocab); };
        out[i] = tools::predict(row(*this), base ? row(*base) : std::span<const float>(), token);
      }
    };
    std::vector<std::jthread> threads;
    for (int t = 1; t < n_threads_; ++t) threads.emplace_back(work);
    work();
    threads.clear();
    return out;
  }

 private:
  int n_threads_;
  std::vector<Place> places_;
  std::vector<float> rows_;  ///< [places, vocab]
};

}  // namespace

Estimate Mean::estimate() const {
  if (n_ == 0) return {};
  const auto n = static_cast<double>(n_);
  const double mean = sum_ / n, variance = std::max(0.0, squares_ / n - mean * mean);
  return {mean, n_ > 1 ? std::sqrt(variance / (n - 1)) : 0};
}

Prediction predict(std::span<const float> row, std::span<const float> base, TokenId next) {
  const auto token = static_cast<size_t>(next);
  const Distribution own = distribution_of(row);
  Prediction out;
  out.nll = own.log_total - row[token];
  if (base.empty()) return out;
  const Distribution other = distribution_of(base);
  out.base_nll = other.log_total - base[token];
  const auto shift = static_cast<float>(other.log_total);
  const double offset = other.log_total - own.log_total;
  // Each difference of ln p is small, so that the rounding of p counts for little.
  for (size_t i = 0; i < row.size(); ++i)
    out.kl += std::exp(base[i] - shift) * (double{base[i]} - double{row[i]} - offset);
  out.kl = std::max(0.0, out.kl);  // not below zero but for rounding
  out.delta_p = std::exp(-out.nll) - std::exp(-out.base_nll);
  out.same_top = own.top == other.top;
  return out;
}

void Quality::add(const Prediction& p, bool has_base) {
  nll_.add(p.nll);
  if (!has_base) return;
  base_nll_.add(p.base_nll);
  products_.add(p.nll * p.base_nll);
  kl_mean_.add(p.kl);
  delta_mean_.add(p.delta_p);
  delta_squares_.add(p.delta_p * p.delta_p);
  kl_.push_back(p.kl);
  delta_.push_back(p.delta_p);
  n_same_ += p.same_top ? 1 : 0;
}

Estimate Quality::ppl() const {
  const Estimate e = nll_.estimate();
  return {std::exp(e.value), std::exp(e.value) * e.error};
}

Estimate Quality::base_ppl() const {
  const Estimate e = base_nll_.estimate();
  return {std::exp(e.value), std::exp(e.value) * e.error};
}

double Quality::covariance() const {
  if (n() < 2) return 0;
  return (products_.estimate().value - nll_.estimate().value * base_nll_.estimate().value) /
         static_cast<double>(n() - 1);
}

double Quality::correlation() const {
  const double scale = nll_.estimate().error * base_nll_.estimate().error;
  return scale > 0 ? covariance() / scale : 1;
}

Estimate Quality::log_ratio() const {
  const Estimate a = nll_.estimate(), b = base_nll_.estimate();
  // The same tokens are hard for both: most of either error is common to them and falls out of the ratio.
  const double variance = a.error * a.error + b.error * b.error - 2 * covariance();
  return {a.value - b.value, std::sqrt(std::max(0.0, variance))};
}

Estimate Quality::ratio() const {
  const Estimate e = log_ratio();
  return {std::exp(e.value), std::exp(e.value) * e.error};
}

Estimate Quality::difference() const {
  const Estimate a = ppl(), b = base_ppl();
  const double variance = a.error * a.error + b.error * b.error - 2 * covariance() * a.value * b.value;
  return {a.value - b.value, std::sqrt(std::max(0.0, variance))};
}

Estimate Quality::rms_delta_p() const {
  const Estimate e = delta_squares_.estimate();
  const double rms = std::sqrt(e.value);
  return {rms, rms > 0 ? 0.5 * e.error / rms : 0};
}

Estimate Quality::same_top() const {
  if (n() == 0) return {};
  const double p = static_cast<double>(n_same_) / static_cast<double>(n());
  return {p, n() > 1 ? std::sqrt(p * (1 - p) / static_cast<double>(n() - 1)) : 0};
}

double Quality::kl_percentile(double p) const { return percentile(kl_, p); }
double Quality::delta_p_percentile(double p) const { return percentile(delta_, p); }

double percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  const double at = std::clamp(p, 0.0, 1.0) * static_cast<double>(values.size() - 1);
  const auto below = values.begin() + static_cast<std::ptrdiff_t>(at);
  std::nth_element(values.begin(), below, values.end());
  const double part = at - std::floor(at);
  if (part == 0) return *below;
  return (1 - part) * *below + part * *std::min_element(below + 1, values.end());
}

Windows cut_windows(const Model& model, const std::string& file, int64_t n_ctx, int64_t first, int64_t max_windows) {
  if (n_ctx < 8) throw Error(ErrorKind::usage, "-c", "too small", std::to_string(n_ctx), "8 or more");
  Windows out;
  out.n_ctx = n_ctx;
  out.first = first < 0 ? n_ctx / 2 : first;
  if (out.first > n_ctx - 2)
    throw Error(ErrorKind::usage, "--first", "leaves nothing to score", std::to_string(first),
                "0 to " + std::to_string(n_ctx - 2));
  const std::vector<TokenId> ids = model.tokenize(read_text_file(file), true, false);
  const std::vector<TokenId> special = model.tokenize("", true, false);
  int64_t n = static_cast<int64_t>(ids.size()) / n_ctx;
  if (max_windows >= 0) n = std::min(n, max_windows);
  if (n < 1)
    throw Error(ErrorKind::usage, escaped(file), "the text is too short", fmt::format("{} tokens", ids.size()),
                fmt::format("at least {} (one window)", n_ctx));
  for (int64_t w = 0; w < n; ++w) {
    out.ids.emplace_back(ids.begin() + w * n_ctx, ids.begin() + (w + 1) * n_ctx);
    if (!special.empty()) out.ids.back()[0] = special[0];
  }
  return out;
}

void fit_to_windows(EngineOptions& options, const Windows& windows, int64_t vocab) {
  const auto n = static_cast<int64_t>(windows.ids.size());
  options.n_ctx = windows.n_ctx;
  options.n_seqs = std::clamp<int64_t>(options.n_batch / windows.n_ctx, 1, n);
  const auto rows = static_cast<int64_t>(kLogitsBytes / sizeof(float)) / std::max<int64_t>(1, vocab);
  options.n_outputs = std::clamp<int64_t>(rows, 1, options.n_ubatch);
}

Quality measure_quality(Engine& engine, Engine* base, const Windows& windows, int64_t n_seqs,
                        const std::function<bool(int64_t, const Quality&)>& on_window) {
  Quality quality;
  const int n_threads = std::max(1, engine.stats().n_threads);
  RowBatch rows(n_threads), base_rows(n_threads);
  const size_t n = windows.ids.size();
  for (size_t begin = 0; begin < n;) {
    const size_t end = std::min(n, begin + static_cast<size_t>(n_seqs));
    const std::vector<std::vector<TokenId>> texts(windows.ids.begin() + static_cast<std::ptrdiff_t>(begin),
                                                  windows.ids.begin() + static_cast<std::ptrdiff_t>(end));
    auto inputs = texts;  // what comes after the last token is not known
    for (std::vector<TokenId>& ids : inputs) ids.pop_back();
    Scoring own = engine.score(inputs, windows.first);
    std::unique_ptr<Scoring> other;
    if (base) other = std::make_unique<Scoring>(base->score(inputs, windows.first));
    const auto into = [](RowBatch& batch) {
      return [&batch](size_t t, int64_t i, std::span<const float> row) { batch.add(t, i, row); };
    };
    while (own.step(into(rows))) {
      if (other) other->step(into(base_rows));
      if (other && rows.places() != base_rows.places())
        throw Error(ErrorKind::run, "quality", "the two engines went through the text in different steps");
      const std::vector<Prediction> predictions = rows.predict(base ? &base_rows : nullptr, texts);
      for (size_t i = 0; i < predictions.size(); ++i) {
        quality.add(predictions[i], base != nullptr);
        if (rows.places()[i].position + 2 < windows.n_ctx) continue;
        if (!on_window(static_cast<int64_t>(begin + rows.places()[i].text) + 1, quality)) return quality;
      }
      rows.clear(), base_rows.clear();
    }
    begin = end;
  }
  return quality;
}

}  // namespace infer::tools
