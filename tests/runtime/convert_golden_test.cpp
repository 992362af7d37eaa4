// The golden folders of the shared folder against the files that llama.cpp's converter made of them: after conversion
// here the same tensors with the same weights, and the same keys.
#include <cmath>
#include <filesystem>

#include "infer.h"
#include "quant/formats.h"
#include "runtime/gguf.h"
#include "tests/catch.h"
#include "tests/folder.h"

using namespace infer;
namespace fs = std::filesystem;

namespace {

std::vector<float> values(const HostTensor& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.n_elements()));
  REQUIRE(decode_row(tensor.dtype, tensor.data, out.data(), tensor.n_elements()));
  return out;
}

void check_value(const std::string& key, const Value& got, const Value& want) {
  INFO(key);
  CHECK(got.type == want.type);
  if (key == "general.name") return;
  if (const auto* number = std::get_if<double>(&want.data)) {
    CHECK(std::get<double>(got.data) == Approx(*number).epsilon(1e-6));
  } else {
    CHECK(got.data == want.data);
  }
}

void check_file(const Checkpoint& got, const Checkpoint& want) {
  for (const auto& [key, value] : want.metadata) {
    if (key == "general.file_type") continue;
    INFO(key);
    const auto found = got.metadata.find(key);
    CHECK(found != got.metadata.end());
    if (found != got.metadata.end()) check_value(key, found->second, value);
  }
  CHECK(got.tensors.size() == want.tensors.size());
  for (const HostTensor& tensor : want.tensors) {
    INFO(tensor.name);
    const HostTensor* mine = got.find_tensor(tensor.name);
    REQUIRE(mine != nullptr);
    CHECK(mine->dims == tensor.dims);
    if (mine->dims != tensor.dims) continue;
    const std::vector<float> a = values(*mine), b = values(tensor);
    // The converter computes this table in F32.
    const float bound = tensor.name == "rope_freqs.weight" ? 1e-6f : 0.0f;
    for (size_t i = 0; i < a.size(); ++i)
      if (!(std::fabs(a[i] - b[i]) <= bound * std::fabs(b[i]))) FAIL_CHECK(i << ": " << a[i] << ", " << b[i]);
  }
}

}  // namespace

TEST_CASE("a converted golden folder is the file that llama.cpp's converter made") {
  const fs::path root = std::string(SHARED_DATA) + "/golden/models";
  int n = 0;
  if (fs::exists(root)) {
    for (const auto& entry : fs::directory_iterator(root)) {
      if (!fs::exists(entry.path() / "hf") || !fs::exists(entry.path() / "model.gguf")) continue;
      ++n;
      INFO(entry.path().filename());
      const test::Folder folder;
      QuantizeOptions options;
      options.type = "F32";
      quantize((entry.path() / "hf").string(), folder / "out.gguf", options);
      check_file(read_gguf(folder / "out.gguf"), read_gguf((entry.path() / "model.gguf").string()));
    }
  }
  if (n == 0) WARN("no shared golden models: nothing was checked");
}
