// The sampler chain: what each link lets through, extremes, reproducibility; and stop strings across pieces.
#include "runtime/sampler.h"

#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "kernels/sample.h"
#include "runtime/stop.h"
#include "tests/catch.h"

using namespace infer;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Sampling everything_off() {
  Sampling s;
  s.temperature = 1;
  s.top_k = 0;
  s.top_p = 1;
  s.min_p = 0;
  s.seed = 1;
  return s;
}

// Frequencies of the tokens in n draws from these probabilities.
std::map<TokenId, double> frequencies(const Sampling& sampling, const std::vector<double>& p, int n = 20000) {
  Sampler sampler(sampling, 5);
  SamplerScratch scratch;
  std::map<TokenId, double> out;
  for (int i = 0; i < n; ++i) {
    std::vector<float> logits;
    for (double x : p) logits.push_back(static_cast<float>(std::log(x)));
    out[sampler.sample(logits, {}, scratch)] += 1.0 / n;
  }
  return out;
}

std::vector<TokenId> support(const Sampling& sampling, const std::vector<double>& p) {
  std::vector<TokenId> ids;
  for (auto [id, share] : frequencies(sampling, p)) ids.push_back(id);
  return ids;
}

using Ids = std::vector<TokenId>;
const std::vector<double> kTen = {0.01, 0.3, 0.02, 0.2, 0.04, 0.15, 0.05, 0.1, 0.06, 0.07};

std::vector<float> random_logits(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(random);
  return logits;
}

}  // namespace

TEST_CASE("sampler: temperature 0 takes the largest, the lower id among equals") {
  Sampling s;
  s.temperature = 0;
  Sampler sampler(s, 0);
  SamplerScratch scratch;
  for (size_t n : {1, 2, 15, 16, 17, 63, 64, 65, 1000, 50001}) {
    std::vector<float> logits(n, -5.0f);
    logits[n / 2] = logits[n - 1] = 3;
    CHECK(sampler.sample(logits, {}, scratch) == static_cast<TokenId>(n / 2));
  }
}

TEST_CASE("sampler: without filters tokens come as often as their probability says") {
  const auto share = frequencies(everything_off(), kTen, 100000);
  for (size_t i = 0; i < kTen.size(); ++i) CHECK(share.at(static_cast<TokenId>(i)) == Approx(kTen[i]).margin(0.006));
}

TEST_CASE("sampler: temperature sharpens and flattens") {
  Sampling s = everything_off();
  s.temperature = 0.5f;  // squares probabilities
  const auto share = frequencies(s, {0.5, 0.25, 0.25}, 100000);
  CHECK(share.at(0) == Approx(0.25 / 0.375).margin(0.006));
}

TEST_CASE("sampler: each filter keeps what its definition keeps") {
  Sampling s = everything_off();
  SECTION("top-k") {
    s.top_k = 3;
    CHECK(support(s, kTen) == Ids{1, 3, 5});
  }
  SECTION("top-p keeps the token that crosses the border") {
    s.top_p = 0.55f;
    CHECK(support(s, kTen) == Ids{1, 3, 5});
    s.top_p = 0;
    CHECK(support(s, kTen) == Ids{1});
  }
  SECTION("top-p after top-k counts the share of what top-k left") {
    s.top_k = 2;
    s.top_p = 0.59f;  // 0.3 of 0.5 is 0.6
    CHECK(support(s, kTen) == Ids{1});
  }
  SECTION("min-p") {
    s.min_p = 0.49f;
    CHECK(support(s, kTen) == Ids{1, 3, 5});
    s.min_p = 1;
    CHECK(support(s, kTen) == Ids{1});
  }
  SECTION("typical drops the obvious when it surprises too little") {
    s.typical_p = 0.2f;
    const auto ids = support(s, {0.6, 0.1, 0.1, 0.1, 0.1});
    CHECK(std::find(ids.begin(), ids.end(), 0) != ids.end());
    CHECK(support(s, {0.90, 0.06, 0.04}) == Ids{0});
    s.typical_p = 0.01f;
    CHECK(support(s, {0.4, 0.2, 0.2, 0.2}).size() == 1);
  }
}

TEST_CASE("sampler: top-p over a large vocabulary equals the definition by sorting") {
  for (uint32_t seed = 0; seed < 6; ++seed) {
    auto logits = random_logits(5000, seed);
    if (seed > 3)
      for (float& x : logits) x *= 0.01f;  // a nucleus of thousands
    std::vector<Candidate> sorted;
    double total = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      sorted.push_back({logits[i], static_cast<TokenId>(i)});
      total += std::exp(static_cast<double>(logits[i]));
    }
    std::sort(sorted.begin(), sorted.end(), [](auto& a, auto& b) { return a.logit > b.logit; });
    double sum = 0;
    std::vector<bool> inside(logits.size());
    for (const auto& c : sorted) {
      inside[static_cast<size_t>(c.id)] = true;
      if ((sum += std::exp(static_cast<double>(c.logit))) >= 0.9 * total * (1 + 1e-6)) break;
    }
    Sampling s = everything_off();
    s.top_p = 0.9f;
    Sampler sampler(s, seed);
    SamplerScratch scratch;
    for (int i = 0; i < 300; ++i) {
      auto copy = logits;
      REQUIRE(inside[static_cast<size_t>(sampler.sample(copy, {}, scratch))]);
    }
  }
}

TEST_CASE("sampler: the k largest are found in order whatever k and size are") {
  SamplerScratch scratch;
  for (size_t n : {1, 7, 64, 65, 1000, 4097})
    for (int64_t k : {1, 2, 40, 64, 500}) {
      auto logits = random_logits(n, static_cast<uint32_t>(n));
      for (float& x : logits) x = std::round(x);  // many ties
      select_top(logits, k, scratch);
      std::vector<TokenId> order(n);
      for (size_t i = 0; i < n; ++i) order[i] = static_cast<TokenId>(i);
      std::stable_sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
        return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
      });
      REQUIRE(scratch.candidates.size() == std::min(n, static_cast<size_t>(k)));
      for (size_t i = 0; i < scratch.candidates.size(); ++i) REQUIRE(scratch.candidates[i].id == order[i]);
    }
}

TEST_CASE("sampler: penalties follow their formulas and count only the window") {
  Sampling s = everything_off();
  s.temperature = 0;
  SamplerScratch scratch;
  const Ids history = {3, 1, 1, 2};
  SECTION("repeat divides positive and multiplies negative logits, once per token") {
    s.repeat_penalty = 2;
    Sampler sampler(s, 0);
    std::vector<float> logits = {1.4f, 4, -1, 2.9f};
    CHECK(sampler.sample(logits, history, scratch) == 1);
    CHECK(logits == std::vector<float>{1.4f, 2, -2, 1.45f});
  }
  SECTION("frequency counts, presence does not") {
    s.frequency_penalty = 0.5f;
    s.presence_penalty = 0.25f;
    Sampler sampler(s, 0);
    std::vector<float> logits = {0, 4, 0, 0};
    sampler.sample(logits, history, scratch);
    CHECK(logits == std::vector<float>{0, 2.75f, -0.75f, -0.75f});
  }
  SECTION("the window") {
    s.presence_penalty = 1;
    for (auto [last_n, expected] : {std::pair{0, std::vector<float>{0, 0, 0, 0}},
                                    {1, {0, 0, -1, 0}},
                                    {3, {0, -1, -1, 0}},
                                    {-1, {0, -1, -1, -1}}}) {
      s.repeat_last_n = last_n;
      Sampler sampler(s, 0);
      std::vector<float> logits(4, 0.0f);
      sampler.sample(logits, history, scratch);
      CHECK(logits == expected);
    }
  }
}

TEST_CASE("sampler: bias moves and forbids, and nothing left is an error") {
  Sampling s = everything_off();
  s.temperature = 0;
  s.logit_bias = {{0, -kInfinity}, {2, 10.0f}};
  SamplerScratch scratch;
  std::vector<float> logits = {5, 4, 0};
  CHECK(Sampler(s, 0).sample(logits, {}, scratch) == 2);
  logits = {5, 4, 0};
  s.logit_bias = {{0, -kInfinity}, {2, -kInfinity}};
  CHECK(Sampler(s, 0).sample(logits, {}, scratch) == 1);
  s.logit_bias.emplace_back(1, -kInfinity);
  for (float temperature : {0.0f, 1.0f}) {
    s.temperature = temperature;
    logits = {5, 4, 0};
    CHECK_THROWS_AS(Sampler(s, 0).sample(logits, {}, scratch), Error);
  }
}

TEST_CASE("sampler: extremes within range always give a token that is allowed") {
  SamplerScratch scratch;
  std::mt19937 random(3);
  auto base = random_logits(200, 9);
  base[17] = 3e38f;
  base[18] = -3e38f;
  for (float temperature : {0.0f, 1e-45f, 1e-30f, 1e-3f, 1.0f, 1e30f})
    for (float p : {0.0f, 1e-30f, 0.5f, 1.0f})
      for (int k : {0, 1, 3, 1000000}) {
        Sampling s = everything_off();
        s.temperature = temperature;
        s.top_k = k;
        (random() % 2 ? s.top_p : s.typical_p) = p;
        s.min_p = random() % 2 ? p : 0;
        s.logit_bias = {{17, -kInfinity}};
        validate(s);
        Sampler sampler(s, random());
        for (int i = 0; i < 20; ++i) {
          auto logits = base;
          const TokenId id = sampler.sample(logits, {}, scratch);
          REQUIRE((id >= 0 && id < 200 && id != 17));
        }
      }
}

TEST_CASE("sampler: the same seed draws the same tokens, another seed others") {
  SamplerScratch scratch, other_scratch;
  auto tokens = [&](uint64_t seed, SamplerScratch& use) {
    Sampler sampler(everything_off(), seed);
    Ids ids;
    for (uint32_t i = 0; i < 50; ++i) {
      auto logits = random_logits(1000, i);
      ids.push_back(sampler.sample(logits, ids, use));
    }
    return ids;
  };
  CHECK(tokens(1, scratch) == tokens(1, other_scratch));
  CHECK(tokens(1, scratch) != tokens(2, scratch));
}

TEST_CASE("sampler: values out of range are refused by field") {
  auto field_of = [](auto change) -> std::string {
    Sampling s;
    change(s);
    try {
      validate(s);
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      return e.where();
    }
    return "";
  };
  const float nan = std::nanf("");
  CHECK(field_of([](Sampling&) {}).empty());
  for (float bad : {-1.0f, kInfinity, nan}) {
    CHECK(field_of([&](Sampling& s) { s.temperature = bad; }) == "temperature");
    CHECK(field_of([&](Sampling& s) { s.top_p = bad; }) == "top_p");
    CHECK(field_of([&](Sampling& s) { s.min_p = bad; }) == "min_p");
    CHECK(field_of([&](Sampling& s) { s.typical_p = bad; }) == "typical_p");
    CHECK(field_of([&](Sampling& s) { s.repeat_penalty = bad; }) == "repeat_penalty");
  }
  for (float bad : {-101.0f, kInfinity, nan}) {
    CHECK(field_of([&](Sampling& s) { s.presence_penalty = bad; }) == "presence_penalty");
    CHECK(field_of([&](Sampling& s) { s.frequency_penalty = bad; }) == "frequency_penalty");
  }
  CHECK(field_of([](Sampling& s) { s.repeat_penalty = 0; }) == "repeat_penalty");
  CHECK(field_of([](Sampling& s) { s.top_k = -1; }) == "top_k");
  CHECK(field_of([](Sampling& s) { s.repeat_last_n = -2; }) == "repeat_last_n");
  CHECK(field_of([](Sampling& s) { s.seed = -2; }) == "seed");
  CHECK(field_of([](Sampling& s) { s.logit_bias = {{-1, 0.0f}}; }) == "logit_bias");
  CHECK(field_of([&](Sampling& s) { s.logit_bias = {{1, nan}}; }) == "logit_bias");
  CHECK(field_of([](Sampling& s) { s.logit_bias = {{1, kInfinity}}; }) == "logit_bias");
}

TEST_CASE("logits: non-finite values are seen wherever they are") {
  for (size_t n : {1, 15, 16, 17, 100, 50000}) {
    auto logits = random_logits(n, 1);
    CHECK(all_finite(logits));
    for (size_t at : {size_t{0}, n / 2, n - 1})
      for (float bad : {kInfinity, -kInfinity, std::nanf("")}) {
        auto copy = logits;
        copy[at] = bad;
        CHECK_FALSE(all_finite(copy));
      }
    logits[n / 2] = 3e38f;
    CHECK(all_finite(logits));
  }
}

TEST_CASE("logits: log of the sum of exponentials agrees with double precision") {
  SamplerScratch scratch;
  for (size_t n : {1, 17, 1023, 1025, 130000}) {
    const auto logits = random_logits(n, 4);
    double sum = 0;
    for (float x : logits) sum += std::exp(static_cast<double>(x));
    CHECK(log_sum_exp(logits, scratch) == Approx(std::log(sum)).epsilon(1e-6).margin(1e-6));
  }
  CHECK(log_sum_exp(std::vector<float>{1e30f, 0, -1e30f}, scratch) == Approx(1e30));
}

TEST_CASE("stop strings: found across pieces, held back while they may begin, flushed at the end") {
  auto feed = [](std::vector<std::string> stops, const std::vector<std::string>& pieces) {
    StopMatcher matcher(std::move(stops));
    std::string text;
    for (const auto& piece : pieces) text += matcher.push(piece);
    text += matcher.finish();
    return std::pair{text, matcher.matched() ? *matcher.matched() : ""};
  };
  using Out = std::pair<std::string, std::string>;
  CHECK(feed({}, {"ab", "c"}) == Out{"abc", ""});
  CHECK(feed({"END"}, {"one E", "N", "D two"}) == Out{"one ", "END"});
  CHECK(feed({"END"}, {"one E", "N", "E two EN"}) == Out{"one ENE two EN", ""});
  CHECK(feed({"aab"}, {"a", "a", "a", "b", "c"}) == Out{"a", "aab"});
  CHECK(feed({"\n\n", "User:"}, {"hi\nUs", "er: x\n\n"}) == Out{"hi\n", "User:"});
  CHECK(feed({"ab", "abc"}, {"xabc"}) == Out{"x", "abc"});
  CHECK(feed({"x"}, {"x"}) == Out{"", "x"});
  StopMatcher matcher({"stop"});
  CHECK(matcher.push("go st") == "go ");
  CHECK(matcher.push("ay") == "stay");
  CHECK_THROWS_AS(StopMatcher({""}), Error);
  CHECK_THROWS_AS(StopMatcher(std::vector<std::string>(65, "x")), Error);
}

TEST_CASE("stop strings: pieces of any length give the same text") {
  const std::string text = "the cat sat on the mat and the cat ran at the dog";
  for (const std::string stop : {"the d", "cat ran", "mat and t", "zzz", "g"}) {
    const size_t at = text.find(stop);
    for (size_t length = 1; length < 8; ++length) {
      StopMatcher matcher({stop, "qqq"});
      std::string out;
      for (size_t i = 0; i < text.size(); i += length) out += matcher.push(text.substr(i, length));
      out += matcher.finish();
      CHECK(out == text.substr(0, at));
    }
  }
}

TEST_CASE("sampler: the rule for devices draws the same tokens from the same seed") {
  std::mt19937 random(7);
  for (int which = 0; which < 60; ++which) {
    Sampling s;
    s.temperature = which % 4 == 0 ? 0 : 0.4f * static_cast<float>(which % 4);
    s.top_k = 1 + static_cast<int>(random() % kMaxSampleTopK);
    s.top_p = which % 3 ? 0.9f : 1.0f;
    s.min_p = which % 5 ? 0.05f : 0.0f;
    if (which % 2) {
      s.repeat_penalty = 1.2f;
      s.frequency_penalty = 0.3f;
      s.presence_penalty = -0.2f;
      s.repeat_last_n = which % 7 == 0 ? static_cast<int>(kSampleHistory) : 20;
    }
    Sampler sampler(s, random());
    SampleRow row = sampler.row().value();
    row.enabled = 1;
    REQUIRE(sample_row_supported(row));
    SamplerScratch scratch;
    std::vector<int32_t> ring(kSampleHistory), out(1);
    Drawn drawn;
    Ids history;
    const size_t n = which % 6 == 0 ? 40 : 3000, n_valid = n - static_cast<size_t>(which % 3);
    for (int step = 0; step < 50; ++step) {
      std::vector<float> logits = random_logits(n, static_cast<uint32_t>(random()));
      for (float& x : logits) x = std::round(x * 16) / 16;  // ties
      SampleArgs args;
      args.logits = Tensor(logits.data(), DType::F32, {1, static_cast<int64_t>(n)});
      args.n_valid = static_cast<int64_t>(n_valid);
      args.rows = Tensor(&row, DType::I32, {1, 16});
      args.history = Tensor(ring.data(), DType::I32, {1, kSampleHistory});
      args.out = Tensor(out.data(), DType::I32, {1});
      args.host_out = Tensor(&drawn, DType::I32, {1, 2});
      std::vector<float> copy(logits.begin(), logits.begin() + static_cast<std::ptrdiff_t>(n_valid));
      history.push_back(sampler.sample(copy, history, scratch));
      sample_on_host(args);
      REQUIRE(drawn.finite == 1);
      REQUIRE(drawn.id == history.back());
      REQUIRE(out[0] == drawn.id);
    }
  }
}

TEST_CASE("sampler: what no device draws has no row for it") {
  Sampling s;
  CHECK(Sampler(s, 1).row());
  s.typical_p = 0.9f;
  CHECK_FALSE(Sampler(s, 1).row());
  s.temperature = 0;
  CHECK(Sampler(s, 1).row());
  s.logit_bias = {{1, 1.0f}};
  CHECK_FALSE(Sampler(s, 1).row());
}
