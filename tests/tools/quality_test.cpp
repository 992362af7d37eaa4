// The statistics of perplexity and KL divergence, against numbers computed by hand.
#include "tools/quality.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <random>

#include "tests/catch.h"
#include "tests/tools/program.h"

using namespace infer;
using namespace infer::tools;

namespace {

// Logits whose softmax is `p`, moved by a constant, which must not matter.
std::vector<float> logits_of(const std::vector<double>& p, double shift) {
  std::vector<float> out;
  for (double v : p) out.push_back(static_cast<float>(std::log(v) + shift));
  return out;
}

Prediction prediction(double nll, double base_nll, double kl = 0, double delta_p = 0, bool same_top = true) {
  return {nll, base_nll, kl, delta_p, same_top};
}

Model load(const std::string& path) {
  LoadOptions options;
  options.device = "cpu";
  return Model::load(path, options);
}

}  // namespace

TEST_CASE("quality: one position of two distributions over four tokens") {
  const std::vector<double> p = {0.5, 0.25, 0.125, 0.125}, q = {0.1, 0.2, 0.3, 0.4};
  const Prediction out = predict(logits_of(q, 7), logits_of(p, -3), 1);
  CHECK(out.nll == Approx(-std::log(0.2)).epsilon(1e-6));
  CHECK(out.base_nll == Approx(-std::log(0.25)).epsilon(1e-6));
  // 0.5 ln 5 + 0.25 ln 1.25 + 0.125 ln (0.125 / 0.3) + 0.125 ln (0.125 / 0.4)
  CHECK(out.kl == Approx(0.6056725).epsilon(1e-5));
  CHECK(out.delta_p == Approx(0.2 - 0.25).epsilon(1e-5));
  CHECK_FALSE(out.same_top);
  const Prediction same = predict(logits_of(p, 5), logits_of(p, 0), 0);
  CHECK(same.kl < 1e-6);
  CHECK(same.same_top);
  CHECK(std::abs(same.delta_p) < 1e-6);
  CHECK(predict(logits_of(p, 0), {}, 2).nll == Approx(std::log(8)).epsilon(1e-6));
}

TEST_CASE("quality: a small divergence over many tokens is not lost in rounding") {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 3), noise(0, 1e-2f);
  std::vector<float> base(50000), row(50000);
  for (size_t i = 0; i < base.size(); ++i) base[i] = normal(random), row[i] = base[i] + 40 + noise(random);
  long double z = 0, z0 = 0, kl = 0;
  for (size_t i = 0; i < base.size(); ++i)
    z += std::exp(static_cast<long double>(row[i])), z0 += std::exp(static_cast<long double>(base[i]));
  for (size_t i = 0; i < base.size(); ++i) {
    const long double lp0 = base[i] - std::log(z0), lp = row[i] - std::log(z);
    kl += std::exp(lp0) * (lp0 - lp);
  }
  const Prediction out = predict(row, base, 17);
  CHECK(kl < 1e-4L);
  CHECK(out.kl == Approx(static_cast<double>(kl)).epsilon(0.01));
  CHECK(out.nll == Approx(static_cast<double>(std::log(z) - row[17])).epsilon(1e-6));
}

TEST_CASE("quality: the mean of a few numbers and its standard error") {
  Mean mean;
  CHECK(mean.estimate().value == 0);
  mean.add(1);
  CHECK(mean.estimate().value == 1);
  CHECK(mean.estimate().error == 0);
  mean.add(2), mean.add(6);
  CHECK(mean.estimate().value == Approx(3));
  // Variance of the sample (4 + 1 + 9) / 2 = 7, of the mean 7 / 3.
  CHECK(mean.estimate().error == Approx(std::sqrt(7.0 / 3)));
}

TEST_CASE("quality: percentiles are linear between neighbours") {
  const std::vector<double> v = {40, 10, 30, 20, 50};
  CHECK(percentile(v, 0) == 10);
  CHECK(percentile(v, 1) == 50);
  CHECK(percentile(v, 0.5) == 30);
  CHECK(percentile(v, 0.25) == 20);
  CHECK(percentile(v, 0.9) == Approx(46));
  CHECK(percentile({1, 2}, 0.5) == Approx(1.5));
  CHECK(percentile({7}, 0.99) == 7);
  CHECK(percentile({}, 0.5) == 0);
}

TEST_CASE("quality: ratio, correlation and their errors take into account that both saw the same tokens") {
  Quality q;
  const double a[] = {1, 2, 4, 5}, b[] = {1.5, 2, 3, 5.5};
  for (int i = 0; i < 4; ++i) q.add(prediction(a[i], b[i], 0.1 * (i + 1), 0.01 * (i - 1), i != 2), true);
  REQUIRE(q.n() == 4);
  CHECK(q.has_base());
  // Means 3 and 3; sums of squares about them 10 and 9.5, of products 9: divided by 4 * 3 for errors of the means.
  CHECK(q.ppl().value == Approx(std::exp(3.0)));
  CHECK(q.ppl().error == Approx(std::exp(3.0) * std::sqrt(10.0 / 12)));
  CHECK(q.base_ppl().error == Approx(std::exp(3.0) * std::sqrt(9.5 / 12)));
  CHECK(q.correlation() == Approx(9 / std::sqrt(95.0)));
  CHECK(q.log_ratio().value == Approx(0).margin(1e-12));
  CHECK(q.log_ratio().error == Approx(std::sqrt((10 + 9.5 - 18) / 12)));
  CHECK(q.ratio().value == Approx(1));
  CHECK(q.ratio().error == Approx(std::sqrt(1.5 / 12)));
  CHECK(q.difference().error == Approx(std::exp(3.0) * std::sqrt(1.5 / 12)));
  CHECK(q.kl().value == Approx(0.25));
  CHECK(q.kl_percentile(0.5) == Approx(0.25));
  CHECK(q.kl_percentile(1) == Approx(0.4));
  CHECK(q.delta_p().value == Approx(0.005));
  CHECK(q.delta_p_percentile(0) == Approx(-0.01));
  // Squares 1, 0, 1, 4 (e-4): mean 1.5e-4, variance of the mean (0.25 + 2.25 + 0.25 + 6.25) / 12 e-8.
  CHECK(q.rms_delta_p().value == Approx(std::sqrt(1.5e-4)));
  CHECK(q.rms_delta_p().error == Approx(0.5 * std::sqrt(9.0 / 12) * 1e-4 / std::sqrt(1.5e-4)));
  CHECK(q.same_top().value == Approx(0.75));
  CHECK(q.same_top().error == Approx(std::sqrt(0.75 * 0.25 / 3)));
}

TEST_CASE("quality: without a reference only the perplexity counts") {
  Quality q;
  q.add(prediction(std::log(2), 0), false);
  q.add(prediction(std::log(8), 0), false);
  CHECK(q.ppl().value == Approx(4));
  CHECK_FALSE(q.has_base());
}

TEST_CASE("quality: windows computed together say what each says alone, and what exact arithmetic says") {
  const Model model = load(test::tiny_bpe());
  test::TinyModel changed;
  changed.seed = 2;
  const std::string other_path = test::path_in_folder("quality_other.gguf");
  test::write_tiny_model(other_path, changed);
  const Model other = load(other_path);
  const std::string file = test::write_file("quality.txt", test::long_text());
  const Windows windows = cut_windows(model, file, 64, -1, 5);
  REQUIRE(windows.ids.size() == 5);
  CHECK(windows.first == 32);

  const auto measure = [&](int64_t n_batch, int64_t n_ubatch) {
    EngineOptions options;
    options.n_batch = n_batch, options.n_ubatch = n_ubatch;
    options.n_threads = 2;
    fit_to_windows(options, windows, model.vocab());
    CHECK(options.n_seqs == std::clamp<int64_t>(n_batch / 64, 1, 5));
    Engine engine(model, options), base(other, options);
    std::vector<int64_t> done;
    const Quality q = measure_quality(engine, &base, windows, options.n_seqs, [&](int64_t n, const Quality& so_far) {
      done.push_back(n);
      CHECK(so_far.n() == n * 31);
      return true;
    });
    CHECK((done == std::vector<int64_t>{1, 2, 3, 4, 5}));
    return q;
  };
  const Quality one = measure(64, 64);
  CHECK(one.n() == 5 * 31);
  for (const auto& [n_batch, n_ubatch] : {std::pair(2048, 512), {128, 50}, {256, 7}}) {
    const Quality many = measure(n_batch, n_ubatch);
    CHECK(many.ppl().value == one.ppl().value);
    CHECK(many.kl().value == one.kl().value);
    CHECK(many.kl_percentile(0.99) == one.kl_percentile(0.99));
  }
  CHECK(one.kl().value > 1e-3);

  Engine engine(model);
  double nll = 0;
  for (const std::vector<TokenId>& ids : windows.ids)
    engine.logits(ids, 32, [&](int64_t i, std::span<const float> row) {
      if (i == 63) return;
      double sum = 0;
      for (float v : row) sum += std::exp(static_cast<double>(v));
      nll += std::log(sum) - row[static_cast<size_t>(ids[static_cast<size_t>(i) + 1])];
    });
  CHECK(one.ppl().value == Approx(std::exp(nll / (5 * 31))).epsilon(1e-6));
}

TEST_CASE("quality: windows start with BOS where the model wants one, and a stop ends the measurement") {
  const Model model = load(test::tiny_spm());
  const std::string file = test::write_file("quality.txt", test::long_text());
  const Windows windows = cut_windows(model, file, 40, 0, 3);
  const TokenId bos = model.tokenize("", true, false).at(0);
  const std::vector<TokenId> all = model.tokenize(test::long_text(), true, false);
  for (size_t w = 0; w < 3; ++w) {
    CHECK(windows.ids[w][0] == bos);
    CHECK(std::equal(windows.ids[w].begin() + 1, windows.ids[w].end(), all.begin() + static_cast<int64_t>(w) * 40 + 1));
  }
  Engine engine(model);
  int64_t n = 0;
  const Quality q = measure_quality(engine, nullptr, windows, 1, [&](int64_t, const Quality&) { return ++n < 2; });
  CHECK(n == 2);
  CHECK(q.n() == 2 * 39);
  for (const auto& [n_ctx, first] : {std::pair(7, -1), {40, 39}, {1 << 20, -1}})
    CHECK_THROWS_AS(cut_windows(model, file, n_ctx, first), Error);
}

TEST_CASE("quality: real models have the perplexities that llama.cpp and exact arithmetic give") {
  const struct {
    const char* name;
    int64_t n_windows;
    double llama_cpp, float32;  ///< perplexity of all tokens but the first of each window
  } models[] = {
      {"SmolLM2-135M-Instruct.Q4_1.gguf", 3, 30.1648, 30.0869},
      {"gemma-3-270m-q4_k_m.gguf", 1, std::exp(1651.4285 / 511), std::exp(1651.1788 / 511)},
  };
  for (const auto& real : models) {
    const std::string path = std::string(TEST_DATA) + "/../../models/" + real.name;
    if (test::kSanitized || !std::filesystem::exists(path)) {
      WARN("SKIPPED: " << real.name << " (models/fetch gets it; not under sanitizers)");
      continue;
    }
    INFO(real.name);
    const Model model = load(path);
    const Windows windows = cut_windows(model, std::string(TEST_DATA) + "/lighthouse.txt", 512, 0, real.n_windows);
    REQUIRE(static_cast<int64_t>(windows.ids.size()) == real.n_windows);
    EngineOptions options;
    fit_to_windows(options, windows, model.vocab());
    Engine engine(model, options);
    const double ppl =
        measure_quality(engine, nullptr, windows, options.n_seqs, [](int64_t, auto&) { return true; }).ppl().value;
    CHECK(ppl == Approx(real.llama_cpp).epsilon(0.005));
    CHECK(ppl == Approx(real.float32).epsilon(0.005));
  }
}
