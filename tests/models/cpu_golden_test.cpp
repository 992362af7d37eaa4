// Whole models on the cpu backend: the recorded logits of an independent implementation, and the promise that neither
// the size of a step nor its company, threads nor the cut of the work changes a bit.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/cpu/isa.h"
#include "runtime/gguf.h"
#include "tests/catch.h"
#include "tests/models/runner.h"

using namespace infer;

namespace {

struct Golden {
  std::string folder;
  nlohmann::json json;

  explicit Golden(const std::string& name) : folder(std::string(TEST_DATA) + "/models/" + name) {
    std::ifstream(folder + "/golden.json") >> json;
  }
  std::vector<int32_t> ids(const char* part) const { return json[part]["ids"].get<std::vector<int32_t>>(); }
  std::vector<float> want(const char* part) const {
    const std::string path = folder + "/" + json[part]["logits"].get<std::string>();
    std::vector<float> out(std::filesystem::file_size(path) / sizeof(float));
    std::ifstream(path, std::ios::binary)
        .read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size() * sizeof(float)));
    return out;
  }
  Runner runner(const std::string& isa, int threads = 2, DType kv_type = DType::F32) const {
    return Runner(read_gguf(folder + "/model.gguf", {}), "cpu", kv_type, {threads, isa});
  }
};

std::vector<std::string> levels() {
  std::vector<std::string> list;
  for (cpu::Isa isa : {cpu::Isa::scalar, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (cpu::isa_available(isa)) list.push_back(cpu::to_string(isa));
  }
  return list;
}

std::vector<float> tail(const std::vector<float>& logits, const std::vector<float>& like) {
  return {logits.end() - static_cast<std::ptrdiff_t>(like.size()), logits.end()};
}

struct GoldenModel {
  const char* name;
  double bar;  ///< float weights are exact up to rounding; quantised ones meet int8 activations
};
constexpr GoldenModel kModels[] = {{"llama3_rope", 1e-3}, {"gemma3", 1e-8}, {"gguf_q4_k_m", 1e-3}};

}  // namespace

TEST_CASE("the cpu gives the recorded logits") {
  for (const GoldenModel& model : kModels) {
    const Golden golden(model.name);
    for (const std::string& isa : levels()) {
      for (const char* part : {"short", "long"}) {
        INFO(model.name << " " << part << " " << isa);
        Runner runner = golden.runner(isa);
        const std::vector<float> want = golden.want(part);
        CHECK(nmse(tail(runner.step({{0, golden.ids(part)}}), want), want) <= model.bar);
      }
    }
  }
}

TEST_CASE("the cpu keeps its promise with every cache type") {
  for (const GoldenModel& model : kModels) {
    const Golden golden(model.name);
    for (DType type : {DType::F16, DType::BF16, DType::Q8_0}) {
      INFO(model.name << " cache type " << static_cast<int>(type));
      const std::vector<float> want = golden.want("long");
      try {
        Runner runner = golden.runner("", 2, type);
        CHECK(nmse(tail(runner.step({{0, golden.ids("long")}}), want), want) <= 2e-3);
      } catch (const Error& e) {  // a head that is no multiple of a block
        CHECK(type == DType::Q8_0);
        CHECK(e.where() == "KV cache");
      }
    }
  }
}

TEST_CASE("on the cpu a prompt in chunks, token by token and at once gives the same bits") {
  for (const GoldenModel& model : kModels) {
    const Golden golden(model.name);
    std::vector<int32_t> ids = golden.ids("long");
    ids.resize(std::min<size_t>(ids.size(), 100));
    for (const std::string& isa : levels()) {
      Runner first = golden.runner(isa, 1);
      const std::vector<float> whole = first.step({{0, ids}});
      Runner runner = golden.runner(isa, 3);
      int sequence = 1;
      for (size_t size : {1, 7, 33}) {
        std::vector<float> parts;
        for (size_t at = 0; at < ids.size(); at += size) {
          const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(at);
          const auto end = ids.begin() + static_cast<std::ptrdiff_t>(std::min(ids.size(), at + size));
          const std::vector<float> part = runner.step({{sequence, {begin, end}}});
          parts.insert(parts.end(), part.begin(), part.end());
        }
        INFO(model.name << " " << isa << " chunks of " << size);
        CHECK(parts == whole);
        ++sequence;
      }
    }
  }
}

TEST_CASE("on the cpu sequences that share a step get the bits they get alone") {
  for (const GoldenModel& model : kModels) {
    const Golden golden(model.name);
    std::vector<int32_t> a = golden.ids("short"), b = {5, 6, 7}, c = golden.ids("long");
    for (const std::string& isa : levels()) {
      INFO(model.name << " " << isa);
      Runner alone = golden.runner(isa, 1), together = golden.runner(isa, 2);
      std::vector<float> want;
      for (int s = 0; s < 3; ++s) {
        const std::vector<float> logits = alone.step({{s, s == 0 ? a : s == 1 ? b : c}});
        want.insert(want.end(), logits.begin(), logits.end());
      }
      CHECK(together.step({{0, a}, {1, b}, {2, c}}) == want);
    }
  }
}
