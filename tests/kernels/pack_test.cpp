// Weights that are made while they are packed, and weights that are packed in parts: the same bytes as of weights that
// lie in memory and are packed at once, on every backend, for matrices of more than one part of a loading lane, rows
// that fill no tile, and stacks.
#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "quant/formats.h"
#include "tests/kernels/cuda_side.h"

using namespace infer;

namespace {

/// A weight of random bytes.
struct Weight {
  Tensor host;
  size_t row_bytes;
  std::vector<char> file;

  Weight(DType type, std::initializer_list<int64_t> dims)
      : host(nullptr, type, dims),
        row_bytes(static_cast<size_t>(infer::row_bytes(type, host.cols()))),
        file(static_cast<size_t>(n_rows()) * row_bytes) {
    std::mt19937 random(7);
    for (char& c : file) c = static_cast<char>(random() & 0x37);  // no exponent of all ones
    host.data = file.data();
  }
  int64_t n_rows() const { return host.n_elements() / host.cols(); }
};

/// What `pack` leaves at the address that it is given.
struct Packed {
  Tensor tensor;
  std::vector<char> bytes;
  bool operator==(const Packed& other) const {
    return tensor.dtype == other.tensor.dtype && tensor.layout == other.tensor.layout && bytes == other.bytes;
  }
};
template <class Pack>
Packed packed_by(Backend& backend, size_t bytes, const Pack& pack) {
  const Buffer to = backend.allocate(bytes);
  Packed out{pack(static_cast<char*>(to.get())), std::vector<char>(bytes)};
  backend.wait();
  backend.download(out.bytes.data(), to.get(), bytes);
  return out;
}

Packed packed_whole(Backend& backend, const Weight& weight, WeightRole role) {
  return packed_by(backend, backend.packed_bytes(weight.host, role),
                   [&](char* to) { return backend.pack(weight.host, role, to); });
}

Packed packed_made(Backend& backend, const Weight& weight, WeightRole role, size_t bytes) {
  Tensor host = weight.host;
  host.data = nullptr;
  int64_t next = 0;
  const MakeRows make = [&](int64_t first, int64_t n, std::byte* to) {
    CHECK(first == next);  // each row once, in order
    next = first + n;
    std::memcpy(to, weight.file.data() + static_cast<size_t>(first) * weight.row_bytes,
                static_cast<size_t>(n) * weight.row_bytes);
  };
  Packed made = packed_by(backend, bytes, [&](char* to) {
    const Tensor packed = backend.pack_made(host, role, to, make);
    CHECK(packed.data == to);
    return packed;
  });
  CHECK(next == weight.n_rows());
  return made;
}

/// Parts of `step` indices of the first dimension, the last one first.
Packed packed_in_parts(Backend& backend, const Weight& weight, WeightRole role, int64_t step, size_t bytes) {
  const int64_t all = weight.host.dims[0], rows = weight.n_rows() / all;
  const auto part = [&](int64_t first, int64_t n) {
    Tensor some = weight.host;
    some.dims[0] = n;
    some.data = some.as<char>() + static_cast<size_t>(first * rows) * weight.row_bytes;
    return some;
  };
  return packed_by(backend, bytes, [&](char* to) {
    for (int64_t first = (all - 1) / step * step; first > 0; first -= step)
      backend.pack(part(first, std::min(step, all - first)), role, to + backend.packed_bytes(part(0, first), role));
    return backend.pack(part(0, std::min(step, all)), role, to);
  });
}

void check(Backend& backend, DType type, WeightRole role, std::initializer_list<int64_t> dims) {
  const Weight weight(type, dims);
  INFO(backend.name() << " " << format_name(type) << " [" << weight.n_rows() << ", " << weight.host.cols() << "]");
  const size_t bytes = backend.packed_bytes(weight.host, role);
  if (bytes == 0) return;  // used where it lies
  const Packed whole = packed_whole(backend, weight, role);
  CHECK(std::any_of(whole.bytes.begin(), whole.bytes.end(), [](char c) { return c != 0; }));
  CHECK((packed_made(backend, weight, role, bytes) == whole));
  if (role == WeightRole::vector) return;
  for (const int64_t step : {1, 2, 20}) {
    INFO("parts of " << step);
    CHECK(
        (packed_in_parts(backend, weight, role, dims.size() == 3 ? step : step * Backend::kRowsApart, bytes) == whole));
  }
}

void check_backend(Backend& backend) {
  for (const DType type : {DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::MXFP4}) {
    check(backend, type, WeightRole::matrix, {3005, 4096});
    check(backend, type, WeightRole::matrix, {17, 512});
    check(backend, type, WeightRole::matrix, {3, 1040, 2048});
  }
  check(backend, DType::BF16, WeightRole::embedding, {1501, 3072});
  check(backend, DType::F16, WeightRole::vector, {300});
}

}  // namespace

TEST_CASE("weights made while they are packed and weights packed in parts are those packed whole") {
  check_backend(*make_backend("cpu"));
}
TEST_CASE("cuda: weights made while they are packed and weights packed in parts are those packed whole") {
  if (cuda_test::skipped()) return;
  check_backend(cuda_test::gpu());
}
