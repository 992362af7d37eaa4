// self_test(): passes where a device agrees with the reference, and says where it does not.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>

#include "infer.h"
#include "tests/catch.h"
#include "tests/sanitized.h"
#include "tests/tiny_model.h"

using namespace infer;

namespace {

LoadOptions on(const std::string& device) {
  LoadOptions options;
  options.device = device;
  return options;
}

}  // namespace

TEST_CASE("self-test: every op of a model, on every device of this machine's own memory") {
  int at = 0;
  for (const char* model : {"llama3_rope", "gemma3", "gguf_q4_k_m"})
    for (const char* device : {"cpu", "ref"})
      for (const char* kv : {"f32", "f16", "bf16", "q8_0", "q4_0"}) {
        if (test::kSanitized && ++at % 3 != 0) continue;  // every cache on both devices, with one of the models each
        INFO(model << " on " << device << ", cache " << kv);
        int notes = 0;
        const SelfTest test = self_test(std::string(TEST_DATA) + "/models/" + model + "/model.gguf", on(device), kv, kv,
                                        [&](const std::string&) { ++notes; });
        std::set<std::string> ops;
        for (const SelfTestRow& row : test.rows) {
          INFO(row.op << " " << row.format << " " << row.shape << " " << row.n_tokens << ": " << row.max_error << " "
                      << row.rms_error);
          CHECK(row.passed);
          CHECK(row.max_error >= row.rms_error);
          ops.insert(row.op);
        }
        CHECK(test.passed);
        CHECK(test.notes.empty());
        CHECK(notes > 0);
        CHECK(ops.size() == 9);
      }
}

TEST_CASE("self-test: numbers that are not finite fail, by the name of their op") {
  const auto path = std::filesystem::temp_directory_path() / "infer_self_test.gguf";
  test::GgufWriter file = test::tiny_model();
  const float nan = std::nanf("");
  std::memcpy(file.find_tensor("blk.0.ffn_down.weight").data.data(), &nan, sizeof nan);
  file.write(path.string());
  const SelfTest test = self_test(path.string(), on("cpu"));
  std::filesystem::remove(path);
  CHECK_FALSE(test.passed);
  for (const SelfTestRow& row : test.rows) {
    INFO(row.op);
    const bool meets_it = row.op == "ffn" || row.op.starts_with("steps");
    CHECK(row.passed == !meets_it);
    CHECK(std::isinf(row.rms_error) == meets_it);
  }
}

TEST_CASE("self-test: what cannot be loaded is refused as load() does") {
  CHECK_THROWS_AS(self_test("/nowhere.gguf", on("cpu")), Error);
  CHECK_THROWS_WITH(self_test(std::string(TEST_DATA) + "/models/gemma3/model.gguf", on("cpu"), "q5_0"),
                    Catch::Contains("q5_0"));
}
