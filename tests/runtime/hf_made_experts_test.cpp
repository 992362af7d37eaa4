// Experts that are yet to be made: gpt-oss's rows and codes against their definition, and stacks of matrices of which
// some lie in the file and some do not.
#include <atomic>
#include <cstring>
#include <random>
#include <vector>

#include "quant/formats.h"
#include "runtime/hf_names.h"
#include "runtime/row_reader.h"
#include "tests/catch.h"

using namespace infer;

namespace {

using Bytes = std::vector<std::byte>;

Bytes random_bytes(int64_t n) {
  std::mt19937 random(static_cast<unsigned>(n));
  Bytes out;
  for (int64_t i = 0; i < n; ++i) out.push_back(static_cast<std::byte>(random()));
  return out;
}

HostTensor tensor_of(const std::string& name, DType dtype, std::vector<int64_t> dims, const Bytes& bytes) {
  HostTensor out;
  out.name = name;
  out.dtype = dtype;
  out.dims = std::move(dims);
  out.data = bytes.data();
  out.bytes = bytes.size();
  return out;
}

/// Every stretch of rows is that of `whole`.
void check_rows(const HostTensor& tensor, const Bytes& whole) {
  INFO(tensor.name);
  REQUIRE(tensor.make);
  REQUIRE(tensor.bytes == whole.size());
  const int64_t rows = tensor.n_elements() / tensor.dims.back();
  const size_t row = tensor.bytes / static_cast<size_t>(rows);
  Bytes some(whole.size());
  for (int64_t first = 0; first < rows; ++first)
    for (const int64_t n : {int64_t{1}, int64_t{5}, rows - first}) {
      if (first + n > rows) continue;
      tensor.make(first, n, some.data());
      const size_t at = static_cast<size_t>(first) * row;
      CHECK(std::memcmp(some.data(), whole.data() + at, static_cast<size_t>(n) * row) == 0);
    }
}

}  // namespace

TEST_CASE("gpt-oss: rows of gate and up in turn, codes that share a byte with their neighbour") {
  constexpr int64_t kExperts = 3, kRows = 10, kBlocks = 3, kDown = 7;
  const Bytes codes = random_bytes(kExperts * kRows * kBlocks * 16), scales = random_bytes(kExperts * kRows * kBlocks),
              down_codes = random_bytes(kExperts * kDown * kBlocks * 16),
              down_scales = random_bytes(kExperts * kDown * kBlocks), bias(kExperts * kRows * 2),
              down_bias(kExperts * kDown * 2);
  Checkpoint checkpoint;
  checkpoint.path = "folder";
  const std::string prefix = "model.layers.0.mlp.experts.";
  checkpoint.tensors = {tensor_of(prefix + "gate_up_proj_blocks", DType::U8, {kExperts, kRows, kBlocks, 16}, codes),
                        tensor_of(prefix + "gate_up_proj_scales", DType::U8, {kExperts, kRows, kBlocks}, scales),
                        tensor_of(prefix + "gate_up_proj_bias", DType::BF16, {kExperts, kRows}, bias),
                        tensor_of(prefix + "down_proj_blocks", DType::U8, {kExperts, kDown, kBlocks, 16}, down_codes),
                        tensor_of(prefix + "down_proj_scales", DType::U8, {kExperts, kDown, kBlocks}, down_scales),
                        tensor_of(prefix + "down_proj_bias", DType::BF16, {kExperts, kDown}, down_bias)};
  std::atomic<int64_t> brought = 0, outside = 0;
  checkpoint.read = [&](const std::byte* from, std::span<std::byte> to) {
    for (const Bytes* bytes : {&codes, &scales, &down_codes, &down_scales})
      if (from >= bytes->data() && from + to.size() <= bytes->data() + bytes->size()) {
        std::memcpy(to.data(), from, to.size());
        brought += static_cast<int64_t>(to.size());
        return true;
      }
    ++outside;
    return false;
  };
  rename_tensors(checkpoint, kGptOssNames, {.n_layers = 1, .n_experts = kExperts});

  /// Rows first, first + step, ... of all experts.
  const auto wanted = [&](const Bytes& from, const Bytes& e, int64_t first, int64_t step) {
    Bytes out;
    for (int64_t row = first; row * kBlocks < static_cast<int64_t>(e.size()); row += step)
      for (int64_t b = 0; b < kBlocks; ++b) {
        const auto at = static_cast<size_t>(row * kBlocks + b);
        const auto code = [&](size_t i) { return static_cast<int>(from[at * 16 + i / 2]) >> (i % 2 * 4) & 15; };
        out.push_back(e[at]);
        for (size_t i = 0; i < 16; ++i) out.push_back(static_cast<std::byte>(code(i) | code(i + 16) << 4));
      }
    return out;
  };
  const std::pair<const char*, Bytes> matrices[] = {{"gate", wanted(codes, scales, 0, 2)},
                                                    {"up", wanted(codes, scales, 1, 2)},
                                                    {"down", wanted(down_codes, down_scales, 0, 1)}};
  for (const auto& [name, whole] : matrices) {
    const HostTensor* tensor = checkpoint.find_tensor("blk.0.ffn_" + std::string(name) + "_exps.weight");
    REQUIRE(tensor);
    CHECK(tensor->dtype == DType::MXFP4);
    CHECK(tensor->dims == std::vector<int64_t>{kExperts, name[0] == 'd' ? kDown : kRows / 2, kBlocks * 32});
    const int64_t before = brought;
    check_rows(*tensor, whole);
    CHECK(brought > before);
  }
  CHECK(outside == 0);
}

TEST_CASE("rows of a file are brought many at a time, each once, and none beyond the last one") {
  const auto some = random_bytes(int64_t{7} * 100'000);
  std::vector<int64_t> pieces;
  const ReadBytes read = [&](const std::byte* from, std::span<std::byte> to) {
    REQUIRE((from >= some.data() && from + to.size() <= some.data() + some.size()));
    pieces.push_back(static_cast<int64_t>(to.size()));
    std::memcpy(to.data(), from, to.size());
    return true;
  };
  const auto brought = [&](int64_t row_bytes, int64_t first, int64_t end, int64_t step) {
    pieces.clear();
    RowReader rows(some.data(), row_bytes, first, end, read);
    for (int64_t i = first; i < end; i += step)
      CHECK(std::memcmp(rows.row(i), some.data() + i * row_bytes, static_cast<size_t>(row_bytes)) == 0);
    return pieces;
  };
  using Pieces = std::vector<int64_t>;
  CHECK(brought(100'000, 0, 7, 1) == Pieces{200'000, 200'000, 200'000, 100'000});
  CHECK(brought(100'000, 3, 6, 1) == Pieces{200'000, 100'000});
  CHECK(brought(100'000, 1, 7, 2) == Pieces{200'000, 200'000, 200'000});
  CHECK(brought(350'000, 0, 2, 1) == Pieces{350'000, 350'000});  // longer than what is read at a time
  CHECK(brought(10, 5, 20, 3) == Pieces{150});
  const ReadBytes none;
  RowReader lying(some.data(), 1000, 0, 3, none);
  CHECK(std::memcmp(lying.row(2), some.data() + 2000, 1000) == 0);
}

TEST_CASE("a stack is made of experts that lie in the file and of such that are yet to be made") {
  constexpr int64_t kExperts = 3, kRows = 4, kCols = 8;
  const Bytes numbers = random_bytes(kExperts * kRows * kCols * 2);
  constexpr size_t kBytes = kRows * kCols * 2;
  Checkpoint checkpoint;
  checkpoint.path = "folder";
  for (size_t i = 0; i < kExperts; ++i) {
    HostTensor expert;
    expert.name = "model.layers.0.block_sparse_moe.experts." + std::to_string(i) + ".w1.weight";
    expert.dtype = DType::F16;
    expert.dims = {kRows, kCols};
    expert.bytes = kBytes;
    expert.data = numbers.data() + i * kBytes;
    if (i != 1) {
      expert.make = [lying = expert](int64_t first, int64_t n, std::byte* to) { lying.copy_rows(first, n, to); };
      expert.data = nullptr;
    }
    checkpoint.tensors.push_back(expert);
  }
  rename_tensors(checkpoint, kMixtralNames, {.n_layers = 1, .n_experts = kExperts, .tied = true});
  const HostTensor* stack = checkpoint.find_tensor("blk.0.ffn_gate_exps.weight");
  REQUIRE(stack);
  CHECK(stack->dims == std::vector<int64_t>{kExperts, kRows, kCols});
  CHECK(!stack->data);
  CHECK(stack->parts.empty());
  check_rows(*stack, numbers);
}
