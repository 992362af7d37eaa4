// Logits of whole texts, several at a time: the same numbers however they are batched, and the same steps in two
// engines.
#include <filesystem>
#include <map>
#include <random>

#include "infer.h"
#include "tests/catch.h"
#include "tests/tiny_model.h"

using namespace infer;

namespace {

using Ids = std::vector<TokenId>;
using Rows = std::map<std::pair<size_t, int64_t>, std::vector<float>>;

Model tiny(const std::string& device, uint32_t seed = 1, int64_t dim = 64) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("infer_scoring_" + std::to_string(std::random_device()()) + ".gguf"))
          .string();
  test::TinyModel model;
  model.seed = seed;
  model.dim = dim;
  test::write_tiny_model(path, model);
  LoadOptions options;
  options.device = device;
  options.mmap = false;
  Model loaded = Model::load(path, options);
  std::filesystem::remove(path);
  return loaded;
}

Ids text(int64_t n, int64_t salt) {
  Ids ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<TokenId>((i * i * 31 + salt * 101 + i * 7) % 256));
  return ids;
}

EngineOptions options(int64_t n_seqs, int64_t n_ubatch = 512, int64_t n_outputs = 0) {
  EngineOptions o;
  o.n_ctx = 128;
  o.n_seqs = n_seqs;
  o.n_ubatch = n_ubatch;
  o.n_outputs = n_outputs;
  o.n_threads = 2;
  return o;
}

Rows singles(const Model& model, const std::vector<Ids>& texts, int64_t first) {
  Engine engine(model, options(1));
  Rows rows;
  for (size_t i = 0; i < texts.size(); ++i)
    engine.logits(texts[i], first, [&](int64_t position, std::span<const float> row) {
      rows[{i, position}] = {row.begin(), row.end()};
    });
  return rows;
}

}  // namespace

TEST_CASE("scoring: texts computed together have the logits that each has alone, bit for bit") {
  for (const std::string device : {"ref", "cpu"}) {
    const Model model = tiny(device);
    const std::vector<Ids> texts = {text(100, 1), text(37, 2), text(128, 3)};
    const Rows want = singles(model, texts, 20);
    REQUIRE(want.size() == 80 + 17 + 108);
    for (const auto& [n_ubatch, n_outputs] : {std::pair(512, 0), {512, 512}, {50, 7}, {3, 1}, {300, 100}}) {
      INFO(device << " " << n_ubatch << " " << n_outputs);
      Engine engine(model, options(3, n_ubatch, n_outputs));
      Rows got;
      Scoring scoring = engine.score(texts, 20);
      int64_t n_steps = 0, largest = 0;
      for (bool more = true; more; n_steps += more) {
        int64_t n = 0;
        more = scoring.step([&](size_t t, int64_t position, std::span<const float> row) {
          CHECK(got.emplace(std::pair(t, position), std::vector<float>(row.begin(), row.end())).second);
          ++n;
        });
        largest = std::max(largest, n);
      }
      CHECK((got == want));
      CHECK(largest <= std::max<int64_t>(3, n_outputs ? n_outputs : 64));
      CHECK(engine.stats().n_steps == n_steps);
      CHECK(engine.stats().n_tokens == 100 + 37 + 128);
      if (n_ubatch == 512 && n_outputs == 512) CHECK(n_steps == 1);
    }
  }
}

TEST_CASE("scoring: on a GPU texts computed together have the reference's logits") {
  bool gpu = false;
  for (const std::string& device : list_devices()) gpu = gpu || device.starts_with("cuda");
  if (!gpu) {
    WARN("SKIPPED: no CUDA device; scoring was not tested on one");
    return;
  }
  const std::vector<Ids> texts = {text(100, 1), text(37, 2), text(128, 3)};
  const Rows want = singles(tiny("ref", 1, 256), texts, 20);
  const Model model = tiny("cuda", 1, 256);
  for (const auto& [n_ubatch, n_outputs] : {std::pair(512, 512), {512, 0}, {50, 7}}) {
    INFO(n_ubatch << " " << n_outputs);
    Engine engine(model, options(3, n_ubatch, n_outputs));
    Scoring scoring = engine.score(texts, 20);
    double error = 0, power = 0;
    size_t n = 0;
    while (scoring.step([&](size_t t, int64_t position, std::span<const float> row) {
      const std::vector<float>& reference = want.at({t, position});
      for (size_t i = 0; i < row.size(); ++i) {
        error += (static_cast<double>(row[i]) - reference[i]) * (static_cast<double>(row[i]) - reference[i]);
        power += static_cast<double>(reference[i]) * reference[i];
      }
      ++n;
    })) {
    }
    CHECK(n == want.size());
    CHECK(error <= 1e-3 * power);  // the cache is f16, that of the reference f32
  }
}

TEST_CASE("scoring: two engines with the same options give the same rows in each step") {
  const Model a = tiny("cpu"), b = tiny("ref", 2);
  Engine first(a, options(2, 60, 11)), second(b, options(2, 60, 11));
  const std::vector<Ids> texts = {text(90, 4), text(90, 5)};
  Scoring one = first.score(texts, 30), other = second.score(texts, 30);
  using Place = std::pair<size_t, int64_t>;
  int64_t n = 0;
  for (;;) {
    std::vector<Place> here, there;
    const bool more = one.step([&](size_t t, int64_t i, auto) { here.emplace_back(t, i); });
    CHECK(other.step([&](size_t t, int64_t i, auto) { there.emplace_back(t, i); }) == more);
    CHECK((here == there));
    n += static_cast<int64_t>(here.size());
    if (!more) break;
  }
  CHECK(n == 120);
}

TEST_CASE("scoring: wrong texts are refused, and pages are free again afterwards") {
  const Model model = tiny("ref");
  Engine engine(model, options(2));
  const auto kind = [&](std::vector<Ids> texts, int64_t first) {
    try {
      engine.score(std::move(texts), first);
    } catch (const Error& error) {
      return error.kind();
    }
    return ErrorKind::gate;
  };
  CHECK(kind({}, 0) == ErrorKind::usage);
  CHECK(kind({text(5, 1), text(5, 2), text(5, 3)}, 0) == ErrorKind::usage);
  CHECK(kind({text(5, 1), {}}, 0) == ErrorKind::usage);
  CHECK(kind({text(5, 1), text(3, 1)}, 3) == ErrorKind::usage);
  CHECK(kind({text(5, 1)}, -1) == ErrorKind::usage);
  CHECK(kind({text(129, 1)}, 0) == ErrorKind::usage);
  CHECK(kind({{1, 100000}}, 0) == ErrorKind::usage);
  const int64_t n_free = engine.stats().n_free_pages;
  {
    Scoring held = engine.score({text(128, 1), text(128, 2)}, 0);
    CHECK(engine.stats().n_free_pages == 0);
    CHECK(kind({text(5, 1)}, 0) == ErrorKind::does_not_fit);
  }
  CHECK(engine.stats().n_free_pages == n_free);
  EngineOptions bad = options(1);
  bad.n_outputs = -1;
  CHECK_THROWS_AS(Engine(model, bad), Error);
}
