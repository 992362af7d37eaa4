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

SharedPlan plan_of(const DecodeStage& stage, int n_rows, int64_t dim, const ProgramLimits& limits) {
  std::vector<DecodeStage> stages{stage};
  return plan_shared(stages, n_rows, dim, limits);
}

}  // namespace

TEST_CASE("a slot of the ring serves one team, whatever the format, the width and the rows") {
  int planned = 0;
  for (const DType type :
       {DType::F32, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::Q6_K, DType::Q2_K, DType::W4G128})
    for (const int64_t cols : {256, 4096, 14336, 28672, 53248})
      for (const int64_t dim : {0, 2048, 4096, 16384})
        for (int rows = 1; rows <= kMaxDecodeRows; ++rows) {
          INFO(static_cast<int>(type) << " " << cols << " dim " << dim << " rows " << rows);
          const SharedPlan plan = plan_of(stage_of(type, 4096, cols), rows, dim, kH100);
          if (plan.n_slots == 0) continue;
          ++planned;
          CHECK(plan.n_slots % n_teams(plan.kernel_rows) == 0);
          CHECK(plan.n_slots <= kMaxSlots);
          CHECK(plan.kernel_rows >= rows);
          CHECK(plan.in_flight >= 2);
          CHECK(plan.act >= plan.n_slots * plan.slot_bytes);
          CHECK(plan.x >= plan.act + rows * plan.act_row_bytes);
          CHECK(plan.partial >= plan.x + rows * dim * 4);
          CHECK(plan.total >= plan.partial + kept_tiles(plan.kernel_rows) * kWarps * plan.kernel_rows * kTileRows * 4);
          CHECK(plan.total <= kH100.shared_bytes);
        }
  CHECK(planned > 300);
}

TEST_CASE("one row too wide for four slots is left to an instance with fewer teams") {
  const SharedPlan usual = plan_of(stage_of(DType::BF16, 4096, 4096), 1, 4096, kH100);
  CHECK(usual.kernel_rows == 1);
  CHECK(usual.n_slots >= 4);
  const SharedPlan wide = plan_of(stage_of(DType::BF16, 8192, 53248), 1, 16384, kH100);
  CHECK(wide.kernel_rows == 2);
  CHECK(wide.n_slots == 2);
  const SharedPlan none = plan_of(stage_of(DType::F32, 16384, 53248), 1, 16384, kH100);
  CHECK(none.n_slots == 0);
}

TEST_CASE("chunks of plain weights are of one team's rows, fit a slot and cover the columns") {
  for (const DType type : {DType::F32, DType::F16, DType::BF16})
    for (const int64_t cols : {32, 96, 2048, 4096, 8200, 14336})
      for (int rows = 1; rows <= kMaxDecodeRows; ++rows) {
        INFO(static_cast<int>(type) << " " << cols << " rows " << rows);
        std::vector<DecodeStage> stages{stage_of(type, 4100, cols)};
        const SharedPlan plan = plan_shared(stages, rows, 4096, kH100);
        const MatrixArg& m = stages[0].w[0];
        const int n_blocks = n_teams(plan.kernel_rows), n_pieces = m.n_chunks / n_blocks;
        CHECK(m.n_chunks % n_blocks == 0);
        CHECK(n_blocks * plain_rows(plan.kernel_rows) == kTileRows);
        CHECK(plain_rows(plan.kernel_rows) * m.chunk_bytes <= plan.slot_bytes);
        CHECK((n_pieces - 1) * m.chunk_bytes + m.last_bytes == m.tile_bytes);
        CHECK(m.last_bytes > 0);
        CHECK(m.last_bytes <= m.chunk_bytes);
        CHECK(m.chunk_bytes % 16 == 0);
      }
}

TEST_CASE("a faster memory gets more bytes in flight") {
  const DecodeStage stage = stage_of(DType::Q4_K, 4096, 14336);
  CHECK(plan_of(stage, 1, 4096, kH100).in_flight == 2);
  CHECK(plan_of(stage, 1, 4096, kH200).in_flight == 3);
}
