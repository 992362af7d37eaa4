// Mutations of tensor entries: dimensions, types, offsets, names.
#include "tests/runtime/gguf_corpus_edits.h"

namespace infer::test {
namespace {

constexpr uint64_t kOne = 1;

std::string field(const char* tensor, const char* what) { return std::string("tensor ") + tensor + " " + what; }

void add_dims(const CorpusAdder& add) {
  const GgufImage good = small_model().image();
  for (const uint32_t n : {0u, 5u, 8u, 255u, 65536u, 0x80000000u, 0xffffffffu})
    add.refused("b18_n_dims_" + std::to_string(n), good.patched(field(kMiddle, "n_dims"), n), "dimensions");
  for (const char* tensor : {kEmbed, kMiddle, kLast}) {
    const std::string of = std::string("_of_") + tensor;
    const auto both = [&](uint64_t columns, uint64_t rows) {
      std::string bytes = good.patched(field(tensor, "dim 0"), columns);
      return bytes.replace(good.at(field(tensor, "dim 1")), 8, le(rows));
    };
    for (const char* dim : {"dim 0", "dim 1"})
      add.refused("b19_zero_" + std::string(1, dim[4]) + of, good.patched(field(tensor, dim), uint64_t{0}), tensor);
    add.refused("b20_2^32_x_2^32" + of, both(kOne << 32, kOne << 32), tensor);
    add.refused("b20_2^63_x_2" + of, both(kOne << 63, 2), tensor);
    add.refused("b20_2^31-1_squared" + of, both((kOne << 31) - 32, (kOne << 31) - 1), tensor);
    add.refused("b20_wraps_to_itself" + of, both(32, 32 + (kOne << 59)), tensor);
    add.refused("b20_wraps_to_one_row" + of, both(32, 1 + (kOne << 59)), tensor);
    add.refused("b20_sign_bit" + of, both(32, kOne << 58), tensor);
    add.refused("b20_minus_1" + of, both(32, ~uint64_t{0}), tensor);
    add.refused("b21_bytes_wrap" + of, both(32, (kOne << 42) + 1), tensor);
    add.refused("b23_rows_2^31" + of, both(32, kOne << 31), tensor);
    add.refused("b23_rows_2^32" + of, both(32, (kOne << 32) + 32), tensor);
    add.refused("b23_columns_2^31" + of, both(kOne << 31, 32), tensor);
    add.refused("b25_row_plus_1" + of, both(33, 32), "block");
    add.refused("b25_row_1" + of, both(1, 32), "block");
    add.refused("b13_one_row_more_than_the_file" + of, both(32, 100000), tensor);
  }
  add.refused("b19_zero_norm", good.patched(field(kNorm, "dim 0"), uint64_t{0}), kNorm);
  add.refused("b21_f32_2^62", good.patched(field(kNorm, "dim 0"), kOne << 62), kNorm);
  add.refused("b22_padding_wraps", good.patched(field(kNorm, "dim 0"), (kOne << 63) - 64), kNorm);
  add.edit(
      "b20_2^16_four_times",
      [](GgufWriter& f) {
        f.tensors.push_back({"test.weight", 0, {65536, 65536, 65536, 65536}, "data"});
      },
      "test.weight");
  add.edit("b21_sum_of_two_wraps", [](GgufWriter& f) {
    f.tensors.push_back({"test.a", 24, {2147483647, 2147483647, 2}, "data"});
    f.tensors.push_back({"test.b", 24, {2147483647, 2147483647, 2}, "data"});
  });
}

void add_types(const CorpusAdder& add) {
  const GgufImage good = small_model().image();
  for (const uint32_t type :
       {4u, 5u, 9u, 15u, 31u, 32u, 33u, 36u, 37u, 38u, 64u, 255u, 65536u, 0x80000000u, 0xffffffffu})
    add.refused("b24_type_" + std::to_string(type), good.patched(field(kMiddle, "type"), type), kMiddle);
  for (const uint32_t type : {10u, 12u, 14u, 17u, 23u, 34u})
    add.refused("b25_rows_of_32_as_type_" + std::to_string(type), good.patched(field(kMiddle, "type"), type), "block");
}

void add_offsets(const CorpusAdder& add) {
  const GgufImage good = small_model().image();
  const uint64_t size = good.bytes.size(), data = size - good.at("data");
  const auto offset_of = [&](const char* tensor) { return good.at(field(tensor, "data")) - good.at("data"); };
  for (const uint64_t n :
       {uint64_t{1}, uint64_t{8}, uint64_t{31}, uint64_t{32}, data - 32, data, size, size + 32, kOne << 31, kOne << 32,
        kOne << 62, kOne << 63, ~uint64_t{0} - 63, ~uint64_t{0} - 31, ~uint64_t{0}, uint64_t{0} - good.at("data")})
    add.refused("b26_first_offset_" + std::to_string(n), good.patched(field(kEmbed, "offset"), n));
  const uint64_t here = offset_of(kLast);
  for (const uint64_t n : {uint64_t{0}, uint64_t{offset_of(kNorm)}, here - 32, here + 32, here - 1, here + 1, here - 64,
                           here + 4096, here + (kOne << 32), kOne << 63, ~uint64_t{0} - 31, uint64_t{0} - here})
    add.refused("b26_last_offset_" + std::to_string(n), good.patched(field(kLast, "offset"), n));
  add.refused("b26_two_offsets_swapped", [&] {
    std::string bytes = good.patched(field(kMiddle, "offset"), uint64_t{offset_of(kNorm)});
    return bytes.replace(good.at(field(kNorm, "offset")), 8, le<uint64_t>(offset_of(kMiddle)));
  }());
}

void add_tensor_names(const CorpusAdder& add) {
  using namespace std::string_literals;
  const auto named = [&](const std::string& label, const std::string& name, const std::string& expect) {
    add.edit(
        label, [&](GgufWriter& f) { f.tensor(name, DType::F32, {8}, std::string(32, '\0')); }, expect);
  };
  named("b30_name_empty", "", "empty");
  named("b30_name_64_bytes", std::string(64, 'n'), "too long");
  named("b30_name_64_KiB", std::string(65536, 'n'), "too long");
  named("b30_name_with_nul", "output.weight\0"s, "\\x00");
  named("b30_name_invalid_utf8", "w\xff\xfe", "\\xff");
  named("b30_name_terminal_escape", "w\x1b[2J\nok", "\\x1b");
  named("b27_tensor_twice", kLast, kLast);
  named("b27_tensor_twice_norm", kNorm, kNorm);
}

}  // namespace

void add_tensor_mutations(std::vector<MutatedFile>& out) {
  const CorpusAdder add{out};
  add_dims(add);
  add_types(add);
  add_offsets(add);
  add_tensor_names(add);
}

}  // namespace infer::test
