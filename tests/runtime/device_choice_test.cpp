// Names of devices, and memory planned for one that is not there.
#include <filesystem>

#include "infer.h"
#include "runtime/loader.h"
#include "tests/catch.h"
#include "tests/tiny_model.h"

using namespace infer;

namespace {

// Heads of 64, for which there are kernels everywhere.
struct ModelFile {
  std::string path = (std::filesystem::temp_directory_path() / "infer_device_test.gguf").string();
  explicit ModelFile(int64_t context = 8192) {
    test::TinyModel model;
    model.weights = DType::Q8_0;
    model.dim = 256;
    model.ffn_dim = 512;
    model.context = context;
    test::write_tiny_model(path, model);
  }
  ~ModelFile() { std::filesystem::remove(path); }
};

MemoryPlan plan(const ModelFile& file, size_t bytes, int64_t n_ctx = 0, int64_t n_seqs = 1) {
  EngineOptions engine;
  engine.n_ctx = n_ctx;
  engine.n_seqs = n_seqs;
  return Model::plan(file.path, engine, {}, bytes);
}

}  // namespace

TEST_CASE("names of devices are a backend and, for GPUs, a number") {
  for (const char* text : {"", "auto"}) CHECK(parse_device(text).name == "auto");
  CHECK(parse_device("cpu").name == "cpu");
  CHECK(parse_device("ref").name == "ref");
  CHECK(parse_device("cuda").name == "cuda");
  CHECK(parse_device("cuda").index == 0);
  CHECK(parse_device("cuda:3").name == "cuda");
  CHECK(parse_device("cuda:3").index == 3);
  for (const char* bad :
       {"gpu", "CUDA", "cpu:1", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:99999", ":1", "auto:1"}) {
    INFO(bad);
    CHECK_THROWS_WITH(parse_device(bad), Catch::Contains(bad) && Catch::Contains("auto, cuda, cuda:N, cpu, ref"));
  }
}

TEST_CASE("a plan is made for every type of cache") {
  const ModelFile file;
  EngineOptions engine;
  engine.n_ctx = 64;
  for (const char* device : {"", "cpu"}) {
    engine.k_type = "q4_0";
    LoadOptions load;
    load.device = device;
    CHECK(Model::plan(file.path, engine, load, size_t{24} << 30).k_type == "Q4_0");
    engine.k_type = "q5_1";
    CHECK_THROWS_WITH(Model::plan(file.path, engine, load, size_t{24} << 30), Catch::Contains("q5_1"));
  }
}

TEST_CASE("memory is planned for a GPU that is not there") {
  const ModelFile file;
  const MemoryPlan p = plan(file, size_t{24} << 30);
  CHECK(p.device == "cuda");
  CHECK(p.refusal.empty());
  CHECK(p.n_ctx == 8192);
  CHECK(p.largest_ctx >= 8192);
  CHECK(p.mapped_bytes == 0);
  CHECK(p.matrix_bytes > 0);
  CHECK(p.embedding_bytes > 0);
  CHECK(p.vector_bytes == (2 * 2 + 1) * 256 * sizeof(float));
  CHECK(p.kv_bytes_per_token == 2 * 2 * 2 * 64 * 2);  // K and V, layers, heads, f16
  CHECK(p.kv_bytes == 8192 * p.kv_bytes_per_token);
  CHECK(p.total_bytes == p.matrix_bytes + p.embedding_bytes + p.vector_bytes + p.kv_bytes + p.rope_bytes +
                             p.activation_bytes + p.scratch_bytes + p.program_bytes);
  CHECK(p.total_bytes < p.available_bytes);
  CHECK(plan(file, size_t{24} << 30, 0, 4).kv_bytes == 4 * p.kv_bytes);
}

TEST_CASE("a context that does not fit is refused with the largest that would, and that one fits") {
  const ModelFile file;
  const size_t enough = plan(file, size_t{24} << 30, 32).total_bytes + (size_t{8} << 20);
  const MemoryPlan refused = plan(file, enough, 1 << 20);
  CHECK_THAT(refused.refusal, Catch::Contains("at most " + std::to_string(refused.largest_ctx)));
  CHECK(refused.largest_ctx > 0);
  CHECK(refused.n_ctx == 1 << 20);
  CHECK(refused.total_bytes > enough);
  CHECK(plan(file, enough, refused.largest_ctx).refusal.empty());
  CHECK_FALSE(plan(file, enough, refused.largest_ctx + 64).refusal.empty());
}

TEST_CASE("weights that do not fit are refused, their sizes told") {
  const ModelFile file;
  const MemoryPlan refused = plan(file, size_t{64} << 20);
  CHECK_THAT(refused.refusal, Catch::Contains("weights") && Catch::Contains("64.0 MiB"));
  CHECK(refused.matrix_bytes > 0);
  CHECK(refused.largest_ctx == 0);
}

TEST_CASE("the plan of host memory is that of the device cpu") {
  const ModelFile file;
  LoadOptions options;
  options.device = "cpu";
  const MemoryPlan here = Model::plan(file.path, {}, options),
                   given = Model::plan(file.path, {}, options, size_t{1} << 40);
  CHECK(here.refusal.empty());
  CHECK_THAT(here.device, Catch::StartsWith("cpu ("));
  CHECK(given.device == "cpu");
  CHECK(given.total_bytes == here.total_bytes);
  CHECK(given.scratch_bytes == 0);
  options.device = "abacus";
  CHECK_THROWS_AS(Model::plan(file.path, {}, options), Error);
}

TEST_CASE("devices are either usable or have a reason") {
  const auto usable = list_devices(), unusable = list_unusable_devices();
  const auto about_cuda = [](const std::vector<std::string>& lines) {
    return std::any_of(lines.begin(), lines.end(), [](const std::string& l) { return l.starts_with("cuda"); });
  };
  CHECK((about_cuda(usable) || about_cuda(unusable)));
  CHECK(usable.size() >= 2);
  for (const std::string& line : unusable) CHECK(line.size() > line.find(": ") + 8);
}
