// How products of few tokens are shared out, and which number goes where, on the host: the index functions that the
// kernel uses, followed through an emulated tensor-core instruction for every format.
#include <array>
#include <cstring>
#include <set>
#include <tuple>
#include <vector>

#include "kernels/cuda/mma_plan.h"
#include "quant/half.h"
#include "tests/kernels/cuda_side.h"

using namespace infer;
using namespace infer::cuda;
using infer::cuda_test::Weight;

namespace {

template <class... F>
std::vector<MmaShape> shapes_of(FormatList<F...>) {
  std::vector<MmaShape> shapes;
  std::set<std::tuple<int, int, int, int, int, int, int64_t>> seen;  // formats of equal chunks have equal shapes
  const auto add = [&]<class G>() {
    if constexpr (G::block > 1)
      for (const int64_t cols : {256, 2304, 14336})
        for (const int units : {1, 63, 384, 896, 8016})
          for (const int tokens : {1, 2, 4})
            for (const int blocks : {1, 5})
              for (const int tiles : {1, 2}) {
                constexpr int kChunk = Packed<G>::chunk_groups;
                if (cols % G::block != 0) continue;
                const auto groups = static_cast<int>(cols / kGroup);
                MmaShape s;
                s.n_units = units, s.tiles_per_unit = tiles, s.n_chunks = (groups + kChunk - 1) / kChunk;
                s.chunk_bytes = Chunk<G>{std::min(groups, kChunk)}.bytes();
                s.n_token_tiles = tokens, s.n_token_blocks = blocks;
                s.token_bytes = std::min(groups, kChunk) * kGroup * 2;
                if (seen.emplace(s.n_units, s.tiles_per_unit, s.n_chunks, s.chunk_bytes, s.n_token_tiles,
                                 s.n_token_blocks, s.token_bytes)
                        .second)
                  shapes.push_back(s);
              }
  };
  (add.template operator()<F>(), ...);
  return shapes;
}

/// A packed matrix, as pack() lays it out on the device.
template <class F>
std::vector<uint8_t> packed(const Weight& w) {
  const int64_t rows = w.host.rows(), cols = w.host.cols(), groups = cols / kGroup;
  constexpr int kBlockGroups = F::block / kGroup;
  std::vector<uint8_t> out(static_cast<size_t>(packed_matrix_bytes(F::id, rows, cols)));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t g = 0; g < groups; ++g) {
      const PackedPlace p = place<F>(cols, r, g);
      typename F::Block block;
      const size_t at = static_cast<size_t>(r * (groups / kBlockGroups) + g / kBlockGroups) * sizeof(block);
      std::memcpy(&block, &w.bytes[at], sizeof(block));
      pack_group<F>(block, static_cast<int>(g % kBlockGroups), out.data() + p.chunk, {p.groups}, p.row, p.group);
    }
  return out;
}

/// What an instruction computes, with the names of common.cuh: a[lane][register][half], b likewise, c[lane][i].
using Fragment = std::array<std::array<std::array<double, 2>, 4>, 32>;
void emulate_mma(const Fragment& a, const Fragment& b, double c[32][4]) {
  double rows[16][16], columns[16][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int half = 0; half < 2; ++half) {
      const int r = lane / 4, k = lane % 4 * 2 + half;
      const auto& of = a[static_cast<size_t>(lane)];
      const auto at = static_cast<size_t>(half);
      rows[r][k] = of[0][at], rows[r + 8][k] = of[1][at], rows[r][k + 8] = of[2][at], rows[r + 8][k + 8] = of[3][at];
      columns[k][r] = b[static_cast<size_t>(lane)][0][at], columns[k + 8][r] = b[static_cast<size_t>(lane)][1][at];
    }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 16; ++k) c[lane][i] += rows[lane / 4 + i / 2 * 8][k] * columns[k][lane % 4 * 2 + i % 2];
}

/// Sums of a tile's chunk for eight tokens, by the lanes' index functions.
template <class F>
void follow_chunk(const uint8_t* chunk, int groups, const std::vector<float>& x, int64_t cols, int64_t first_column,
                  double sums[16][8]) {
  for (int warp = 0; warp < kMmaWarps; ++warp) {
    double c[32][4] = {};
    for (int step = 0; step < kMmaSteps<F>; ++step)
      for (int quad = 0; quad < 8; ++quad) {
        Fragment a{}, b{};
        for (int lane = 0; lane < 32; ++lane) {
          const int wanted = mma_group<F>(warp, step, lane), g = std::min(wanted, groups - 1);
          for (int pair = 0; pair < 2; ++pair)
            for (int half = 0; half < 2; ++half) {
              const int column = mma_column(quad, pair, half);
              float weights[kGroup];
              const auto l = static_cast<size_t>(lane), p = static_cast<size_t>(pair), h = static_cast<size_t>(half);
              for (int other = 0; other < 2; ++other) {
                decode_packed<F>(chunk, {groups}, lane / 4 + 8 * other, g, weights);
                a[l][2 * p + static_cast<size_t>(other)][h] = weights[column];
              }
              const int64_t at = first_column + wanted * kGroup + column;
              b[l][p][h] = wanted < groups ? x[static_cast<size_t>(lane / 4 * cols + at)] : 0;
            }
        }
        emulate_mma(a, b, c);
      }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) sums[mma_row(lane, i)][mma_token(lane, i)] += c[lane][i];
  }
}

template <class F>
void check_fragments(int64_t cols) {
  const Weight w(F::id, 16, cols, 3);
  const std::vector<uint8_t> bytes = packed<F>(w);
  const std::vector<float> x = random_floats(8 * cols, 4);
  double sums[16][8] = {};
  constexpr int kChunk = Packed<F>::chunk_groups;
  const auto n_groups = static_cast<int>(cols / kGroup);
  for (int first = 0; first < n_groups; first += kChunk) {
    const PackedPlace p = place<F>(cols, 0, first);
    follow_chunk<F>(bytes.data() + p.chunk, p.groups, x, cols, int64_t{first} * kGroup, sums);
  }
  std::vector<float> row(static_cast<size_t>(cols));
  for (int r = 0; r < 16; ++r) {
    REQUIRE(decode_row(F::id, w.rows(r, 1).data, row.data(), cols));
    for (int token = 0; token < 8; ++token) {
      double wanted = 0;
      for (int64_t k = 0; k < cols; ++k)
        wanted += double{row[static_cast<size_t>(k)]} * x[static_cast<size_t>(token * cols + k)];
      if (std::abs(sums[r][token] - wanted) > 1e-9 * (1 + std::abs(wanted)))
        FAIL(F::name << " cols " << cols << " row " << r << " token " << token << ": " << sums[r][token] << ", not "
                     << wanted);
    }
  }
}

float bf16(uint32_t bits) { return bits_float(bits << 16); }

}  // namespace

TEST_CASE("cuda mma: every tile of every chunk is taken once, in memory that there is") {
  for (const int n_ctas : {16, 132, 264}) {
    const MmaLimits limits{n_ctas, n_ctas == 264 ? 112 << 10 : 226 << 10, 8 << 20, 4096};
    for (const MmaShape& s : shapes_of(GpuFormats{})) {
      const MmaPlan plan = plan_mma(s, limits);
      INFO("units " << s.n_units << " x " << s.tiles_per_unit << ", chunks " << s.n_chunks << ", tokens "
                    << s.n_token_tiles * 8 << ", blocks " << s.n_token_blocks << ", CTAs " << n_ctas << ": "
                    << plan.n_row_blocks << " row blocks, " << plan.n_parts << " parts, " << plan.n_slots << " slots");
      REQUIRE(plan.n_slots >= (n_ctas == 264 && s.n_token_tiles == 4 ? 1 : 2));
      REQUIRE(plan.shared_bytes <= limits.shared_bytes);
      REQUIRE(plan.slot_bytes >= s.chunk_bytes);
      REQUIRE(plan.exchange_offset % 128 == 0);
      REQUIRE((s.n_token_blocks > 1 || plan.n_row_blocks * plan.n_parts <= n_ctas));
      if (plan.n_parts > 1) {
        const int64_t floats =
            int64_t{plan.n_parts} * s.n_token_blocks * s.n_units * s.tiles_per_unit * mma_tile_floats(s.n_token_tiles);
        REQUIRE(floats <= limits.partial_floats);
        REQUIRE(plan.n_row_blocks * s.n_token_blocks <= limits.max_row_blocks);
      }
      std::vector<int> taken(static_cast<size_t>(s.n_units * s.tiles_per_unit * s.n_chunks));
      bool in_order = true, kept_fits = true;
      for (int block = 0; block < plan.n_row_blocks; ++block)
        for (int part = 0; part < plan.n_parts; ++part) {
          const MmaRange range(s.n_units, s.tiles_per_unit, s.n_chunks, plan, block, part);
          REQUIRE(range.n_items() > 0);
          MmaWalk walk(range);
          // Of a tile: sums are added in the order of the chunks.
          std::vector<int> next_chunk(static_cast<size_t>(s.n_units * s.tiles_per_unit));
          for (int i = 0; i < range.n_items(); ++i, walk.advance(range)) {
            const int tile = walk.unit(range) * s.tiles_per_unit + walk.tile_of_unit(range);
            ++taken[static_cast<size_t>(tile * s.n_chunks + walk.chunk)];
            in_order = in_order && walk.chunk == range.first_chunk + next_chunk[static_cast<size_t>(tile)]++;
            kept_fits = kept_fits && walk.tile < plan.kept_units * s.tiles_per_unit;
          }
        }
      REQUIRE(in_order);
      REQUIRE(kept_fits);
      REQUIRE(std::all_of(taken.begin(), taken.end(), [](int n) { return n == 1; }));
    }
  }
}

TEST_CASE("cuda mma: work is even where there is enough of it") {
  // A layer of 8B on an H200: q, k, v; the output projection; gate and up; down.
  const std::tuple<int, int, int> shapes[] = {{384, 1, 2}, {256, 1, 2}, {896, 2, 2}, {256, 1, 7}};
  for (const auto& [units, tiles, chunks] : shapes) {
    MmaShape s;
    s.n_units = units, s.tiles_per_unit = tiles, s.n_chunks = chunks;
    s.chunk_bytes = Chunk<Q4_K>{64}.bytes(), s.token_bytes = 4096;
    const MmaPlan plan = plan_mma(s, {264, 112 << 10, 8 << 20, 4096});
    int64_t most = 0;
    for (int block = 0; block < plan.n_row_blocks; ++block)
      for (int part = 0; part < plan.n_parts; ++part)
        most = std::max<int64_t>(most, MmaRange(units, tiles, chunks, plan, block, part).n_items());
    const double even = static_cast<double>(units) * tiles * chunks / 264;
    INFO("units " << units << ", chunks " << chunks << ": at most " << most << " tiles, evenly " << even);
    CHECK(most <= 1.35 * even);
  }
}

TEST_CASE("cuda mma: fragments bring each weight together with its activation, in every format") {
  const auto all = []<class... F>(FormatList<F...>) {
    (..., [] {
      if constexpr (F::block == kGroup)
        for (const int64_t cols : {32, 96, 416, 1024, 1056, 2048, 2336}) check_fragments<F>(cols);
      if constexpr (F::block > kGroup)
        for (const int64_t cols : {256, 768, 2048, 2304}) check_fragments<F>(cols);
    }());
  };
  all(GpuFormats{});
}

TEST_CASE("cuda mma: stored codes under an exponent of 2^7 are numbers, and scaling them rounds once") {
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const auto code = static_cast<int8_t>(byte);
    CHECK(bf16(0x4300 | (byte & 0x7f)) + bf16(0xc300 | (byte & 0x80)) == static_cast<float>(code));
    if (byte < 128) CHECK(bf16(0x4300 | byte) == 128.0f + static_cast<float>(byte));
  }
  for (const int bias : {4, 8, 16, 32})
    CHECK(bf16(0xc300 + static_cast<uint32_t>(bias)) == -128.0f - static_cast<float>(bias));
  for (const float scale : random_floats(100, 5)) {
    const float s = bf16(f32_to_bf16(scale)), off = -128 * s;
    CHECK(bf16(f32_to_bf16(off)) == off);
    for (int q = 0; q < 16; ++q) CHECK(std::fma(128.0f + static_cast<float>(q), s, off) == static_cast<float>(q) * s);
  }
}
