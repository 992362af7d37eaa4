// Products in 8-bit floats (--act fp8): numbers and factors on the host, by the functions that the kernels call; then
// products on a GPU against the oracle.
#include "kernels/cuda/e4m3.h"

#include <limits>

#include "quant/fp8.h"
#include "tests/kernels/cuda_side.h"

using namespace infer;
using namespace infer::cuda;
using namespace infer::cuda_test;

namespace {

/// An e4m3 has three bits of fraction: rounding is off by up to 1/16 of the power of two below, evenly. Of the root
/// mean square of numbers that is 2.4 % where their logarithms are spread evenly, up to 2.7 % where most lie just above
/// a power of two. Both operands are rounded, each number on its own: the noise of a product is that of both, 1.2
/// to 1.4e-3. Twice that, for what is small enough to be subnormal and for few results.
constexpr double kProductBar = 3e-3;

Floats decoded(const Weight& w) {
  Floats out(static_cast<size_t>(w.host.n_elements()));
  visit_gpu_format(w.host.dtype, [&]<class F>() {
    if constexpr (F::block > 1) {
      const auto* blocks = reinterpret_cast<const typename F::Block*>(w.bytes.data());
      constexpr size_t kGroups = F::block / kGroup;
      for (size_t g = 0; g < out.size() / kGroup; ++g)
        F::decode(blocks[g / kGroups], static_cast<int>(g % kGroups), out.data() + g * kGroup);
    }
  });
  return out;
}

float nan_of_a_float() { return std::numeric_limits<float>::quiet_NaN(); }

/// Rows as the kernels make them: e4m3 times the row's factor.
Floats rounded(const Floats& x, int64_t cols) {
  Floats out;
  for (size_t at = 0; at < x.size(); at += static_cast<size_t>(cols)) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < cols; ++i) largest = std::max(largest, magnitude_bits(x[at + static_cast<size_t>(i)]));
    const float scale = e4m3_scale(largest), inverse = 1.0f / scale;
    for (int64_t i = 0; i < cols; ++i)
      out.push_back(scale * e4m3_to_f32(f32_to_e4m3(x[at + static_cast<size_t>(i)] * inverse)));
  }
  return out;
}

/// x with what real activations have: a token with a channel a thousand times as large, one that is small as a whole,
/// and one of zeros.
Floats hard_rows(int64_t m, int64_t k, uint32_t seed) {
  Floats x = random_floats(m * k, seed);
  const auto at = [&](int64_t row, int64_t column) -> float& { return x[static_cast<size_t>(row * k + column)]; };
  at(1, k / 3) = 1000;
  for (int64_t c = 0; c < k; ++c) at(2, c) *= 1e-20f, at(3, c) = 0;
  return x;
}

Backend& fp8() {
  static Backend* backend = [] {
    BackendOptions options;
    options.act = "fp8";
    auto made = make_backend("cuda", options);
    Needs needs = needs_of_these_tests();
    needs.max_tokens = 600;
    made->prepare(needs);
    return made.release();
  }();
  return *backend;
}

/// Whether this machine has a GPU and a cuBLASLt that multiply e4m3; a GPU that has not is to say so.
bool no_fp8() {
  if (skipped()) return true;
  try {
    fp8();
    return false;
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find("fp8 cannot be used") != std::string::npos);
    WARN("SKIPPED: " << e.what());
    return true;
  }
}

/// How often a kernel whose name begins so is launched.
int64_t launches_of(const std::vector<KernelUse>& kernels, const std::string& name) {
  int64_t n = 0;
  for (const KernelUse& k : kernels)
    if (k.name.rfind(name, 0) == 0) n += k.n_launches;
  return n;
}

}  // namespace

TEST_CASE("e4m3: a float becomes the nearest, ties the even one, and what is too large the largest") {
  std::vector<float> all;
  for (int code = 0; code < 0x7f; ++code) all.push_back(e4m3_to_f32(static_cast<uint8_t>(code)));
  REQUIRE(all.back() == kMostE4m3);
  for (int code = 0; code < 0x7f; ++code) {
    const float x = all[static_cast<size_t>(code)];
    CHECK(f32_to_e4m3(x) == code);
    CHECK(f32_to_e4m3(-x) == (code | 0x80));
    if (code == 0x7e) break;
    const float next = all[static_cast<size_t>(code) + 1], middle = (x + next) / 2;  // exact
    INFO(x << " and " << next);
    CHECK(f32_to_e4m3(middle) == code + code % 2);
    CHECK(f32_to_e4m3(std::nextafter(middle, 0.0f)) == code);
    CHECK(f32_to_e4m3(std::nextafter(middle, next)) == code + 1);
  }
  for (const float x : {448.0f, 449.0f, 464.0f, 1e30f, std::numeric_limits<float>::infinity()}) {
    CHECK(f32_to_e4m3(x) == 0x7e);
    CHECK(f32_to_e4m3(-x) == 0xfe);
  }
  for (const float x : {1e-30f, 1e-45f, 0.0f, 0x1p-10f}) CHECK(f32_to_e4m3(x) == 0);
  CHECK(f32_to_e4m3(nan_of_a_float()) == 0x7f);
  CHECK(std::isnan(e4m3_to_f32(f32_to_e4m3(-nan_of_a_float()))));
}

TEST_CASE("e4m3: a row's factor makes its largest number the largest, and hides nothing that is no number") {
  for (const float most : {1.0f, 448.0f, 3e-20f, 1e38f, 0.3f, 1e-33f}) {
    const float scale = e4m3_scale(magnitude_bits(-most));
    INFO(most);
    CHECK(f32_to_e4m3(most * (1.0f / scale)) == 0x7e);
    CHECK(scale * kMostE4m3 == Approx(most).epsilon(1e-6));
  }
  CHECK(e4m3_scale(0) == 1);
  for (const float tiny : {1e-45f, 1e-38f, 0x1p-126f}) {
    const float scale = e4m3_scale(magnitude_bits(tiny));
    CHECK(std::isfinite(1.0f / scale));
    CHECK(e4m3_to_f32(f32_to_e4m3(tiny * (1.0f / scale))) * scale == Approx(tiny).margin(0x1p-130));
  }
  CHECK(std::isnan(e4m3_scale(magnitude_bits(INFINITY))));
  CHECK(std::isnan(e4m3_scale(magnitude_bits(-nan_of_a_float()))));
  CHECK(magnitude_bits(nan_of_a_float()) > magnitude_bits(-INFINITY));
}

TEST_CASE("e4m3: no weight is larger than its group's scales say, and not much smaller than its row's") {
  const auto check = []<class F>() {
    if constexpr (F::block > 1) {
      const int64_t rows = 4, cols = 8 * 256, row_groups = cols / kGroup;
      const Weight w(F::id, rows, cols, 17);
      const auto* blocks = reinterpret_cast<const typename F::Block*>(w.bytes.data());
      constexpr int kBlockGroups = F::block / kGroup;
      std::vector<uint8_t> packed(static_cast<size_t>(packed_matrix_bytes(F::id, rows, cols)), 0);
      for (int64_t r = 0; r < rows; ++r) {
        uint32_t bound = 0, found = 0;
        for (int64_t g = 0; g < row_groups; ++g) {
          const PackedPlace p = place<F>(cols, r, g);
          pack_group<F>(blocks[(r * row_groups + g) / kBlockGroups], static_cast<int>(g % kBlockGroups),
                        packed.data() + p.chunk, {p.groups}, p.row, p.group);
          float scale[2], offset[2], weights[kGroup];
          packed_detail::get_scales<F>(packed.data() + p.chunk, {p.groups}, p.row, p.group, scale, offset);
          decode_packed<F>(packed.data() + p.chunk, {p.groups}, p.row, p.group, weights);
          for (int i = 0; i < kGroup; ++i) {
            const uint32_t most = largest_of_group<F>(scale[i / 16], offset[i / 16]);
            REQUIRE(magnitude_bits(weights[i]) <= most);
            bound = std::max(bound, most), found = std::max(found, magnitude_bits(weights[i]));
          }
        }
        INFO(F::name << " row " << r);
        CHECK(bits_float(bound) <= 1.6f * bits_float(found));  // random codes do not take the outermost in every group
      }
      CHECK(largest_of_group<F>(INFINITY, 0) >= 0x7f800000u);
      CHECK(largest_of_group<F>(nan_of_a_float(), 0) > 0x7f800000u);
    }
  };
  [&]<class... F>(FormatList<F...>) { (check.template operator()<F>(), ...); }(GpuFormats{});
}

TEST_CASE("e4m3: what rounding both operands costs is what the bar of products allows") {
  const int64_t m = 24, n = 48, k = 1024;
  const Floats x = hard_rows(m, k, 1), w = random_floats(n * k, 2), x8 = rounded(x, k), w8 = rounded(w, k);
  for (int64_t row = 0; row < m; ++row) {  // each token by itself: their sizes differ by far
    double error = 0, power = 0;
    for (int64_t c = 0; c < n; ++c) {
      double exact = 0, found = 0;
      for (int64_t i = 0; i < k; ++i) {
        const auto a = static_cast<size_t>(row * k + i), b = static_cast<size_t>(c * k + i);
        exact += static_cast<double>(x[a]) * w[b], found += static_cast<double>(x8[a]) * w8[b];
      }
      error += (found - exact) * (found - exact), power += exact * exact;
    }
    INFO("token " << row << ": " << error / power);
    if (row == 3) CHECK(error == 0);
    if (row != 3) CHECK(error <= kProductBar * power);
    if (row == 0) CHECK(error >= 5e-4 * power);
  }
}

TEST_CASE("cuda: products in fp8 are the oracle's but for three bits of fraction, and go by e4m3") {
  if (no_fp8()) return;
  const std::pair<int64_t, int64_t> shapes[] = {{16, 256}, {144, 768}, {1040, 2304}, {48, 1280}};
  const int64_t most = 600;
  for (const DType type : kWeightFormats) {
    if (is_plain(type)) continue;
    for (const auto& [n, k] : shapes) {
      const Weight w(type, n, k, static_cast<uint32_t>(n * 7 + k));
      const Floats weights = decoded(w);
      const Floats x = hard_rows(most, k, 1), bias = random_floats(n, 2);
      Floats all = poison(most * n);
      Side exact(ref()), side(fp8());
      ref().matmul({exact.in(x, {most, k}), exact.weight(w), {}, exact.out(all, {most, n})});
      exact.fetch();
      const Tensor packed = side.weight(w), rows = side.in(x, {most, k}), offset = side.in(bias, {n});
      for (const int64_t m : {129, 150, 257, 600}) {
        const bool biased = m % 2 == 1;
        Floats found = poison(m * n);
        const Tensor part(rows.data, DType::F32, {m, k});
        const MatmulArgs args{part, packed, biased ? offset : Tensor(), side.out(found, {m, n})};
        const std::vector<KernelUse> kernels = fp8().kernels_of([&] { fp8().matmul(args); });
        INFO(format_name(type) << " m " << m << " n " << n << " k " << k);
        CHECK(launches_of(kernels, "e4m3_rows_kernel<") == 1);
        CHECK(launches_of(kernels, "unpack_e4m3_kernel<") == 1);
        CHECK(launches_of(kernels, "dequantize_kernel<") == 0);
        fp8().matmul(args);
        side.fetch();
        for (size_t i = 0; biased && i < found.size(); ++i) found[i] -= bias[i % static_cast<size_t>(n)];
        for (const int64_t token : {0, 1, 2, 3, 4, 128}) {  // sizes of tokens differ by far
          const auto from = static_cast<std::ptrdiff_t>(token * n), to = from + static_cast<std::ptrdiff_t>(n);
          if (biased && token == 2) continue;  // nothing beside the bias
          double error = 0, power = 0;  // of the terms of the sums, which may cancel where weights have an offset
          for (int64_t i = 0; i < n * k; ++i) {
            const double term = weights[static_cast<size_t>(i)] * x[static_cast<size_t>(token * k + i % k)];
            power += term * term;
          }
          for (auto i = from; i < to; ++i)
            error += std::pow(found[static_cast<size_t>(i)] - all[static_cast<size_t>(i)], 2);
          INFO("token " << token << ": error " << error / power);
          CHECK(error <= (n < 48 ? 2 : 1) * kProductBar * power);  // of few results
        }
        const auto after = static_cast<std::ptrdiff_t>(4 * n);
        CHECK(nmse(Floats(found.begin() + after, found.end()),
                   Floats(all.begin() + after, all.begin() + static_cast<std::ptrdiff_t>(m * n))) <= kProductBar);
      }
    }
  }
}

TEST_CASE("cuda: with fp8 few rows, plain weights and odd sizes are computed as without it") {
  if (no_fp8()) return;
  struct Case {
    DType type;
    int64_t n, k, m;
  };
  for (const Case& c : {Case{DType::Q4_K, 144, 768, 1},
                        {DType::Q4_K, 144, 768, 3},
                        {DType::Q8_0, 144, 768, 17},
                        {DType::Q6_K, 144, 768, 128},
                        {DType::Q8_0, 129, 768, 150},
                        {DType::BF16, 144, 768, 150},
                        {DType::F16, 144, 768, 150},
                        {DType::F32, 144, 768, 150}}) {
    const Weight w(c.type, c.n, c.k, 3);
    const Floats x = random_floats(c.m * c.k, 1);
    Floats results[2] = {poison(c.m * c.n), poison(c.m * c.n)};
    Backend* backends[] = {&gpu(), &fp8()};
    for (int i = 0; i < 2; ++i) {
      Side side(*backends[i]);
      backends[i]->matmul({side.in(x, {c.m, c.k}), side.weight(w), {}, side.out(results[i], {c.m, c.n})});
      side.fetch();
    }
    INFO(format_name(c.type) << " m " << c.m << " n " << c.n);
    CHECK(std::memcmp(results[0].data(), results[1].data(), results[0].size() * sizeof(float)) == 0);
  }
}

TEST_CASE("cuda: with fp8 what is no number stays none, in its own row or column alone") {
  if (no_fp8()) return;
  const int64_t m = 140, n = 64, k = 512;
  for (const float bad : {nan_of_a_float(), INFINITY}) {
    Floats x = random_floats(m * k, 1), out = poison(m * n);
    x[static_cast<size_t>(5 * k + 77)] = bad;
    Weight w(DType::Q8_0, n, k, 3);
    auto* blocks = reinterpret_cast<Q8_0::Block*>(w.bytes.data());
    blocks[9 * (k / 32) + 4].d = f32_to_f16(bad);
    Side side(fp8());
    fp8().matmul({side.in(x, {m, k}), side.weight(w), {}, side.out(out, {m, n})});
    side.fetch();
    for (int64_t row = 0; row < m; ++row)
      for (int64_t c = 0; c < n; ++c) {
        INFO(bad << " row " << row << " column " << c);
        REQUIRE(std::isfinite(out[static_cast<size_t>(row * n + c)]) == (row != 5 && c != 9));
      }
  }
}

TEST_CASE("cuda: fp8 is refused by name where it is of no use or cannot be") {
  if (no_fp8()) return;
  BackendOptions options;
  options.act = "fp8";
  const auto backend = make_backend("cuda", options);
  Needs needs = needs_of_these_tests();
  needs.matrix_formats = {DType::BF16, DType::F32};
  CHECK_THROWS_WITH(backend->prepare(needs), Catch::Contains("--quant Q8_0"));
  needs.matrix_formats = {DType::Q8_0, DType::F32}, needs.deterministic = true;
  CHECK_THROWS_WITH(backend->prepare(needs), Catch::Contains("fp8") && Catch::Contains("Q8_0"));
  needs.deterministic = false;
  backend->prepare(needs);
  CHECK(backend->describe().find(", in prompts fp8") != std::string::npos);
}
