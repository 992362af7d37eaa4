// Whole models against recorded float32 logits of an independent implementation: three from tests/data, the others from
// the shared folder when it is there.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "runtime/gguf.h"
#include "tests/catch.h"
#include "tests/models/runner.h"

using namespace infer;

namespace {

struct Golden {
  std::string folder;
  nlohmann::json json;

  explicit Golden(const std::string& path) : folder(path) { std::ifstream(path + "/golden.json") >> json; }

  Checkpoint checkpoint(const GgufOptions& options = {}) const { return read_gguf(folder + "/model.gguf", options); }
  std::vector<int32_t> ids(const char* part) const { return json[part]["ids"].get<std::vector<int32_t>>(); }
  std::vector<float> logits(const std::string& file) const {
    std::vector<float> out(std::filesystem::file_size(folder + "/" + file) / sizeof(float));
    std::ifstream in(folder + "/" + file, std::ios::binary);
    in.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size() * sizeof(float)));
    REQUIRE(in);
    return out;
  }
  std::vector<float> want(const char* part) const { return logits(json[part]["logits"]); }
  /// The smallest error against what is accepted: some files may be read in two ways, and the folder says so.
  double error(const char* part, const std::vector<float>& got) const {
    std::vector<std::string> files = {json[part]["logits"]};
    for (const auto& file : json.value(std::string("gguf_") + part + "_also", nlohmann::json::array()))
      files.push_back(file);
    double best = std::numeric_limits<double>::infinity();
    for (const std::string& file : files) {
      const std::vector<float> accepted = logits(file);
      const auto skipped = static_cast<std::ptrdiff_t>(got.size() - accepted.size());
      best = std::min(best, nmse({got.begin() + skipped, got.end()}, accepted));
    }
    return best;
  }
  std::vector<std::vector<int32_t>> greedy_paths() const {
    std::vector<std::vector<int32_t>> paths = {ids("greedy")};
    for (const auto& also : json.value("gguf_greedy_also", nlohmann::json::array()))
      paths.push_back(also["ids"].get<std::vector<int32_t>>());
    return paths;
  }
};

Golden local(const std::string& name) { return Golden(std::string(TEST_DATA) + "/models/" + name); }

/// The local models, then those of the shared folder that this program can run.
std::vector<Golden> all_golden() {
  std::vector<Golden> out = {local("llama3_rope"), local("gemma3"), local("gguf_q4_k_m")};
  const std::string shared = std::string(SHARED_DATA) + "/golden/models/";
  for (const char* name :
       {"llama", "mistral", "qwen2", "qwen3", "qwen3_tied", "gemma2", "phi3", "phi3_longrope", "smollm3", "granite",
        "gguf_q3_k_s", "gguf_q4_0", "gguf_q8_0", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"}) {
    if (std::filesystem::exists(shared + name)) out.emplace_back(shared + name);
  }
  if (out.size() == 3) WARN("no shared golden models: only those in tests/data are checked");
  return out;
}

/// The last rows, as many as `like` has.
std::vector<float> tail(const std::vector<float>& logits, const std::vector<float>& like) {
  return {logits.end() - static_cast<std::ptrdiff_t>(like.size()), logits.end()};
}

}  // namespace

TEST_CASE("ref gives the recorded logits of a short prompt") {
  for (const Golden& golden : all_golden()) {
    INFO(golden.folder);
    Runner runner(golden.checkpoint());
    CHECK(golden.error("short", runner.step({{0, golden.ids("short")}})) <= 1e-8);
  }
}

TEST_CASE("ref gives the recorded logits at the end of a prompt longer than every window") {
  for (const Golden& golden : all_golden()) {
    INFO(golden.folder);
    Runner runner(golden.checkpoint());
    CHECK(golden.error("long", runner.step({{0, golden.ids("long")}})) <= 1e-8);
  }
}

TEST_CASE("cpu gives the recorded logits up to the rounding of weights' formats") {
  for (const Golden& golden : all_golden()) {
    INFO(golden.folder);
    Runner runner(golden.checkpoint(), "cpu");
    CHECK(golden.error("short", runner.step({{0, golden.ids("short")}})) <= 1e-3);
    CHECK(golden.error("long", runner.step({{1, golden.ids("long")}})) <= 1e-3);
  }
}

TEST_CASE("ref follows the recorded greedy path") {
  for (const Golden& golden : all_golden()) {
    INFO(golden.folder);
    Runner runner(golden.checkpoint());
    std::vector<int32_t> ids = golden.ids("short"), path;
    while (path.size() < golden.ids("greedy").size()) {
      const std::vector<float> logits = runner.step({{0, ids}});
      const int64_t vocab = runner.config().vocab;
      path.push_back(argmax(logits.data() + static_cast<int64_t>(logits.size()) - vocab, vocab));
      ids = {path.back()};
    }
    const auto accepted = golden.greedy_paths();
    CHECK(std::find(accepted.begin(), accepted.end(), path) != accepted.end());
  }
}

TEST_CASE("a prompt in chunks, token by token and at once gives the same bits") {
  for (const char* name : {"gemma3", "llama3_rope"}) {
    INFO(name);
    const Golden golden = local(name);
    std::vector<int32_t> ids = golden.ids("long");
    ids.resize(100);
    Runner runner(golden.checkpoint());
    const std::vector<float> whole = runner.step({{0, ids}});
    int sequence = 1;
    for (size_t size : {1, 7, 32, 33}) {
      std::vector<float> parts;
      for (size_t at = 0; at < ids.size(); at += size) {
        const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(at);
        const auto end = ids.begin() + static_cast<std::ptrdiff_t>(std::min(ids.size(), at + size));
        const std::vector<float> part = runner.step({{sequence, {begin, end}}});
        parts.insert(parts.end(), part.begin(), part.end());
      }
      CHECK(parts == whole);
      ++sequence;
    }
  }
}

TEST_CASE("sequences that share a step get the bits they get alone") {
  const Golden golden = local("gemma3");
  const std::vector<int32_t> a = golden.ids("short"), b = {5, 6, 7}, more = golden.ids("greedy");
  Runner alone(golden.checkpoint()), together(golden.checkpoint());
  const auto joined = [](std::vector<float> x, const std::vector<float>& y) {
    x.insert(x.end(), y.begin(), y.end());
    return x;
  };
  std::vector<float> first = joined(alone.step({{0, a}}), alone.step({{1, b}}));
  CHECK(together.step({{0, a}, {1, b}}) == first);
  first = joined(alone.step({{1, more}}), alone.step({{0, {9}}}));
  CHECK(together.step({{1, more}, {0, {9}}}) == first);
}

TEST_CASE("rows whose logits nobody wants change none that are wanted, and are cached all the same") {
  const Golden golden = local("gemma3");
  const std::vector<int32_t> a = golden.ids("short"), b = {5, 6, 7}, more = golden.ids("greedy");
  Runner all(golden.checkpoint()), some(golden.checkpoint());
  const int64_t vocab = all.config().vocab;
  const std::vector<float> full = all.step({{0, a}, {1, b}});
  const auto row = [&](size_t i) { return full.begin() + static_cast<std::ptrdiff_t>(i) * vocab; };
  std::vector<float> want(row(a.size() - 2), row(a.size()));
  want.insert(want.end(), row(a.size() + 2), full.end());
  CHECK(some.step({{0, a, 2}, {1, b, 1}}) == want);
  // The first step below wants nothing at all; the second reads what it left in the cache.
  std::vector<std::string> stages;
  CHECK(some.step({{2, a, 0}}).empty());
  CHECK(some.step({{2, more, 0}}, [&](int, const char* stage, const Tensor&) { stages.push_back(stage); }).empty());
  CHECK(stages.size() == 1 + 4 * static_cast<size_t>(all.config().n_layers));
  CHECK(stages.back() == "ffn");
  all.step({{0, more}});
  CHECK(some.step({{2, {9}}}) == all.step({{0, {9}}}));
}

TEST_CASE("a llama file with a window key has that window in every layer") {
  const std::string folder = std::string(SHARED_DATA) + "/golden/models/mistral";
  if (!std::filesystem::exists(folder)) {
    // Without recorded logits: a window as long as the prompt changes nothing, a shorter one changes the last row.
    const Golden golden = local("llama3_rope");
    const auto run = [&](const char* window) {
      GgufOptions options;
      options.overrides = {{"llama.attention.sliding_window", "int", window}};
      return Runner(golden.checkpoint(options)).step({{0, golden.ids("short")}});
    };
    CHECK(run("40") == run("0"));
    CHECK(run("39") != run("0"));
    return;
  }
  const Golden golden(folder);
  const std::vector<float> want = golden.logits("logits_tail.f32"), full = golden.logits("logits_tail_nowindow.f32");
  GgufOptions options;
  options.overrides = {{"llama.attention.sliding_window", "int", "64"}};
  Runner windowed(golden.checkpoint(options)), plain(golden.checkpoint());
  CHECK(nmse(tail(windowed.step({{0, golden.ids("long")}}), want), want) <= 1e-8);
  CHECK(nmse(tail(plain.step({{0, golden.ids("long")}}), full), full) <= 1e-8);
}

TEST_CASE("cache types cost what their rounding costs") {
  const Golden golden = local("gemma3");
  const std::vector<float> want = golden.want("long");
  for (const auto& [type, bound] : {std::pair(DType::F16, 1e-5), {DType::BF16, 5e-4}, {DType::Q8_0, 5e-3}}) {
    INFO(format_name(type));
    Runner runner(golden.checkpoint(), "ref", type);
    const double error = nmse(tail(runner.step({{0, golden.ids("long")}}), want), want);
    CHECK(error <= bound);
    CHECK(error >= bound * 1e-4);  // the type was really used
  }
}

TEST_CASE(
    "every architecture gives the logits of an independent forward pass, in sizes that are multiples of nothing") {
  const std::string folder = std::string(TEST_DATA) + "/architectures/";
  for (const char* arch : {"llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "granite"}) {
    const std::string file = folder + arch + ".f32";
    std::vector<float> want(std::filesystem::file_size(file) / sizeof(float));
    std::ifstream(file, std::ios::binary)
        .read(reinterpret_cast<char*>(want.data()), static_cast<std::streamsize>(want.size() * sizeof(float)));
    for (const auto& [backend, bound] : {std::pair("ref", 1e-11), {"cpu", 1e-5}}) {
      INFO(arch << " on " << backend);
      Runner runner(read_gguf(folder + arch + ".gguf"), backend);
      std::vector<int32_t> ids;
      for (int32_t i = 0; i < 40; ++i) ids.push_back((7 * i + 3) % 37);
      CHECK(nmse(runner.step({{0, ids}}), want) <= bound);
    }
  }
}
