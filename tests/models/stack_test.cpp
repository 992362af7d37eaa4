// Tensors whose slices lie apart arrive in a backend as if they had lain together.
#include "models/stack.h"

#include <algorithm>
#include <cstring>

#include "quant/half.h"
#include "tests/catch.h"
#include "tests/runtime/ref_double.h"

using namespace infer;

namespace {

/// Three slices of eight numbers, each in memory of its own, in an order that is not that of the addresses.
template <class Number>
struct Apart {
  std::vector<Number> slices[3];
  HostTensor source;

  Apart(DType dtype, std::vector<int64_t> dims, Number (*number)(int)) {
    source.name = "stack";
    source.dtype = dtype;
    source.dims = std::move(dims);
    source.bytes = 24 * sizeof(Number);
    for (int i : {2, 0, 1})
      for (int k = 0; k < 8; ++k) slices[i].push_back(number(8 * i + k));
    for (const auto& slice : slices) source.parts.push_back(reinterpret_cast<const std::byte*>(slice.data()));
  }
  BoundTensor bound(WeightRole role) const {
    Tensor host;
    host.data = const_cast<std::byte*>(source.parts[0]);
    host.dtype = source.dtype;
    for (const int64_t dim : source.dims) host.dims[host.n_dims++] = dim;
    return {&source, host, role, nullptr};
  }
};

void check_counts_up(const Tensor& tensor) {
  REQUIRE(tensor.dtype == DType::F32);
  for (int i = 0; i < 24; ++i) CHECK(tensor.as<const float>()[i] == static_cast<float>(i));
}

}  // namespace

TEST_CASE("what a backend uses in place is copied into one piece") {
  const Apart<float> apart(DType::F32, {3, 2, 4}, [](int i) { return static_cast<float>(i); });
  const BoundTensor bound = apart.bound(WeightRole::matrix);
  const auto backend = make_backend("ref");
  REQUIRE(packed_bytes(bound, *backend) == 96);
  std::vector<float> memory(24, -1);
  const Tensor packed = pack_tensor(bound, *backend, memory.data());
  CHECK(packed.n_dims == 3);
  CHECK(packed.dims[0] == 3);
  CHECK(packed.dims[2] == 4);
  check_counts_up(packed);
}

TEST_CASE("what a backend packs is packed slice by slice") {
  const Apart<uint16_t> apart(DType::F16, {3, 8}, [](int i) { return f32_to_f16(static_cast<float>(i)); });
  const BoundTensor bound = apart.bound(WeightRole::vector);
  for (const char* name : {"ref", "cpu"}) {
    const auto backend = make_backend(name);
    REQUIRE(packed_bytes(bound, *backend) == 96);
    std::vector<float> memory(24, -1);
    const Tensor packed = pack_tensor(bound, *backend, memory.data());
    CHECK(packed.data == memory.data());
    CHECK(packed.n_dims == 2);
    check_counts_up(packed);
  }
}

/// The same numbers, yet to be made.
HostTensor made(const HostTensor& apart) {
  HostTensor out = apart;
  out.parts.clear();
  out.make = [apart](int64_t first, int64_t n, std::byte* to) { apart.copy_rows(first, n, to); };
  return out;
}

TEST_CASE("what is yet to be made is made slice by slice, and in place where nothing is packed") {
  const Apart<float> floats(DType::F32, {3, 2, 4}, [](int i) { return static_cast<float>(i); });
  const Apart<uint16_t> halves(DType::F16, {3, 8}, [](int i) { return f32_to_f16(static_cast<float>(i)); });
  const HostTensor stack = made(floats.source), vectors = made(halves.source);
  BoundTensor matrix = floats.bound(WeightRole::matrix), vector = halves.bound(WeightRole::vector);
  matrix.source = &stack, vector.source = &vectors;
  matrix.host.data = vector.host.data = nullptr;
  const auto ref = make_backend("ref");
  for (const BoundTensor& bound : {matrix, vector}) {
    REQUIRE(packed_bytes(bound, *ref) == 96);
    std::vector<float> memory(24, -1);
    check_counts_up(pack_tensor(bound, *ref, memory.data()));
  }
}

TEST_CASE("of a matrix that is yet to be made a use takes its rows") {
  const Apart<float> apart(DType::F32, {3, 8}, [](int i) { return static_cast<float>(i); });
  const HostTensor source = made(apart.source);
  for (const char* name : {"ref", "cpu"}) {
    const auto backend = make_backend(name);
    BoundTensor bound = apart.bound(WeightRole::matrix), lying = bound;
    bound.source = &source;
    bound.host.dims[0] = lying.host.dims[0] = 2;
    bound.host.data = nullptr;
    bound.first_row = 1;
    std::vector<float> rows;
    for (int i = 0; i < 16; ++i) rows.push_back(static_cast<float>(8 + i));
    HostTensor whole = apart.source;
    whole.parts.clear();
    lying.source = &whole;
    lying.host.data = rows.data();
    const size_t bytes = packed_bytes(bound, *backend);
    std::vector<std::byte> memory(bytes), other(bytes);
    const Tensor packed = pack_tensor(bound, *backend, memory.data()),
                 want = pack_tensor(lying, *backend, other.data());
    CHECK(packed.layout == want.layout);
    CHECK(packed.dtype == want.dtype);
    CHECK(std::memcmp(packed.as<const char>(), want.as<const char>(), bytes) == 0);
  }
}

TEST_CASE(
    "a stack is packed in parts as it is at once, from one piece, from slices apart and from what is yet to be made") {
  const Apart<float> apart(DType::F32, {3, 2, 4}, [](int i) { return static_cast<float>(i); });
  std::vector<float> all;
  for (int i = 0; i < 24; ++i) all.push_back(static_cast<float>(i));
  HostTensor whole = apart.source;
  whole.parts.clear();
  whole.data = reinterpret_cast<const std::byte*>(all.data());
  for (const HostTensor& source : {apart.source, whole, made(apart.source)}) {
    BoundTensor bound = apart.bound(WeightRole::matrix);
    bound.source = &source;
    bound.host.data = source.data ? all.data() : nullptr;
    const auto backend = make_backend("cpu");
    const size_t bytes = packed_bytes(bound, *backend);
    std::vector<std::byte> want(bytes), got(bytes);
    pack_tensor(bound, *backend, want.data());
    const std::vector<WeightPart> parts = parts_of(bound, *backend, 1);
    CHECK(parts.size() == 3);
    for (const WeightPart& part : parts) {
      const Tensor packed = pack_tensor(part_of(bound, part.first, part.n), *backend, got.data() + part.begin);
      CHECK(packed.dims[0] == 1);
    }
    CHECK(got == want);
    CHECK(parts_of(bound, *backend, 64).size() == 2);
    CHECK(parts_of(bound, *backend, 1000).size() == 1);
  }
}

TEST_CASE("what lies in files is brought by what reads them, and copied where that cannot") {
  const Apart<float> apart(DType::F32, {3, 2, 4}, [](int i) { return static_cast<float>(i); });
  const BoundTensor bound = apart.bound(WeightRole::matrix);
  const auto cpu = make_backend("cpu");
  std::vector<std::byte> want(packed_bytes(bound, *cpu));
  pack_tensor(bound, *cpu, want.data());
  for (const bool can : {true, false}) {
    size_t n_read = 0;
    const ReadBytes read = [&](const std::byte* from, std::span<std::byte> to) {
      n_read += to.size();
      if (can) std::memcpy(to.data(), from, to.size());
      return can;
    };
    std::vector<std::byte> got(want.size());
    pack_tensor(bound, *cpu, got.data(), read);
    CHECK(got == want);
    CHECK(n_read == 96);
  }
}

TEST_CASE("a matrix is packed in parts of whole tiles, and a vector or what is used in place as one") {
  Tensor host(nullptr, DType::BF16, {1000, 512});
  HostTensor source;
  source.dtype = DType::BF16;
  source.dims = {1000, 512};
  std::vector<uint16_t> numbers(512000);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<uint16_t>(i % 16000);
  host.data = numbers.data();
  source.data = reinterpret_cast<const std::byte*>(numbers.data());
  const auto cpu = make_backend("cpu"), ref = make_backend("ref");
  const BoundTensor bound{&source, host, WeightRole::matrix, nullptr};
  CHECK(parts_of(bound, *cpu, 1).size() == 16);
  CHECK(parts_of(bound, *cpu, 8 << 20).size() == 1);
  CHECK(parts_of(bound, *ref, 1).size() == 1);
  CHECK(parts_of({&source, host, WeightRole::vector, nullptr}, *cpu, 1).size() == 1);
  std::vector<std::byte> want(packed_bytes(bound, *cpu)), got(want.size());
  pack_tensor(bound, *cpu, want.data());
  int64_t next = 0;
  for (const WeightPart& part : parts_of(bound, *cpu, 200 << 10)) {
    CHECK(part.first == next);
    CHECK(part.n == std::min<int64_t>(192, 1000 - part.first));
    next = part.first + part.n;
    pack_tensor(part_of(bound, part.first, part.n), *cpu, got.data() + part.begin);
  }
  CHECK(next == 1000);
  CHECK(got == want);
}

TEST_CASE("rows are copied from one piece, from parts and from what is yet to be made") {
  const Apart<float> apart(DType::F32, {3, 2, 4}, [](int i) { return static_cast<float>(i); });
  HostTensor whole = apart.source;
  std::vector<float> all;
  for (int i = 0; i < 24; ++i) all.push_back(static_cast<float>(i));
  whole.parts.clear();
  whole.data = reinterpret_cast<const std::byte*>(all.data());
  for (const HostTensor& tensor : {apart.source, whole, made(apart.source)})
    for (int64_t first = 0; first < 6; ++first)
      for (int64_t n = 1; first + n <= 6; ++n) {
        std::vector<float> rows(static_cast<size_t>(4 * n));
        tensor.copy_rows(first, n, reinterpret_cast<std::byte*>(rows.data()));
        CHECK(rows == std::vector<float>(all.begin() + 4 * first, all.begin() + 4 * (first + n)));
      }
}

TEST_CASE("a slice is found in one piece and in parts") {
  const Apart<float> apart(DType::F32, {3, 2, 4}, [](int i) { return static_cast<float>(i); });
  HostTensor whole = apart.source;
  std::vector<float> memory(24);
  whole.parts.clear();
  whole.data = reinterpret_cast<const std::byte*>(memory.data());
  for (int64_t i = 0; i < 3; ++i) {
    CHECK(apart.source.slice(i) == apart.source.parts[static_cast<size_t>(i)]);
    CHECK(whole.slice(i) == whole.data + i * 32);
  }
}

/// Packs as a device with memory of its own would, and counts by what.
class ColumnPacker final : public test::RefDouble {
 public:
  bool takes = true;
  mutable int of_columns = 0, of_rows = 0;
  mutable WeightRole role = WeightRole::vector;
  size_t packed_bytes(const Tensor& host, WeightRole) const override { return host_bytes(host); }
  Tensor pack_made(const Tensor& host, WeightRole, void*, const MakeRows&) const override { return ++of_rows, host; }
  bool packs_columns(const Tensor&, const ColumnCodes&) const override { return takes; }
  Tensor pack_columns(const Tensor& host, WeightRole of, void*, const ColumnCodes&) const override {
    return ++of_columns, role = of, host;
  }
};

TEST_CASE("a matrix goes by its columns where the backend takes those, and then all of it at once") {
  HostTensor source;
  source.dtype = DType::F32;
  source.dims = {256, 32};
  source.bytes = size_t{256} * 32 * 4;
  source.make = [](int64_t, int64_t, std::byte*) {};
  ColumnCodes columns;
  columns.rows = 256, columns.cols = 32, columns.group_cols = 32;
  source.columns = std::make_shared<const ColumnCodes>(columns);
  const BoundTensor whole{&source, Tensor(nullptr, DType::F32, {256, 32}), WeightRole::fine_matrix, nullptr};
  BoundTensor second_half = whole;
  second_half.host.dims[0] = 128, second_half.first_row = 128;

  ColumnPacker backend;
  std::vector<std::byte> to(source.bytes);
  CHECK(parts_of(whole, backend, 8192).size() == 1);
  pack_tensor(whole, backend, to.data());
  CHECK((backend.of_columns == 1 && backend.of_rows == 0 && backend.role == WeightRole::fine_matrix));
  CHECK(parts_of(second_half, backend, 8192).size() == 2);
  pack_tensor(second_half, backend, to.data());
  CHECK((backend.of_columns == 1 && backend.of_rows == 1));
  backend.takes = false;
  CHECK(parts_of(whole, backend, 8192).size() == 4);
  pack_tensor(whole, backend, to.data());
  CHECK((backend.of_columns == 1 && backend.of_rows == 2));
}
