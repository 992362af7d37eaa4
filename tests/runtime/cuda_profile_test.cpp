// Profiles of a GPU: the plan's bytes, stages that lie within their steps by the device's clock, and one launch and a
// draw for a recorded step. Without a GPU the test says SKIPPED.
#include <cmath>
#include <iostream>

#include "infer.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/tiny_model.h"

using namespace infer;

namespace {

bool skipped() {
  for (const std::string& device : list_devices())
    if (device.starts_with("cuda")) return false;
  std::cout << "SKIPPED: no CUDA device" << std::endl;
  WARN("SKIPPED: no CUDA device; nothing was profiled on one");
  return true;
}

Model model_of(const test::Folder& folder, DType weights) {
  test::TinyModel tiny;
  tiny.weights = weights;
  tiny.dim = 256, tiny.ffn_dim = 512, tiny.n_layers = 3;
  const std::string path = folder / (std::to_string(static_cast<int>(weights)) + ".gguf");
  test::write_tiny_model(path, tiny);
  LoadOptions load;
  load.device = "cuda";
  return Model::load(path, load);
}

void check_kernels(const StageProfile& stage) {
  INFO(stage.stage);
  CHECK_FALSE(stage.kernels.empty());
  for (const KernelProfile& k : stage.kernels) {
    INFO(k.name);
    CHECK_FALSE(k.name.empty());
    CHECK(k.n_launches > 0);
    CHECK(k.n_blocks > 0);
    CHECK(k.n_threads > 0);
    CHECK(k.n_threads <= 1024);
    CHECK(k.registers > 0);
    CHECK(k.registers <= 255);
    CHECK(k.local_bytes >= 0);
    CHECK(k.shared_bytes >= 0);
    CHECK(k.blocks_per_sm > 0);
    CHECK(k.occupancy > 0);
    CHECK(k.occupancy <= 1);
  }
}

}  // namespace

TEST_CASE("cuda profile: many sequences at once have kernels of their own, and who is looked at computes the same") {
  if (skipped()) return;
  const test::Folder folder;
  const Model model = model_of(folder, DType::Q8_0);
  EngineOptions options;
  options.n_ctx = 256;
  Request request;
  request.ids = {3, 1, 4, 1, 5};
  request.sampling.temperature = 0, request.sampling.ignore_eos = true, request.max_tokens = 8;
  const auto before = Engine(model, options).generate(request).ids;
  ProfileOptions what;
  what.n_gen = 4, what.depth = 10, what.repetitions = 2;
  for (const int64_t n_seqs : {1, 8, 64}) {
    what.n_seqs = n_seqs;
    const StepProfile profile = profile_steps(model, options, what);
    CHECK(profile.n_tokens == 2 * 4 * n_seqs);
    CHECK(profile.n_steps == 8);
    for (const StageProfile& s : profile.stages) check_kernels(s);
    if (n_seqs > 4) CHECK(profile.step_kernels.empty());
  }
  what.n_gen = 0, what.n_prompt = 200, what.n_seqs = 1;  // cuBLASLt's kernels are told too
  for (const StageProfile& s : profile_steps(model, options, what).stages) check_kernels(s);
  CHECK(Engine(model, options).generate(request).ids == before);
}

TEST_CASE("cuda profile: every way through the products gives the same logits, and an engine says which it goes by") {
  if (skipped()) return;
  const test::Folder folder;
  for (const DType weights : {DType::Q8_0, DType::F16, DType::BF16}) {
    const Model model = model_of(folder, weights);
    EngineOptions options;
    options.n_ctx = 256;
    const auto logits = [&](int64_t n, const Crossover* numbers) {
      EngineOptions own = options;
      if (numbers)
        for (Crossover row : Engine(model, options).crossovers()) {
          row.program_most = numbers->program_most, row.few_least = numbers->few_least;
          row.wide_least = numbers->wide_least;
          own.crossovers.push_back(row);
        }
      Engine engine(model, own);
      REQUIRE_FALSE(engine.crossovers().empty());
      if (numbers)
        for (const Crossover& row : engine.crossovers()) CHECK(row.wide_least == numbers->wide_least);
      std::vector<TokenId> ids;
      for (TokenId i = 0; i < n; ++i) ids.push_back(i % 50 + 1);
      std::vector<float> out;
      engine.logits(ids, 0,
                    [&](int64_t, std::span<const float> row) { out.insert(out.end(), row.begin(), row.end()); });
      return out;
    };
    for (const int64_t n : {1, 2, 3, 4, 8, 40}) {
      const std::vector<float> wanted = logits(n, nullptr);
      for (const Crossover& numbers : {Crossover{"", "", 0, 129, 129}, Crossover{"", "", 0, 1, 129},
                                       Crossover{"", "", 0, 129, 1}, Crossover{"", "", 4, 129, 129}}) {
        const std::vector<float> got = logits(n, &numbers);
        REQUIRE(got.size() == wanted.size());
        double error = 0, norm = 0;
        for (size_t i = 0; i < got.size(); ++i)
          error += std::pow(got[i] - wanted[i], 2), norm += std::pow(wanted[i], 2);
        INFO(n << " rows, few from " << numbers.few_least << ", wide from " << numbers.wide_least);
        CHECK(std::sqrt(error / norm) < 0.05);  // activations of 8 bits here, of 16 there
      }
    }
  }
}

TEST_CASE("cuda profile: bytes are the plan's, and a step as usual is one recorded launch") {
  if (skipped()) return;
  const test::Folder folder;
  for (const DType weights : {DType::BF16, DType::Q8_0}) {
    const Model model = model_of(folder, weights);
    EngineOptions options;
    options.n_ctx = 256;
    ProfileOptions what;
    what.n_gen = 8, what.depth = 10, what.repetitions = 2;
    const StepProfile profile = profile_steps(model, options, what);
    double bytes = 0, seconds = 0;
    int64_t launches = 0;
    bool draws = false;
    for (const StageProfile& s : profile.stages) {
      bytes += s.weight_bytes, seconds += s.seconds, launches += s.n_launches;
      draws = draws || s.stage == "sample";
      CHECK(s.n_launches >= s.n_calls);
    }
    CHECK(std::llround(bytes / 16) == static_cast<long long>(model.info().stream_bytes));
    CHECK(draws);
    CHECK(seconds > 0);
    CHECK(seconds <= profile.step_seconds);
    CHECK(profile.n_whole_launches == 16 * 3);  // the step, and a draw's two kernels
    CHECK(launches > profile.n_whole_launches);
    CHECK(profile.cache_bytes > 0);
    for (const StageProfile& s : profile.stages) check_kernels(s);
    REQUIRE(profile.step_kernels.size() <= 1);  // one on GPUs that walk the step with one kernel
    for (const KernelProfile& k : profile.step_kernels) CHECK(k.name.starts_with("decode_kernel"));

    const HostProfile host = profile_host(model, options, what);
    CHECK_FALSE(host.host_computes);
    CHECK(host.n_tokens >= 7);
    CHECK(host.n_steps_ahead > 0);
    CHECK(host.busy_seconds > 0);
    CHECK(host.step_cpu_seconds <= host.cpu_seconds);
  }
}
