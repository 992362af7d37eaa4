// The packed device layout, on the host: every weight comes back bit for bit, and a matrix has just the bytes it
// claims.
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cuda/packed.h"
#include "tests/catch.h"

using namespace infer;
using namespace infer::cuda;

namespace {

template <class F>
void check_matrix(int64_t rows, int64_t cols) {
  std::mt19937 random(static_cast<unsigned>(rows * 131 + cols));
  const int64_t row_blocks = cols / F::block;
  std::vector<typename F::Block> file(static_cast<size_t>(rows * row_blocks));
  for (auto& block : file) {
    uint8_t bytes[sizeof(block)];
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
    std::memcpy(&block, bytes, sizeof(block));
  }
  std::vector<uint8_t> packed(static_cast<size_t>(packed_matrix_bytes(F::id, rows, cols)), 0);
  constexpr int kBlockGroups = F::block / kGroup;
  const auto block_of = [&](int64_t r, int64_t g) -> const typename F::Block& {
    return file[static_cast<size_t>(r * row_blocks + g / kBlockGroups)];
  };
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t g = 0; g < cols / kGroup; ++g) {
      const PackedPlace p = place<F>(cols, r, g);
      REQUIRE(p.chunk + Chunk<F>{p.groups}.bytes() <= static_cast<int64_t>(packed.size()));
      REQUIRE(p.chunk % 16 == 0);
      pack_group<F>(block_of(r, g), static_cast<int>(g % kBlockGroups), packed.data() + p.chunk, {p.groups}, p.row,
                    p.group);
    }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t g = 0; g < cols / kGroup; ++g) {
      const PackedPlace p = place<F>(cols, r, g);
      float got[kGroup], want[kGroup];
      decode_packed<F>(packed.data() + p.chunk, {p.groups}, p.row, p.group, got);
      F::decode(block_of(r, g), static_cast<int>(g % kBlockGroups), want);
      for (int i = 0; i < kGroup; ++i) {
        const bool both_nan = got[i] != got[i] && want[i] != want[i];
        if (!both_nan && std::memcmp(&got[i], &want[i], 4) != 0) FAIL(F::name << " row " << r << " group " << g);
      }
    }
}

}  // namespace

TEST_CASE("cuda layout: packed matrices decode to the file's weights, bit for bit") {
  const auto all = []<class... F>(FormatList<F...>) {
    (..., [] {
      if constexpr (F::block > 1)
        for (const int64_t rows : {1, 15, 16, 33})
          for (const int64_t blocks : {1, 2, 7, 9})
            check_matrix<F>(rows, F::block == kGroup ? blocks * 13 * kGroup : blocks * F::block);
    }());
  };
  all(GpuFormats{});
}

TEST_CASE("cuda layout: matrices take the bits of the file, rows filled up to tiles of 16") {
  for (const DType dtype :
       {DType::Q4_0, DType::Q8_0, DType::Q4_K, DType::Q5_K, DType::Q6_K, DType::Q2_K, DType::Q4_1, DType::IQ4_XS,
        DType::IQ4_NL, DType::MXFP4, DType::Q5_0, DType::Q5_1, DType::W4G, DType::W4G128, DType::W8F, DType::W8I}) {
    CHECK(packed_matrix_bytes(dtype, 4096, 14336) == tensor_bytes(dtype, 4096, 14336));
    CHECK(packed_matrix_bytes(dtype, 17, 512) == tensor_bytes(dtype, 32, 512));
    CHECK(packed_layout(dtype) == kTiles);
  }
  // Two bytes more for each 256 weights.
  CHECK(packed_matrix_bytes(DType::Q3_K, 16, 2048) == tensor_bytes(DType::Q3_K, 16, 2048) + 16 * 8 * 2);
  CHECK(packed_matrix_bytes(DType::F16, 3, 5) == 3 * 16);
  CHECK(packed_matrix_bytes(DType::BF16, 4096, 4096) == 4096 * 8192);
  CHECK(packed_layout(DType::F32) == kRowMajor);
}
