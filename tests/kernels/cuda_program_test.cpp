// How the decode kernel's shared memory is laid out: pure arithmetic on shapes, no device is needed.
#include "kernels/cuda/program.h"

#include "kernels/cuda/packed.h"
#include "tests/catch.h"

using namespace infer;
using namespace infer::cuda;

namespace {

constexpr ProgramLimits kH100{132, 226304, 3352}, kH200{132, 226304, 4917};

/// A stage that multiplies with a matrix that is said to lie somewhere; nobody looks there.
DecodeStage stage_of(DType type, int64_t rows, int64_t cols) {
  float x = 0;
  Tensor w(&x, type, {rows, cols});
  w.layout = packed_layout(type);
  const auto stage =
      product_stage({Tensor(&x, DType::F32, {1, cols}), w, {}, Tensor(&x, DType::F32, {1, rows})}, false);
  REQUIRE(stage);
  return *stage;
}

/// Of the largest chunk of such a matrix.
int chunk_bytes(DType type, int64_t cols) {
  const MatrixArg w = stage_of(type, 16, cols).w[0];
  return w.chunk_bytes * (w.is_plain ? kTileRows : 1);
}

}  // namespace

TEST_CASE("the parts of shared memory follow one another, whatever the format, the width and the rows") {
  int planned = 0;
  for (const DType type : {DType::F32, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::Q6_K, DType::Q2_K})
    for (const int64_t cols : {256, 4096, 14336, 28672, 53248})
      for (const int64_t dim : {0, 2048, 4096, 16384})
        for (int rows = 1; rows <= kMaxDecodeRows; ++rows) {
          INFO(static_cast<int>(type) << " " << cols << " dim " << dim << " rows " << rows);
          const SharedPlan plan = plan_shared({stage_of(type, 4096, cols)}, rows, dim, kH100);
          if (plan.ring_bytes == 0) continue;
          ++planned;
          CHECK(plan.ring_bytes >= 2 * chunk_bytes(type, cols));
          CHECK(plan.ring_bytes % 128 == 0);
          CHECK(plan.kernel_rows >= rows);
          CHECK(plan.in_flight >= 2 * chunk_bytes(type, cols));
          CHECK(plan.act >= plan.ring_bytes);
          CHECK(plan.x >= plan.act + rows * plan.act_row_bytes);
          CHECK(plan.partial >= plan.x + rows * dim * 4);
          CHECK(plan.total >= plan.partial + kept_tiles(plan.kernel_rows) * kWarps * plan.kernel_rows * kTileRows * 4);
          CHECK(plan.total <= kH100.shared_bytes);
        }
  CHECK(planned > 300);
}

TEST_CASE("what leaves no room for two chunks has no plan") {
  CHECK(plan_shared({stage_of(DType::BF16, 4096, 4096)}, 1, 4096, kH100).ring_bytes >= 4 * 16 * 2048);
  CHECK(plan_shared({stage_of(DType::BF16, 8192, 28672)}, 1, 8192, kH100).ring_bytes >= 2 * 16 * 2048);
  CHECK(plan_shared({stage_of(DType::F32, 16384, 53248)}, 1, 16384, kH100).ring_bytes == 0);
}

TEST_CASE("a faster memory gets more bytes in flight") {
  const DecodeStage stage = stage_of(DType::Q4_K, 4096, 14336);
  const int h100 = plan_shared({stage}, 1, 4096, kH100).in_flight,
            h200 = plan_shared({stage}, 1, 4096, kH200).in_flight;
  CHECK(h200 > h100 * 1.4);
  CHECK(h200 < h100 * 1.5);
}
