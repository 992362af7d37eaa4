// When several matrices are one: pure arithmetic on addresses, no device is needed.
#include "kernels/cuda/adjacent.h"

#include "tests/catch.h"

using namespace infer;
using namespace infer::cuda;

namespace {

/// A matrix that is said to lie at an address; nobody looks there.
Tensor at(uintptr_t address, DType type, int64_t rows, int64_t cols) {
  Tensor t(reinterpret_cast<void*>(address), type, {rows, cols});
  t.layout = kRowMajor;
  return t;
}

}  // namespace

TEST_CASE("matrices are one when each begins where the one before ends") {
  const Tensor q = at(4096, DType::BF16, 64, 256), k = at(4096 + 64 * 512, DType::BF16, 16, 256);
  const Tensor v = at(4096 + 80 * 512, DType::BF16, 16, 256);
  const auto all = contiguous_rows({&q, &k, &v});
  REQUIRE(all);
  CHECK(all->data == q.data);
  CHECK(all->rows() == 96);
  CHECK(all->cols() == 256);
  CHECK(all->dtype == DType::BF16);
  CHECK(all->layout == kRowMajor);
  CHECK(contiguous_rows({&k, &v})->rows() == 32);
  CHECK(contiguous_rows({&q})->rows() == 64);
  CHECK_FALSE(contiguous_rows({&q, &v, &k}));
  CHECK_FALSE(contiguous_rows({&q, &v}));
  CHECK_FALSE(contiguous_rows({&q, &q}));
}

TEST_CASE("rows are counted with their padding to 16 bytes") {
  const Tensor a = at(4096, DType::F16, 3, 5), b = at(4096 + 3 * 16, DType::F16, 2, 5),
               c = at(4096 + 30, DType::F16, 2, 5);
  CHECK(contiguous_rows({&a, &b})->rows() == 5);
  CHECK_FALSE(contiguous_rows({&a, &c}));
}

TEST_CASE("matrices of other types, widths or layouts are not one") {
  const Tensor a = at(4096, DType::BF16, 4, 64);
  Tensor other = at(4096 + 4 * 128, DType::F16, 4, 64);
  CHECK_FALSE(contiguous_rows({&a, &other}));
  other = at(4096 + 4 * 128, DType::BF16, 4, 32);
  CHECK_FALSE(contiguous_rows({&a, &other}));
  other = at(4096 + 4 * 128, DType::BF16, 4, 64);
  CHECK(contiguous_rows({&a, &other}));
  other.layout = kFileBlocks;
  CHECK_FALSE(contiguous_rows({&a, &other}));
  Tensor tiles = at(4096, DType::Q8_0, 16, 64);
  tiles.layout = kTiles;
  CHECK_FALSE(contiguous_rows({&tiles}));
}
