// How the codes of quantised folders are brought: those that lie by rows are read once; those that lie by columns a GPU
// unpacks, and has the same bytes as of rows that the host makes.
#include <atomic>
#include <cstring>

#include "kernels/column_codes.h"
#include "kernels/cuda/column_part.h"
#include "tests/kernels/cuda_side.h"
#include "tests/runtime/hf_quant_writer.h"

using namespace infer;
using namespace infer::test;

namespace {

HfQuant config_of(QuantMethod method, const Matrix& m, int64_t group, bool symmetric, int zero_bias) {
  HfQuant quant;
  quant.method = method;
  quant.bits = m.bits;
  quant.scale_rows = 1;
  quant.scale_cols = group;
  quant.symmetric = symmetric;
  quant.zero_bias = zero_bias;
  return quant;
}

/// The matrix of a folder, not made.
HostTensor unmade(QuantFolder& folder, const HfQuant& quant, bool for_gpu = true) {
  unpack_quantised(folder.checkpoint, quant, {.n_threads = 1, .keep = {.for_gpu = for_gpu}});
  return folder.at("m.weight");
}

/// Brings bytes as a file would be read, and counts them.
struct CountingReader {
  std::shared_ptr<std::atomic<size_t>> bytes = std::make_shared<std::atomic<size_t>>(0);
  bool operator()(const std::byte* from, std::span<std::byte> to) const {
    std::memcpy(to.data(), from, to.size());
    *bytes += to.size();
    return true;
  }
};

Tensor tensor_of(const HostTensor& tensor) { return Tensor(nullptr, tensor.dtype, {tensor.dims[0], tensor.dims[1]}); }

struct PackedColumns {
  DType dtype;
  std::vector<char> bytes;
  bool operator==(const PackedColumns&) const = default;
};
template <class Pack>
PackedColumns packed_by(Backend& backend, const Tensor& host, const Pack& pack) {
  const size_t bytes = backend.packed_bytes(host, WeightRole::fine_matrix);
  const Buffer to = backend.allocate(bytes);
  const Tensor packed = pack(to.get());
  PackedColumns out{packed.dtype, std::vector<char>(bytes)};
  CHECK(packed.data == to.get());
  CHECK(packed.layout != 0);
  backend.wait();
  backend.download(out.bytes.data(), to.get(), bytes);
  return out;
}

/// Both ways of one matrix. in_parts: its columns are more than are brought at a time.
void check_columns(QuantFolder folder, const HfQuant& quant, DType type, bool in_parts = false) {
  const HostTensor tensor = unmade(folder, quant);
  INFO(format_name(type) << " [" << tensor.dims[0] << ", " << tensor.dims[1] << "], groups of " << quant.scale_cols);
  REQUIRE(tensor.dtype == type);
  REQUIRE(tensor.columns);
  Backend& backend = cuda_test::gpu();
  const Tensor host = tensor_of(tensor);
  REQUIRE(backend.packs_columns(host, *tensor.columns));
  CHECK((cuda::column_part(*tensor.columns, 0, int64_t{4} << 20).n_groups < tensor.dims[1] / kGroup) == in_parts);
  const auto rows = packed_by(
      backend, host, [&](void* to) { return backend.pack_made(host, WeightRole::fine_matrix, to, tensor.make); });
  const auto columns = packed_by(backend, host, [&](void* to) {
    return backend.pack_columns(host, WeightRole::fine_matrix, to, *tensor.columns);
  });
  CHECK(std::any_of(rows.bytes.begin(), rows.bytes.end(), [](char c) { return c != 0; }));
  CHECK((columns == rows));
  CHECK(columns.dtype == (type == DType::Q8_0 ? DType::W8I : type));
}

}  // namespace

TEST_CASE("a matrix whose codes lie by columns says so where a device can unpack them, and then reads none") {
  const Matrix m(24, 256, 64, 4, false), odd(24, 256, 48, 4, false), shuffled(24, 256, 64, 4, false, true);
  const HfQuant awq = config_of(QuantMethod::awq, m, 64, false, 0),
                gptq = config_of(QuantMethod::gptq, m, 64, false, 1);
  QuantFolder folder = awq_folder(m);
  const CountingReader reader;
  folder.checkpoint.read = reader;
  const HostTensor tensor = unmade(folder, awq);
  REQUIRE(tensor.columns);
  const ColumnCodes& columns = *tensor.columns;
  CHECK(columns.order == ColumnCodes::Order::awq);
  CHECK((columns.rows == 24 && columns.cols == 256 && columns.bits == 4 && columns.group_cols == 64));
  CHECK(columns.zeros);
  CHECK(*reader.bytes == 0);
  std::vector<std::byte> some(8);
  columns.copy(columns.codes, some.size(), some.data());
  CHECK(*reader.bytes == 8);

  QuantFolder in_order = gptq_folder(m, false), other_order = gptq_folder(shuffled, false),
              odd_groups = awq_folder(odd);
  const HostTensor ordered = unmade(in_order, gptq);
  REQUIRE(ordered.columns);
  CHECK(ordered.columns->zero_bias == 1);
  HfQuant any = gptq;
  any.any_order = true;
  CHECK_FALSE(unmade(other_order, any).columns);
  CHECK_FALSE(unmade(odd_groups, config_of(QuantMethod::awq, odd, 48, false, 0)).columns);
  QuantFolder wide_scales = awq_folder(m);  // F32, all of which F16 holds
  std::vector<float> scales;
  for (size_t g = 0; g < 4; ++g)
    for (size_t r = 0; r < 24; ++r) scales.push_back(m.scale[r][g]);
  wide_scales.drop("m.scales");
  wide_scales.add("m.scales", DType::F32, {4, 24}, bytes_of(scales));
  CHECK_FALSE(unmade(wide_scales, awq).columns);
}

TEST_CASE("codes that lie by rows are read row by row, each byte once, and not through the file's pages") {
  constexpr int64_t kRows = 300;  // more than are read at a time
  const Matrix four(kRows, 4224, 4224, 4, true), eight(kRows, 4224, 4224, 8, true);
  std::string signed_codes;
  for (const auto& row : eight.code)
    for (const int code : row) signed_codes += static_cast<char>(code - 128);
  QuantFolder ints, floats;
  ints.add("m.weight", DType::I8, {kRows, 4224}, signed_codes);
  ints.add("m.weight_scale", DType::F32, {kRows, 1},
           eight.by_row<float>([&](size_t r, size_t g) { return eight.scale[r][g]; }));
  std::vector<uint8_t> e4m3;
  for (int64_t i = 0; i < kRows * 4096; ++i) e4m3.push_back(static_cast<uint8_t>(i * 7 % 120));
  floats.add("m.weight", DType::F8_E4M3, {kRows, 4096}, bytes_of(e4m3));
  floats.add("m.weight_scale", DType::F32, {kRows, 1}, bytes_of(std::vector<float>(kRows, 0.5f)));
  const auto check_reads = [](QuantFolder folder, QuantMethod method, const Matrix& like, DType type, size_t bytes) {
    const HfQuant quant = config_of(method, like, 0, true, 0);
    QuantFolder lying = folder;
    const HostTensor wanted = lying.unpack(quant, {.for_gpu = true});
    CHECK(wanted.dtype == type);
    const CountingReader reader;
    folder.checkpoint.read = reader;
    const HostTensor found = folder.unpack(quant, {.for_gpu = true});
    CHECK(*reader.bytes == bytes);
    REQUIRE(found.bytes == wanted.bytes);
    CHECK(std::memcmp(found.data, wanted.data, wanted.bytes) == 0);
  };
  check_reads(packed_folder(four, false), QuantMethod::packed_ints, four, DType::Q4_0, kRows * 4224 / 2);
  check_reads(ints, QuantMethod::ints, eight, DType::Q8_0, kRows * 4224);
  check_reads(floats, QuantMethod::floats, eight, DType::W8F, kRows * 4096);
}

TEST_CASE("columns are brought in parts of whole groups, with the scales of all of them, and none twice") {
  for (const int64_t group_cols : {32, 64, 128, 96, 640})
    for (const int bits : {4, 8})
      for (const bool zeros : {false, true}) {
        ColumnCodes columns;
        columns.order = ColumnCodes::Order::gptq;
        columns.bits = bits, columns.rows = 13, columns.cols = 640, columns.group_cols = group_cols;
        std::vector<std::byte> codes(static_cast<size_t>(13 * 640 * bits / 8)),
            scale(static_cast<size_t>(columns.n_groups() * 13 * 2)),
            zero(static_cast<size_t>(columns.n_groups() * columns.zero_words() * 4));
        uint8_t next = 0;
        for (auto* bytes : {&codes, &scale, &zero})
          for (std::byte& b : *bytes) b = static_cast<std::byte>(next += 7);
        columns.codes = codes.data(), columns.scales = scale.data();
        columns.zeros = zeros ? zero.data() : nullptr;
        for (const int64_t room : {600, 1000, 2500, 100000}) {
          INFO("groups of " << group_cols << ", " << bits << " bits, room for " << room);
          std::vector<std::byte> brought;
          int64_t group = 0;
          while (group < 20) {
            const cuda::ColumnPart part = cuda::column_part(columns, group, room);
            REQUIRE(part.n_groups > 0);
            REQUIRE(part.bytes() <= room);
            std::vector<std::byte> to(static_cast<size_t>(part.bytes()));
            cuda::copy_part(columns, part, to.data());
            brought.insert(brought.end(), to.begin(), to.begin() + part.code_bytes());
            const int64_t last = (group + part.n_groups - 1) / part.groups_to_scale;
            CHECK(part.first_scale == group / part.groups_to_scale);
            CHECK(part.n_scales == last - part.first_scale + 1);
            CHECK(std::memcmp(to.data() + part.scales_at(), scale.data() + part.first_scale * 26,
                              static_cast<size_t>(part.n_scales * 26)) == 0);
            if (zeros)
              CHECK(std::memcmp(to.data() + part.zeros_at(), zero.data() + part.first_scale * columns.zero_words() * 4,
                                static_cast<size_t>(part.n_scales * columns.zero_words() * 4)) == 0);
            group += part.n_groups;
          }
          CHECK(group == 20);
          CHECK(brought == codes);
        }
        CHECK(cuda::column_part(columns, 0, 200).n_groups == 0);  // one group has 208 bytes of codes, or 416
      }
}

TEST_CASE("codes and zero points of a group of columns are those of the definitions") {
  constexpr int kColumn[8] = {0, 2, 4, 6, 1, 3, 5, 7};  // the row of nibble i
  uint32_t words[kGroup];
  for (uint32_t i = 0; i < kGroup; ++i) words[i] = 0x9e3779b9u * (i + 1);
  uint8_t codes[kGroup];
  for (int nibble = 0; nibble < 8; ++nibble) {
    cuda::awq_group(words, kColumn[nibble], codes);
    for (int i = 0; i < kGroup; ++i) CHECK(codes[i] == (words[i] >> (4 * nibble) & 15));
    CHECK(cuda::zero_of_row(words, true, 4, 0, 16 + kColumn[nibble]) ==
          static_cast<int>(words[2] >> (4 * nibble) & 15));
    CHECK(cuda::zero_of_row(words, false, 4, 1, 16 + nibble) ==
          static_cast<int>(((words[2] >> (4 * nibble) & 15) + 1) % 16));
  }
  for (const int bits : {4, 8}) {
    const int per_word = 32 / bits;
    cuda::gptq_group(words, bits, codes);
    for (int i = 0; i < kGroup; ++i)
      CHECK(codes[i] == (words[i / per_word] >> (i % per_word * bits) & ((1u << bits) - 1)));
  }
  for (int row = 0; row < 8; ++row)
    CHECK(cuda::zero_of_row(words, false, 8, 1, row) ==
          static_cast<int>(((words[row / 4] >> (row % 4 * 8) & 255) + 1) % 256));
}

TEST_CASE("cuda: columns of AWQ and GPTQ, unpacked by the device, are packed as their rows are") {
  if (cuda_test::skipped()) return;
  for (const int64_t rows : {8, 24, 136, 2056})
    for (const int64_t cols : {32, 96, 256, 768}) {
      for (const int64_t group : {32, 64, 128, 256}) {
        if (group > cols || cols % group != 0) continue;
        const bool wide = cols % 256 == 0 && group % 128 == 0;
        const Matrix zeros(rows, cols, group, 4, false), middle(rows, cols, group, 4, true),
            eight(rows, cols, group, 8, true);
        const DType with_zeros = wide ? DType::W4G128 : DType::W4G, symmetric = wide ? DType::W4G128 : DType::Q4_0;
        check_columns(awq_folder(zeros), config_of(QuantMethod::awq, zeros, group, false, 0), with_zeros);
        check_columns(awq_folder(middle), config_of(QuantMethod::awq, middle, group, true, 0), symmetric);
        for (const bool v2 : {false, true}) {
          const int bias = v2 ? 0 : 1;
          check_columns(gptq_folder(zeros, v2), config_of(QuantMethod::gptq, zeros, group, false, bias), with_zeros);
          check_columns(gptq_folder(middle, v2), config_of(QuantMethod::gptq, middle, group, true, bias), symmetric);
          check_columns(gptq_folder(eight, v2), config_of(QuantMethod::gptq, eight, group, true, bias), DType::Q8_0);
        }
      }
      const Matrix whole(rows, cols, cols, 4, true);  // a scale to a row
      check_columns(gptq_folder(whole, false), config_of(QuantMethod::gptq, whole, 0, true, 1),
                    cols % 256 == 0 ? DType::W4G128 : DType::Q4_0);
    }
  const Matrix large(4104, 2304, 128, 4, false);
  check_columns(awq_folder(large), config_of(QuantMethod::awq, large, 128, false, 0), DType::W4G128, true);
}
