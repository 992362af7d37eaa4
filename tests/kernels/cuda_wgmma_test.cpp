// Products of up to 128 tokens by Hopper's warpgroup instructions: where an operand's numbers lie and how the work is
// shared out, on the host; and on a GPU every quantised format in shapes that are cut in several ways.
#include <set>

#include "kernels/cuda/wgmma_plan.h"
#include "tests/kernels/cuda_side.h"

using namespace infer;
using namespace infer::cuda;
using namespace infer::cuda_test;

namespace {

constexpr int kSharedBytes = 227 << 10, kSms = 132;

template <class... F>
std::vector<WgmmaShape> shapes_of(FormatList<F...>) {
  std::vector<WgmmaShape> shapes;
  const auto add = [&]<class G>() {
    if constexpr (G::block > 1)
      for (const int64_t cols : {256, 2304, 4096, 14336})
        for (const int units : {1, 3, 63, 256, 384, 896, 8016})
          for (const int tokens : {8, 16, 32, 64, 128})
            for (const int tiles : {1, 2}) {
              if (!wgmma_takes_columns<G>(cols)) continue;
              WgmmaShape s;
              s.n_units = units, s.tiles_per_unit = tiles, s.tokens = tokens;
              s.slot_columns = wgmma_slot_groups<G>(tokens) * kGroup;
              s.n_blocks = static_cast<int>(cols / s.slot_columns), s.tile_bytes = wgmma_tile_bytes<G>(tokens);
              shapes.push_back(s);
            }
  };
  (add.template operator()<F>(), ...);
  return shapes;
}

}  // namespace

TEST_CASE("cuda wgmma: every number of an operand has a place of its own, and pairs of columns are neighbours") {
  for (const int tokens : {8, 16, 32, 64, 128}) {
    std::set<int64_t> places;
    constexpr int kColumns = 384;
    for (int token = 0; token < tokens; ++token)
      for (int column = 0; column < kColumns; ++column) {
        const int64_t at = operand_place(tokens, token, column);
        CHECK((at >= 0 && at < int64_t{tokens} * kColumns));
        CHECK(at / (int64_t{tokens} * kOperandColumns) == column / kOperandColumns);
        places.insert(at);
        if (column % 4 < 2) CHECK(operand_place(tokens, token, column + 2) == at + 1);
      }
    CHECK(places.size() == static_cast<size_t>(tokens) * kColumns);
  }
}

TEST_CASE("cuda wgmma: an operand agrees with what a lane of the left operand brings") {
  // Lane j of a row has the columns 32 j + 4 i .. + 3 in instruction i: as k 2j, 2j + 1 the first and third, as k 2j +
  // 8, 2j + 9 the second and fourth. Core matrix (k / 8) of eight tokens holds k % 8.
  for (int instruction = 0; instruction < 8; ++instruction)
    for (int j = 0; j < 4; ++j)
      for (int pair = 0; pair < 2; ++pair)
        for (int half = 0; half < 2; ++half) {
          const int column = 32 * j + mma_column(instruction, pair, half), k = 2 * j + half + 8 * pair;
          const int64_t wanted = instruction * 16 * 8 + k / 8 * 64 + 5 * 8 + k % 8;
          CHECK(operand_place(8, 5, column) == wanted);
        }
}

TEST_CASE("cuda wgmma: plans in pairs give each CTA whole groups of 32 rows, and its warps all that they can take") {
  for (const int n_sms : {132, 114, 7})
    for (WgmmaShape s : shapes_of(GpuFormats{})) {
      s.tokens = 8, s.kept_bytes = s.slot_columns * 12;  // as matmul_int8 has them
      const WgmmaPlan plan = plan_pairs(s, {n_sms, kSharedBytes, {n_sms, 0, 0, 0}});
      INFO(s.n_units << " units of " << s.tiles_per_unit << ", " << s.n_blocks << " blocks, " << n_sms << " SMs");
      const int n_pairs = s.n_units / 2, blocks = std::min(n_sms, n_pairs);
      const int most = blocks > 0 ? 2 * ((n_pairs + blocks - 1) / blocks) : 0;
      if (plan.n_slots == 0) {
        const bool wide = s.n_blocks * s.kept_bytes + 2 * most * s.tile_bytes > kSharedBytes - kWgmmaStatic - 256;
        CHECK((s.n_units % 2 != 0 || s.n_units < 2 || s.tiles_per_unit == 2 || most > kWgmmaTiles || wide));
        continue;
      }
      REQUIRE((s.n_units % 2 == 0 && s.tiles_per_unit == 1));
      CHECK((plan.n_parts == 1 && plan.one_pass && plan.n_row_blocks == blocks));
      const int at_once = wgmma_tiles_at_once(plan.n_sets);
      CHECK((at_once >= 2 && at_once >= most && plan.n_sets <= s.n_blocks && plan.n_slots % plan.n_sets == 0));
      CHECK((plan.n_slots <= kWgmmaMaxSlots && plan.shared_bytes <= kSharedBytes - kWgmmaStatic));
      CHECK(plan.kept_offset + s.n_blocks * s.kept_bytes <= plan.shared_bytes);
      CHECK(plan.units.first(0) == 0);
      for (int i = 0; i < blocks; ++i) {
        const int n = plan.units.first(i + 1) - plan.units.first(i);
        CHECK((n > 0 && n % 2 == 0 && n <= most));
      }
      CHECK(plan.units.first(blocks) == s.n_units);
    }
}

TEST_CASE("cuda wgmma: plans cover all units and columns, and fit") {
  const WgmmaLimits h200{kSms, kSharedBytes, {kSms, 64, 30, 14}}, alone{kSms, kSharedBytes, {kSms, 0, 0, 0}};
  for (const WgmmaShape& s : shapes_of(GpuFormats{}))
    for (const WgmmaLimits& limits : {h200, alone}) {
      const WgmmaPlan plan = plan_wgmma(s, limits);
      INFO(s.n_units << " units of " << s.tiles_per_unit << ", " << s.n_blocks << " blocks, " << s.tokens << " tokens");
      const bool gated = s.tiles_per_unit == 2;
      if (gated && plan.n_slots == 0) {               // sums of up do not fit beside a ring: two products then
        const bool wide_slots = s.tile_bytes > 4096;  // 8-bit codes in blocks of 256 columns: sooner
        CHECK((s.tokens == 128 || (s.tokens == 64 && wide_slots)));
        CHECK(s.n_units > kWgmmaTiles / 2 * (limits.n_sms / 2));
        continue;
      }
      CHECK((plan.n_slots >= 2 && plan.n_slots >= 2 * plan.n_sets));  // a slot is left when the next is there
      REQUIRE((plan.n_parts == 1 || plan.n_parts == 2 || plan.n_parts == 4 || plan.n_parts == 8));
      const int at_most = limits.n_clusters[plan.n_parts == 1 ? 0 : plan.n_parts == 2 ? 1 : plan.n_parts == 4 ? 2 : 3];
      CHECK((plan.n_row_blocks >= 1 && plan.n_row_blocks <= s.n_units && plan.n_row_blocks <= at_most));
      CHECK(plan.n_parts <= s.n_blocks);
      CHECK(plan.n_slots % plan.n_sets == 0);
      CHECK(plan.n_slots <= kWgmmaMaxSlots);
      CHECK(plan.shared_bytes <= kSharedBytes - kWgmmaStatic);
      const int tiles = wgmma_tiles_at_once(plan.n_sets), sums = wgmma_sums_bytes(s.tokens);
      CHECK(tiles * plan.n_sets == kWgmmaTiles);
      const int units = (s.n_units + plan.n_row_blocks - 1) / plan.n_row_blocks;
      // Room for all tiles that groups of four warps read.
      CHECK(plan.x_offset >= std::min(tiles, gated ? tiles : (units + 3) / 4 * 4) * s.tile_bytes);
      if (plan.n_parts * plan.n_sets > 1) {
        CHECK(units * s.tiles_per_unit <= tiles);  // one pass: what is joined is joined once
        CHECK(tiles % plan.n_parts == 0);
        const int left = plan.join_offset + tiles / plan.n_parts * (plan.n_parts - 1) * sums;
        CHECK(plan.join_offset >= (plan.n_sets - 1) * tiles * sums);
        CHECK(left <= plan.shared_bytes);
        if (gated) CHECK(plan.gated_offset >= left);
      }
      CHECK(plan.one_pass == (units * s.tiles_per_unit <= tiles));
      if (gated) CHECK(plan.gated_offset + tiles / 2 * sums <= plan.shared_bytes);
      if (!plan.one_pass) CHECK((!gated || plan.gated_offset >= plan.n_slots * plan.slot_bytes));
      CHECK(plan.units.first(0) == 0);
      CHECK(plan.units.first(plan.n_row_blocks) == s.n_units);
      CHECK(plan.blocks.first(plan.n_parts) == s.n_blocks);
      for (int i = 0; i < plan.n_row_blocks; ++i) CHECK(plan.units.first(i + 1) - plan.units.first(i) <= units);
      // Gate and up of a row: in different groups of four warps, and owned by the same CTA.
      if (s.tiles_per_unit == 2) CHECK((tiles >= 8 && tiles / 2 % plan.n_parts == 0));
    }
}

TEST_CASE("cuda wgmma: plans of two products share the clusters of one size, by their bytes") {
  const WgmmaLimits limits{kSms, kSharedBytes, {kSms, 64, 30, 14}};
  const auto shape = [](int tokens, int units, int columns) {
    WgmmaShape s;
    s.n_units = units, s.tokens = tokens, s.slot_columns = wgmma_slot_groups<Q4_K>(tokens) * kGroup;
    s.n_blocks = columns / s.slot_columns, s.tile_bytes = wgmma_tile_bytes<Q4_K>(tokens);
    return s;
  };
  for (const int tokens : {8, 16})
    for (const int units : {16, 64, 320})
      for (const int others : {16, 64}) {
        const WgmmaShape a = shape(tokens, units, 4096), b = shape(tokens, others, 4096);
        WgmmaPlan of_a, of_b;
        plan_wgmma_pair(a, b, limits, of_a, of_b);
        INFO(units << " and " << others << " units, " << tokens << " tokens");
        REQUIRE((of_a.n_slots >= 2 && of_b.n_slots >= 2));
        CHECK(of_a.n_parts == of_b.n_parts);
        const int i = of_a.n_parts == 1 ? 0 : of_a.n_parts == 2 ? 1 : of_a.n_parts == 4 ? 2 : 3;
        CHECK(of_a.n_row_blocks + of_b.n_row_blocks <= limits.n_clusters[i]);
        CHECK(of_a.units.first(of_a.n_row_blocks) == units);
        CHECK(of_b.units.first(of_b.n_row_blocks) == others);
        if (units > others) CHECK(of_a.n_row_blocks > of_b.n_row_blocks);
      }
  // Where there is room for one cluster only, there are no two side by side.
  WgmmaPlan of_a, of_b;
  plan_wgmma_pair(shape(8, 4, 512), shape(8, 4, 512), {1, kSharedBytes, {1, 0, 0, 0}}, of_a, of_b);
  CHECK((of_a.n_slots == 0 && of_b.n_slots == 0));
}

TEST_CASE("cuda wgmma: the oracle's product for every format, long rows, many rows and single tiles") {
  if (skipped()) return;
  auto backend = make_backend("cuda");
  Needs needs = needs_of_these_tests();
  needs.max_width = 14336, needs.max_tokens = 128;
  backend->prepare(needs);
  const std::pair<int64_t, int64_t> shapes[] = {{40, 14336}, {4500, 512}, {16, 256}, {7, 2304}, {1030, 4096}};
  for (const DType type : kWeightFormats) {
    if (is_plain(type)) continue;
    for (const auto& [n, k] : shapes) {
      const Weight w(type, n, k, static_cast<uint32_t>(n + k));
      const int64_t most = 128;
      const Floats x = random_floats(most * k, 1);
      Floats all = poison(most * n), first;
      Side exact(ref());
      ref().matmul({exact.in(x, {most, k}), exact.weight(w), {}, exact.out(all, {most, n})});
      exact.fetch();
      for (const int64_t m : {3, 8, 9, 16, 17, 33, 64, 65, 128}) {
        Side side(*backend);
        Floats found = poison(m * n);
        backend->matmul(
            {side.in(Floats(x.begin(), x.begin() + m * k), {m, k}), side.weight(w), {}, side.out(found, {m, n})});
        side.fetch();
        const double error = nmse(found, Floats(all.begin(), all.begin() + m * n));
        INFO(format_name(type) << " m " << m << " n " << n << " k " << k << ": error " << error);
        CHECK(error <= 5e-4);
      }
    }
  }
}
