// Weights that are made while they are packed: the same bytes as of weights that lie in memory, on every backend, for
// matrices of more than one part of a loading lane, rows that fill no tile, and stacks.
#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "quant/formats.h"
#include "tests/kernels/cuda_side.h"

using namespace infer;

namespace {

void check_made(Backend& backend, DType type, WeightRole role, std::initializer_list<int64_t> dims) {
  Tensor host(nullptr, type, dims);
  const int64_t rows = host.n_elements() / host.cols();
  INFO(backend.name() << " " << format_name(type) << " [" << rows << ", " << host.cols() << "]");
  const auto row = static_cast<size_t>(row_bytes(type, host.cols()));
  std::vector<char> file(static_cast<size_t>(rows) * row);
  std::mt19937 random(7);
  for (char& c : file) c = static_cast<char>(random() & 0x37);  // no exponent of all ones
  Tensor there = host;
  there.data = file.data();
  const size_t bytes = backend.packed_bytes(there, role);
  if (bytes == 0) return;  // used where it lies
  int64_t next = 0, calls = 0;
  const MakeRows make = [&](int64_t first, int64_t n, std::byte* to) {
    CHECK(first == next);  // each row once, in order
    next = first + n, ++calls;
    std::memcpy(to, file.data() + static_cast<size_t>(first) * row, static_cast<size_t>(n) * row);
  };
  const Buffer a = backend.allocate(bytes), b = backend.allocate(bytes);
  const Tensor packed = backend.pack(there, role, a.get()), made = backend.pack_made(host, role, b.get(), make);
  backend.wait();
  CHECK(next == rows);
  CHECK((made.dtype == packed.dtype && made.layout == packed.layout && made.data == b.get()));
  std::vector<char> want(bytes), got(bytes);
  backend.download(want.data(), a.get(), bytes);
  backend.download(got.data(), b.get(), bytes);
  CHECK(std::any_of(want.begin(), want.end(), [](char c) { return c != 0; }));
  CHECK(std::memcmp(want.data(), got.data(), bytes) == 0);
}

void check_backend(Backend& backend) {
  for (const DType type : {DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::MXFP4}) {
    check_made(backend, type, WeightRole::matrix, {3005, 4096});
    check_made(backend, type, WeightRole::matrix, {17, 512});
    check_made(backend, type, WeightRole::matrix, {3, 1040, 2048});
  }
  check_made(backend, DType::BF16, WeightRole::embedding, {1501, 3072});
  check_made(backend, DType::F16, WeightRole::vector, {300});
}

}  // namespace

TEST_CASE("weights that are made while they are packed are those that lie in memory") {
  check_backend(*make_backend("cpu"));
}
TEST_CASE("cuda: weights that are made while they are packed are those that lie in memory") {
  if (cuda_test::skipped()) return;
  check_backend(cuda_test::gpu());
}
