// Products of up to 16 rows with plain weights of 16 bits, which have a kernel of their own (matmul_16bit.h): shapes
// that fill slots, CTAs and passes in part only, and rows that do not know of each other. Stages are in
// cuda_stages_test.cpp, small shapes of every format in cuda_ops_test.cpp.
#include "tests/kernels/cuda_side.h"

using namespace infer;
using namespace infer::cuda_test;

namespace {

constexpr DType kTypes[] = {DType::F16, DType::BF16};

}  // namespace

TEST_CASE("cuda 16bit: the oracle's product for long rows, many rows, single tiles and what is left of a slot") {
  if (skipped()) return;
  const std::pair<int64_t, int64_t> shapes[] = {{40, 14336}, {18000, 512}, {16, 8},
                                                {7, 2304},   {2200, 1032}, {33, 1016}};
  for (const DType type : kTypes)
    for (const auto& [n, k] : shapes) {
      const Weight w(type, n, k, static_cast<uint32_t>(n + k));
      constexpr int64_t kMost = 17;  // the last one is cuBLASLt's
      const Floats x = random_floats(kMost * k, 1), all = product(ref(), w, x, kMost);
      for (const int64_t m : {3, 4, 7, 8, 9, 15, 16, 17}) {
        const double error = nmse(product(gpu(), w, x, m), Floats(all.begin(), all.begin() + m * n));
        INFO(format_name(type) << " m " << m << " n " << n << " k " << k << ": error " << error);
        CHECK(error <= 1e-4);
      }
    }
}

TEST_CASE("cuda 16bit: fine weights in BF16 meet activations of 11 bits instead of 8, with as many rows as there are") {
  if (skipped()) return;
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{33, 1016}, {70, 37}, {16, 2304}}) {
    const Weight w(DType::BF16, n, k, static_cast<uint32_t>(n + k));
    const Floats x = random_floats(40 * k, 1), all = product(ref(), w, x, 40);
    for (const int64_t m : {1, 2, 4, 8, 16, 40}) {
      const Floats wanted(all.begin(), all.begin() + m * n);
      Side side(gpu());
      Floats out = poison(m * n);
      const Tensor fine = side.weight(w, WeightRole::fine_matrix);
      CHECK(fine.dtype == DType::F16);
      gpu().matmul({side.in(Floats(x.begin(), x.begin() + m * k), {m, k}), fine, {}, side.out(out, {m, n})});
      side.fetch();
      INFO("m " << m << " n " << n << " k " << k);
      CHECK(nmse(out, wanted) < 5e-7);
      CHECK(nmse(product(gpu(), w, x, m), wanted) > 1e-6);  // what bf16 costs
    }
  }
}

TEST_CASE("cuda 16bit: fine stacks of experts in BF16 lie as F16, clamped where that does not reach") {
  if (skipped()) return;
  const int64_t n = 3, rows = 17, cols = 44;
  Weight w(DType::BF16, n * rows, cols, 5);
  const uint16_t large = f32_to_bf16(1e6f);
  std::memcpy(w.bytes.data(), &large, sizeof(large));
  w.host = Tensor(w.bytes.data(), DType::BF16, {n, rows, cols});
  Side side(gpu());
  const Tensor packed = side.weight(w, WeightRole::fine_matrix);
  CHECK(packed.dtype == DType::F16);
  const int64_t stride = 48;  // numbers: rows are padded to 16 bytes
  std::vector<uint16_t> found(static_cast<size_t>(n * rows * stride));
  gpu().download(found.data(), packed.data, found.size() * 2);
  int differ = 0;
  for (int64_t r = 0; r < n * rows; ++r)
    for (int64_t c = 0; c < stride; ++c) {
      uint16_t bits = 0;
      if (c < cols) std::memcpy(&bits, &w.bytes[static_cast<size_t>(r * cols + c) * 2], 2);
      const float x = bf16_to_f32(bits), wanted = x > 65504 ? 65504 : x;
      differ += f16_to_f32(found[static_cast<size_t>(r * stride + c)]) != f16_to_f32(f32_to_f16(wanted));
    }
  CHECK(differ == 0);
}

TEST_CASE("cuda 16bit: a row's bits depend neither on the other rows nor on their number up to 8, or from 9 on") {
  if (skipped()) return;
  const int64_t k = 1160, n = 300;
  for (const DType type : kTypes) {
    const Weight w(type, n, k, 9);
    const Floats x = random_floats(16 * k, 1);
    for (const auto& [least, most] : {std::pair<int64_t, int64_t>{3, 8}, {9, 16}}) {
      const Floats all = product(gpu(), w, x, most);
      for (int64_t m = least; m < most; ++m) {
        Floats other = x;
        other[0] = NAN, other[static_cast<size_t>((m - 1) * k)] = INFINITY;
        const Floats found = product(gpu(), w, other, m);
        INFO(format_name(type) << " m " << m);
        CHECK(std::memcmp(&found[static_cast<size_t>(n)], &all[static_cast<size_t>(n)],
                          static_cast<size_t>((m - 2) * n) * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("cuda 16bit: rows are narrowed and multiplied, two launches, by this kernel from 3 to 16 rows") {
  if (skipped()) return;
  for (const DType type : {DType::F16, DType::BF16, DType::F32})
    for (const int64_t m : {2, 3, 16, 17}) {
      const Weight w(type, 64, 256, 3);
      Side side(gpu());
      Floats out = poison(m * 64);
      const Tensor x = side.in(random_floats(m * 256, 1), {m, 256}), packed = side.weight(w),
                   to = side.out(out, {m, 64});
      bool own = false;
      int64_t launches = 0;
      for (const KernelUse& use : gpu().kernels_of([&] { gpu().matmul({x, packed, {}, to}); })) {
        own = own || use.name.find("kernel_16bit") == 0;
        launches += use.n_launches;
      }
      side.fetch();
      const bool wanted = type != DType::F32 && m >= 3 && m <= 16;
      INFO(format_name(type) << " m " << m);
      CHECK(own == wanted);
      if (wanted) CHECK(launches == 2);
    }
}
