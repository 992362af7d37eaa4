// The golden models of the shared folder, in both forms: for every model type, whether its architecture runs yet or
// not, the metadata, the names and shapes of tensors and every weight are those that llama.cpp's converter wrote.
#include <cmath>
#include <filesystem>
#include <set>

#include "quant/formats.h"
#include "runtime/gguf.h"
#include "runtime/hf_folder.h"
#include "tests/catch.h"

using namespace infer;
namespace fs = std::filesystem;

namespace {

constexpr const char* kModels[] = {"llama",   "llama3_rope", "mistral",    "mixtral",       "qwen2",  "qwen2_moe",
                                   "qwen3",   "qwen3_moe",   "qwen3_tied", "olmoe",         "gemma2", "gemma3",
                                   "granite", "smollm3",     "phi3",       "phi3_longrope", "gpt_oss"};

std::vector<float> values(const HostTensor& tensor) {
  const int64_t n = tensor.n_elements() / tensor.dims[0];
  std::vector<float> out(static_cast<size_t>(tensor.n_elements()));
  for (int64_t i = 0; i < tensor.dims[0]; ++i) REQUIRE(decode_row(tensor.dtype, tensor.slice(i), &out[i * n], n));
  return out;
}

bool is_permuted(const Checkpoint& gguf, const std::string& name) {
  const std::string arch = gguf.get_string("general.architecture");
  const bool rotates = name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight");
  return rotates && (arch == "llama" || arch == "granite" || arch == "smollm3");
}

void check_tensors(const Checkpoint& gguf, const Checkpoint& hf) {
  std::set<std::string> left;
  for (const HostTensor& tensor : hf.tensors) left.insert(tensor.name);
  for (const HostTensor& want : gguf.tensors) {
    if (want.name == "rope_freqs.weight") continue;  // config.json has the parameters instead
    INFO(want.name);
    const HostTensor* got = hf.find_tensor(want.name);
    CHECK(got != nullptr);
    if (!got) continue;
    left.erase(want.name);
    CHECK(got->dims == want.dims);
    if (got->dims != want.dims || is_permuted(gguf, want.name)) continue;
    CHECK(values(*got) == values(want));
  }
  CHECK(left.empty());
}

double number(const Value& value) {
  if (const auto* i = std::get_if<int64_t>(&value.data)) return static_cast<double>(*i);
  if (const auto* d = std::get_if<double>(&value.data)) return *d;
  return NAN;
}

void check_metadata(const Checkpoint& gguf, const Checkpoint& hf) {
  const std::string arch = gguf.get_string("general.architecture");
  CHECK(hf.get_string("general.architecture") == arch);
  for (const auto& [key, want] : gguf.metadata) {
    if (!key.starts_with(arch + ".")) continue;
    const auto found = hf.metadata.find(key);
    // A window of 0, and an original context without scaling, say nothing; plain numbers must all be there.
    if (found == hf.metadata.end() && (number(want) == 0 || key.find("original_context") != key.npos)) continue;
    INFO(key);
    CHECK(found != hf.metadata.end());
    if (found == hf.metadata.end()) continue;
    if (const auto* text = std::get_if<std::string>(&want.data)) {
      CHECK(std::get<std::string>(found->second.data) == *text);
    } else {
      CHECK(number(found->second) == Approx(number(want)).epsilon(1e-6));
    }
  }
}

}  // namespace

TEST_CASE("a folder says what the converted file says, for every model type") {
  const std::string root = std::string(SHARED_DATA) + "/golden/models/";
  int n = 0;
  for (const char* name : kModels) {
    if (!fs::exists(root + name + "/hf/config.json")) continue;
    ++n;
    INFO(name);
    const Checkpoint gguf = read_gguf(root + name + "/model.gguf");
    const Checkpoint hf = read_hf_folder(root + name + "/hf", {});
    check_metadata(gguf, hf);
    check_tensors(gguf, hf);
  }
  if (n == 0) WARN("no shared golden models: nothing was checked");
}

TEST_CASE("matrices of quantised folders are kept in the format that is exact, or else in F16") {
  const std::string root = std::string(SHARED_DATA) + "/golden/models/";
  const std::pair<const char*, DType> folders[] = {
      {"llama_awq_g128", DType::W4G128},    {"qwen2_awq_g32", DType::W4G},
      {"llama_gptq_g32_sym", DType::Q4_0},  {"llama_gptq_whole_column", DType::Q4_0},
      {"llama_gptq_g32_asym", DType::W4G},  {"llama_gptq_v2_g32_asym", DType::W4G},
      {"llama_gptq_8bit_g32", DType::Q8_0}, {"qwen2_gptq_8bit_g128_asym", DType::F16},
      {"llama_ct_w4a16_g32", DType::Q4_0},  {"llama_ct_w4a16_g128_asym", DType::W4G128},
      {"llama_ct_fp8_channel", DType::F16}, {"llama_fp8_block", DType::F16},
      {"qwen2_gptq_g128_sym", DType::Q4_0}, {"llama_fp8_static", DType::F16},
  };
  int n = 0;
  for (const auto& [name, dtype] : folders) {
    if (!fs::exists(root + name + "/hf/config.json")) continue;
    ++n;
    INFO(name);
    LoadOptions options;
    options.device = "cpu";
    const Checkpoint hf = read_hf_folder(root + name + "/hf", options);
    CHECK(hf.find_tensor("blk.0.ffn_down.weight")->dtype == dtype);
    CHECK(hf.warnings.empty() == (dtype != DType::F16));
  }
  if (n == 0) WARN("no shared golden models: nothing was checked");
}
