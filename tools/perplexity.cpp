// `infer perplexity`: the number that llama.cpp's tool of that name prints, and the divergence from a reference model.
// Method: the text is cut into windows of `-c` tokens, the first token of each replaced by BOS when the model wants
// one; the second half of every window is scored.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "tools/common.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

double log_sum_exp(std::span<const float> row) {
  const float top = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (float v : row) sum += std::exp(static_cast<double>(v - top));
  return top + std::log(sum);
}

struct Mean {
  double sum = 0, squares = 0;
  int64_t n = 0;
  void add(double v) { sum += v, squares += v * v, ++n; }
  double mean() const { return n ? sum / static_cast<double>(n) : 0; }
  /// Standard error of the mean.
  double error() const {
    if (n < 2) return 0;
    const double variance = squares / static_cast<double>(n) - mean() * mean();
    return std::sqrt(std::max(0.0, variance) / static_cast<double>(n - 1));
  }
};

struct Divergence {
  Mean kl, log_ratio, delta_p;
  std::vector<double> values;
  int64_t same_top = 0;
};

// Compares one position: `row` of the model, `base` of the reference.
void compare(std::span<const float> row, std::span<const float> base, TokenId next, Divergence& d) {
  const double z = log_sum_exp(row), z0 = log_sum_exp(base);
  double kl = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    const double lp0 = base[i] - z0, lp = row[i] - z;
    kl += std::exp(lp0) * (lp0 - lp);
  }
  d.kl.add(kl);
  d.values.push_back(kl);
  const double lp0 = base[static_cast<size_t>(next)] - z0, lp = row[static_cast<size_t>(next)] - z;
  d.log_ratio.add(lp0 - lp);
  d.delta_p.add(std::exp(lp) - std::exp(lp0));
  d.same_top += std::max_element(row.begin(), row.end()) - row.begin() ==
                std::max_element(base.begin(), base.end()) - base.begin();
}

void print(const Divergence& d, double ppl, double base_ppl) {
  std::vector<double> v = d.values;
  std::sort(v.begin(), v.end());
  auto percentile = [&](double p) { return v[static_cast<size_t>(p / 100 * static_cast<double>(v.size() - 1))]; };
  const double n = static_cast<double>(d.kl.n);
  fmt::print("Mean PPL(Q)                   : {:.6f}\nMean PPL(base)                : {:.6f}\n", ppl, base_ppl);
  fmt::print("Mean PPL(Q)/PPL(base)         : {:.6f} +/- {:.6f}\n", ppl / base_ppl,
             ppl / base_ppl * d.log_ratio.error());
  fmt::print("Mean KLD                      : {:.6f} +/- {:.6f}\n", d.kl.mean(), d.kl.error());
  fmt::print("Maximum KLD                   : {:.6f}\n99.9% KLD                     : {:.6f}\n", v.back(),
             percentile(99.9));
  fmt::print("99.0% KLD                     : {:.6f}\nMedian KLD                    : {:.6f}\n", percentile(99),
             percentile(50));
  fmt::print("Mean delta p                  : {:.3f} +/- {:.3f} %\n", 100 * d.delta_p.mean(), 100 * d.delta_p.error());
  fmt::print("RMS delta p                   : {:.3f} %\n", 100 * std::sqrt(d.delta_p.squares / n));
  fmt::print("Same top p                    : {:.3f} %\n", 100 * static_cast<double>(d.same_top) / n);
}

}  // namespace

int perplexity_command(const Args& args) {
  ModelFlags model_flags;
  EngineFlags engine_flags;
  engine_flags.n_ctx = 512;
  std::string file, reference_path;
  int64_t n_windows = -1;
  Arguments a("infer perplexity -m MODEL -f TEXT [-c 512] [--reference M0]",
              "Perplexity over windows of -c tokens, second half of each scored, as llama.cpp does.\n");
  model_flags.add_to(a);
  add_quant_flags(a, model_flags.load);
  engine_flags.add_to(a);
  a.text({"-f", "--file"}, "TEXT", "the text", &file);
  a.text({"--reference"}, "M0", "also the KL divergence from this model", &reference_path);
  a.ignored({"--kl-divergence"}, false);
  a.integer({"--chunks"}, "N", "windows to score (default: all)", &n_windows, -1, 1 << 30);
  if (!parse_or_help(a, args)) return 0;
  if (file.empty()) throw Error(ErrorKind::usage, "-f", "no text file given");
  if (engine_flags.n_ctx < 8)
    throw Error(ErrorKind::usage, "-c", "too small", std::to_string(engine_flags.n_ctx), "8 or more");

  const Model model = model_flags.open();
  std::optional<Model> reference;
  ModelFlags other = model_flags;  // the reference is computed as usual, in other formats than the model
  other.load.act.clear(), other.load.fusion = true;
  if (!reference_path.empty()) {
    other.path = reference_path;
    other.load.overrides.clear();
    other.load.quant.clear();
    reference = other.open();
    if (reference->vocab() != model.vocab())
      throw Error(ErrorKind::usage, "--reference", "another vocabulary", fmt::format("{} tokens", reference->vocab()),
                  fmt::format("{} tokens", model.vocab()));
  }
  std::vector<TokenId> ids = model.tokenize(read_text_file(file), true, false);
  const int64_t n = engine_flags.n_ctx, first = n / 2;
  const std::vector<TokenId> special = model.tokenize("", true, false);
  const int64_t windows =
      std::min<int64_t>(static_cast<int64_t>(ids.size()) / n, n_windows < 0 ? INT64_MAX : n_windows);
  if (windows < 1)
    throw Error(ErrorKind::usage, escaped(file), "the text is too short", fmt::format("{} tokens", ids.size()),
                fmt::format("at least {} (one window)", n));
  Engine engine(model, engine_flags.options(model_flags));
  announce_device(model, engine, model_flags.load);
  std::unique_ptr<Engine> base;
  if (reference) base = std::make_unique<Engine>(*reference, engine_flags.options(other));

  Mean nll, base_nll;
  Divergence divergence;
  std::vector<float> base_rows;
  for (int64_t w = 0; w < windows && !interrupted(); ++w) {
    std::vector<TokenId> window(ids.begin() + w * n, ids.begin() + (w + 1) * n);
    if (!special.empty()) window[0] = special[0];
    base_rows.clear();
    // The logits at position i predict token i + 1; the last position predicts nothing in this window.
    if (base)
      base->logits(window, first, [&](int64_t i, std::span<const float> row) {
        if (i + 1 >= n) return;
        base_rows.insert(base_rows.end(), row.begin(), row.end());
        base_nll.add(log_sum_exp(row) - row[static_cast<size_t>(window[static_cast<size_t>(i + 1)])]);
      });
    engine.logits(window, first, [&](int64_t i, std::span<const float> row) {
      if (i + 1 >= n) return;
      const TokenId next = window[static_cast<size_t>(i + 1)];
      nll.add(log_sum_exp(row) - row[static_cast<size_t>(next)]);
      if (base)
        compare(row, std::span(base_rows).subspan(static_cast<size_t>(i - first) * row.size(), row.size()), next,
                divergence);
    });
    fmt::print("[{}]{:.4f},", w + 1, std::exp(nll.mean()));
    std::fflush(stdout);
  }
  if (nll.n == 0) return 0;  // Ctrl-C came first
  const double ppl = std::exp(nll.mean());
  fmt::print("\n");
  if (base && divergence.kl.n) print(divergence, ppl, std::exp(base_nll.mean()));
  fmt::print("Final estimate: PPL = {:.4f} +/- {:.5f}\n", ppl, ppl * nll.error());
  return 0;
}

}  // namespace infer::tools
