// What the public interface tells of the machine, of loading, and of a model's bytes before it is loaded.
#include <set>

#include "infer.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/tiny_model.h"

using namespace infer;

TEST_CASE("loading is told by phases, in order, that make up its time") {
  const test::Folder folder;
  test::write_tiny_model(folder / "tiny.gguf");
  LoadOptions options;
  options.device = "cpu";
  const Model model = Model::load(folder / "tiny.gguf", options);
  const ModelInfo& info = model.info();
  std::vector<std::string> names;
  double sum = 0;
  for (const auto& [name, seconds] : info.load_phases) {
    INFO(name);
    CHECK(seconds >= 0);
    names.push_back(name);
    sum += seconds;
  }
  CHECK(names == std::vector<std::string>{"open", "convert", "tokenizer", "device", "weights"});
  CHECK(sum > 0);
  CHECK(sum <= info.load_seconds * 1.0001);
  options.vocab_only = true;
  CHECK(Model::load(folder / "tiny.gguf", options).info().load_phases.size() == 3);
}

TEST_CASE("the headers tell how many bytes a token will read") {
  const test::Folder folder;
  for (const int64_t n_experts : {0, 4}) {
    test::TinyModel tiny;
    tiny.n_experts = n_experts;
    tiny.weights = DType::Q8_0;
    test::write_tiny_model(folder / "tiny.gguf", tiny);
    for (const char* device : {"cpu", "ref"}) {
      INFO(device << ", " << n_experts << " experts");
      LoadOptions options;
      options.device = device;
      const size_t told = Model::inspect(folder / "tiny.gguf", 0, options).info.stream_bytes;
      CHECK(told > 0);
      CHECK(told == Model::load(folder / "tiny.gguf", options).info().stream_bytes);
    }
  }
}

TEST_CASE("the host is told as it computes") {
  const HostInfo host = host_info();
  CHECK(std::set<std::string>{"scalar", "avx2", "avx512"}.count(host.isa) == 1);
  CHECK(host.n_threads >= 1);
  CHECK(host.available_bytes > 0);
  CHECK(std::set<std::string>{"optimised", "not optimised", "sanitized"}.count(host.build) == 1);
#if defined(__SANITIZE_ADDRESS__)
  CHECK(host.build == "sanitized");
#endif
}

TEST_CASE("a GPU is listed as usable or with a reason, and what is not there cannot be measured") {
  const std::vector<GpuInfo> gpus = list_gpus();
  for (const GpuInfo& gpu : gpus) {
    CHECK_FALSE(gpu.pci_bus_id.empty());
    CHECK(gpu.total_bytes == 0);  // was not asked for
  }
  if (gpus.empty()) CHECK_THROWS_AS(measure_gpu_copies(0), Error);
}
