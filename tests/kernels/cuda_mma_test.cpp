// Products of a few rows with quantised weights on the GPU: shapes that are cut in several ways, the same bits from run
// to run, and rows that do not know of each other. cuda_ops_test.cpp has every format in small shapes.
#include "tests/kernels/cuda_side.h"

using namespace infer;
using namespace infer::cuda_test;

namespace {

const std::vector<DType>& quantised() {
  static const std::vector<DType> list = [] {
    std::vector<DType> some;
    for (const DType type : kWeightFormats)
      if (!is_plain(type)) some.push_back(type);
    return some;
  }();
  return list;
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("cuda mma: few rows give the oracle's product for long rows, many rows and single tiles") {
  if (skipped()) return;
  const std::pair<int64_t, int64_t> shapes[] = {{40, 14336}, {4500, 512}, {16, 256}, {7, 2304}, {700, 2304}};
  for (const DType type : quantised()) {
    for (const auto& [n, k] : shapes) {
      const Weight w(type, n, k, static_cast<uint32_t>(n + k));
      const int64_t most = 64;
      const Floats x = random_floats(most * k, 1);
      Floats all = poison(most * n);
      Side exact(ref());
      ref().matmul({exact.in(x, {most, k}), exact.weight(w), {}, exact.out(all, {most, n})});
      exact.fetch();
      for (const int64_t m : {3, 5, 8, 9, 16, 17, 33, 64}) {
        const Floats found = product(gpu(), w, x, m);
        const double error = nmse(found, Floats(all.begin(), all.begin() + m * n));
        INFO(format_name(type) << " m " << m << " n " << n << " k " << k << ": error " << error);
        CHECK(error <= 5e-4);
      }
    }
  }
}

TEST_CASE("cuda mma: a product has the same bits every time") {
  if (skipped()) return;
  for (const DType type : {DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::MXFP4}) {
    const Weight w(type, 520, 8192, 7);
    const Floats x = random_floats(40 * 8192, 1);
    for (const int64_t m : {4, 12, 40}) {
      const Floats first = product(gpu(), w, x, m);
      for (int run = 0; run < 10; ++run) CHECK(same_bits(first, product(gpu(), w, x, m)));
    }
  }
}

TEST_CASE("cuda mma: a row's result does not depend on the other rows") {
  if (skipped()) return;
  const int64_t k = 4096, n = 300;
  for (const DType type : quantised()) {
    const Weight w(type, n, k, 9);
    for (const int64_t m : {5, 8, 16, 33}) {
      const Floats x = random_floats(m * k, 1);
      Floats other = random_floats(m * k, 2, 1000);
      const int64_t kept = m / 2;
      std::copy_n(x.begin() + kept * k, k, other.begin() + kept * k);
      other[0] = NAN, other[static_cast<size_t>(m * k - 1)] = INFINITY;
      const Floats a = product(gpu(), w, x, m), b = product(gpu(), w, other, m);
      INFO(format_name(type) << " m " << m);
      CHECK(std::memcmp(&a[static_cast<size_t>(kept * n)], &b[static_cast<size_t>(kept * n)],
                        static_cast<size_t>(n) * sizeof(float)) == 0);
    }
  }
}
