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

}  // namespace

TEST_CASE("cuda profile: bytes are the plan's, and a step as usual is one recorded launch") {
  if (skipped()) return;
  const test::Folder folder;
  for (const DType weights : {DType::BF16, DType::Q8_0}) {
    test::TinyModel tiny;
    tiny.weights = weights;
    tiny.dim = 256, tiny.ffn_dim = 512, tiny.n_layers = 3;
    const std::string path = folder / (std::to_string(static_cast<int>(weights)) + ".gguf");
    test::write_tiny_model(path, tiny);
    LoadOptions load;
    load.device = "cuda";
    const Model model = Model::load(path, load);
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

    const HostProfile host = profile_host(model, options, what);
    CHECK_FALSE(host.host_computes);
    CHECK(host.n_tokens >= 7);
    CHECK(host.n_steps_ahead > 0);
    CHECK(host.busy_seconds > 0);
    CHECK(host.step_cpu_seconds <= host.cpu_seconds);
  }
}
