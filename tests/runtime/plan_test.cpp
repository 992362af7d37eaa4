// The memory plan's arithmetic, and what the system says is available.
#include "runtime/plan.h"

#include <filesystem>
#include <fstream>
#include <functional>

#include "infer/error.h"
#include "kernels/ops.h"
#include "runtime/memory.h"
#include "tests/catch.h"

using namespace infer;

namespace {

Config small_config() {
  Config c;
  c.n_layers = 2;
  c.n_kv_heads = 3;
  c.head_dim = 64;
  RopeConfig rope;
  rope.dim = 64;
  c.ropes = {rope, rope};
  return c;
}

struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / "infer_cgroup_test";
  Folder() { std::filesystem::remove_all(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  void put(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((path / name).parent_path());
    std::ofstream(path / name) << text;
  }
};

ErrorKind kind_of(const std::function<void()>& fn, std::string* text = nullptr) {
  try {
    fn();
  } catch (const Error& e) {
    if (text) *text = e.what();
    return e.kind();
  }
  FAIL("no error");
  return ErrorKind::run;
}

}  // namespace

TEST_CASE("plan: a position of the cache costs K and V of every layer and head") {
  const Config c = small_config();
  CHECK(kv_bytes_per_token(c, DType::F16, DType::F16) == 2 * 3 * 64 * 2 * 2);
  CHECK(kv_bytes_per_token(c, DType::F32, DType::F16) == 2 * 3 * 64 * (4 + 2));
  CHECK(kv_bytes_per_token(c, DType::Q8_0, DType::Q8_0) == 2 * 3 * 2 * (64 / 32 * 34));
  CHECK(kv_bytes_per_token(c, DType::Q8_0, DType::Q4_0) == 3 * 2 * (64 / 32) * (34 + 18));
  CHECK(rope_bytes_per_position(c) == 2 * 64 * 4);
  Config odd = c;
  odd.head_dim = 48;
  CHECK(kind_of([&] { kv_bytes_per_token(odd, DType::Q8_0, DType::F16); }) == ErrorKind::usage);
  CHECK_THROWS_WITH(kv_bytes_per_token(odd, DType::F16, DType::Q4_0), Catch::Contains("Q4_0") && Catch::Contains("48"));
}

TEST_CASE("plan: names of cache types") {
  CHECK(kv_type("k_type", "q8_0") == DType::Q8_0);
  CHECK(kv_type("k_type", "bf16") == DType::BF16);
  CHECK(kv_type("k_type", "q4_0") == DType::Q4_0);
  for (const char* bad : {"", "F16", "q4_1", "q5_0", "i8", "f16 "})
    CHECK(kind_of([&] { kv_type("k_type", bad); }) == ErrorKind::usage);
}

TEST_CASE("plan: the context is what the file allows or what fits, in whole pages") {
  const ContextCosts costs{1000, 10};
  CHECK(largest_context(costs, 999) == 0);
  CHECK(largest_context(costs, 1000 + 10 * kPageTokens - 1) == 0);
  CHECK(largest_context(costs, 1000 + 10 * kPageTokens) == kPageTokens);
  CHECK(largest_context(costs, 1000 + 10 * (3 * kPageTokens + 5)) == 3 * kPageTokens);
  CHECK(largest_context({0, 1}, SIZE_MAX) == kMaxContext);
  CHECK(choose_context(0, 70, costs, size_t{1} << 40) == 70);
  CHECK(choose_context(0, 1 << 20, costs, kSpareBytes + 1000 + 10 * kPageTokens) == kPageTokens);
  CHECK(choose_context(50, 70, costs, size_t{1} << 40) == 50);
  CHECK(choose_context(100, 70, costs, size_t{1} << 40) == 100);  // more than the file was trained for is allowed
}

TEST_CASE("plan: what does not fit names the largest context that would") {
  const ContextCosts costs{1000, 10};
  std::string text;
  CHECK(kind_of([&] { choose_context(500, 70, costs, 1000 + 10 * 2 * kPageTokens); }, &text) ==
        ErrorKind::does_not_fit);
  CHECK(text.find("at most 64") != std::string::npos);
  CHECK(kind_of([&] { choose_context(1, 70, costs, 10); }, &text) == ErrorKind::does_not_fit);
  CHECK(kind_of([&] { choose_context(0, 70, costs, kSpareBytes + 10); }, &text) == ErrorKind::does_not_fit);
}

TEST_CASE("memory: available is read from meminfo") {
  CHECK(meminfo_available("MemTotal:       100 kB\nMemAvailable:    24 kB\nBuffers: 1 kB\n") == 24 * 1024u);
  CHECK_FALSE(meminfo_available("MemTotal: 100 kB\n"));
  CHECK_FALSE(meminfo_available("MemAvailable: lots\n"));
  CHECK_FALSE(meminfo_available(""));
  CHECK(available_memory() > 0);
}

TEST_CASE("memory: the tightest control group counts, file pages do not") {
  const Folder folder;
  folder.put("memory.max", "max\n");
  folder.put("memory.current", "5\n");
  folder.put("a/memory.max", "1000\n");
  folder.put("a/memory.current", "700\n");
  folder.put("a/memory.stat", "anon 1\ninactive_file 100\nactive_file 50\n");
  folder.put("a/b/memory.max", "2000\n");
  folder.put("a/b/memory.current", "600\n");
  CHECK(cgroup_available("0::/a/b\n", folder.path) == 1000u - (700 - 150));
  CHECK_FALSE(cgroup_available("0::/\n", folder.path));
  CHECK_FALSE(cgroup_available("", folder.path));
  folder.put("memory.max", "100\n");
  CHECK(cgroup_available("0::/not/below/this/mount\n", folder.path) == 95u);
  folder.put("memory/c/memory.limit_in_bytes", "400\n");
  folder.put("memory/c/memory.usage_in_bytes", "300\n");
  folder.put("memory/c/memory.stat", "total_inactive_file 10\ntotal_active_file 20\n");
  CHECK(cgroup_available("5:cpu:/x\n4:memory:/c\n", folder.path) == 130u);
}

TEST_CASE("sizes are printed as people read them") {
  CHECK(human_size(0) == "0 bytes");
  CHECK(human_size(1023) == "1023 bytes");
  CHECK(human_size(1536) == "1.5 KiB");
  CHECK(human_size(size_t{5} << 30) == "5.0 GiB");
}
