// Quantised matrices of Hugging Face folders: every layout, packed here number by number as its definition says, comes
// back bit for bit; what the config or the tensors get wrong is refused by name.
#include "runtime/hf_quant.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "quant/formats.h"
#include "quant/fp8.h"
#include "runtime/hf_quant_tensors.h"
#include "tests/catch.h"
#include "tests/runtime/hf_quant_writer.h"

using namespace infer;
using namespace infer::test;

namespace {

HfQuant quant_of(const std::string& quantization_config) {
  const Json json = parse_json("{\"quantization_config\": " + quantization_config + "}", "config.json");
  return read_quantisation(JsonObject(json, "config.json"), "llama");
}

std::string gptq_json(int bits, int64_t group, bool sym, const std::string& more = {}) {
  return "{\"quant_method\": \"gptq\", \"bits\": " + std::to_string(bits) +
         ", \"group_size\": " + std::to_string(group) + ", \"sym\": " + (sym ? "true" : "false") + more + "}";
}

std::string packed_json(int bits, const std::string& strategy, bool symmetric, const std::string& more = {}) {
  return R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {
    "targets": ["Linear"], "weights": {"num_bits": )" +
         std::to_string(bits) + R"(, "type": "int", "strategy": )" + strategy +
         ", \"symmetric\": " + (symmetric ? "true" : "false") + more + "}}}, \"ignore\": [\"lm_head\"]}";
}
const std::string kGroup32 = R"("group", "group_size": 32)";
const std::string kAwq = R"({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"})";
const std::string kFp8Block = R"({"quant_method": "fp8", "weight_block_size": [16, 32]})";

std::vector<float> decoded(const HostTensor& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.n_elements()));
  REQUIRE(decode_row(tensor.dtype, tensor.data, out.data(), tensor.n_elements()));
  return out;
}

/// Unpacks and compares; returns the format in which the matrix is kept.
DType check(QuantFolder folder, const std::string& config, const Matrix& m, const KeepOptions& keep = {.exact = true}) {
  const HostTensor& tensor = folder.unpack(quant_of(config), keep);
  CHECK(folder.checkpoint.tensors.size() == 1);
  CHECK(tensor.dims == std::vector{m.rows, m.cols});
  CHECK(decoded(tensor) == m.weights());
  const bool plain = find_format(tensor.dtype)->block == 1;
  CHECK(folder.checkpoint.warnings.size() == (plain ? 1 : 0));
  return tensor.dtype;
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::bad_file);
    return e.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("AWQ: nibbles in their order, zero points of every value") {
  for (const int64_t group : {32, 64, 96}) {
    const Matrix m(24, 192, group, 4, false);
    const std::string config = R"({"quant_method": "awq", "bits": 4, "group_size": )" + std::to_string(group) + "}";
    CHECK(check(awq_folder(m), config, m) == DType::W4G);
  }
  const Matrix whole(8, 96, 96, 4, false);
  CHECK(check(awq_folder(whole), R"({"quant_method": "awq", "bits": 4, "group_size": -1})", whole) == DType::W4G);
}

TEST_CASE("GPTQ: symmetric, with zero points of both versions, columns in any order, whole columns") {
  for (const int64_t group : {32, 64, 128}) {
    const Matrix four(24, 256, group, 4, true), eight(24, 256, group, 8, true), zeros(40, 256, group, 4, false),
        eight_zeros(24, 256, group, 8, false), shuffled(24, 256, group, 4, false, true);
    CHECK(check(gptq_folder(four, false), gptq_json(4, group, true), four) == DType::Q4_0);
    CHECK(check(gptq_folder(eight, false), gptq_json(8, group, true), eight) == DType::Q8_0);
    const DType with_zeros = group == 128 ? DType::W4G128 : DType::W4G;
    CHECK(check(gptq_folder(zeros, false), gptq_json(4, group, false), zeros) == with_zeros);
    const std::string v2 = R"(, "checkpoint_format": "gptq_v2")";
    CHECK(check(gptq_folder(zeros, true), gptq_json(4, group, false, v2), zeros) == with_zeros);
    CHECK(check(gptq_folder(eight_zeros, true), gptq_json(8, group, false, v2), eight_zeros) == DType::F32);
    CHECK(check(gptq_folder(shuffled, false), gptq_json(4, group, false, R"(, "desc_act": true)"), shuffled) ==
          DType::F32);
  }
  const Matrix whole(8, 96, 96, 4, true), odd(8, 96, 24, 4, true), narrow(8, 40, 40, 4, true);
  CHECK(check(gptq_folder(whole, false), gptq_json(4, -1, true), whole) == DType::Q4_0);
  CHECK(check(gptq_folder(odd, false), gptq_json(4, 24, true), odd) == DType::F32);
  CHECK(check(gptq_folder(narrow, false), gptq_json(4, -1, true), narrow) == DType::F32);
}

TEST_CASE("128 columns that share a scale and a zero point have one of each, where rows are multiples of 256") {
  const std::string channel = R"("channel")";
  const auto awq_json = [](int64_t group) {
    return R"({"quant_method": "awq", "bits": 4, "group_size": )" + std::to_string(group) + "}";
  };
  const auto group_of = [](int64_t group) { return R"("group", "group_size": )" + std::to_string(group); };
  const KeepOptions gpu{.exact = true, .for_gpu = true};
  for (const int64_t cols : {128, 256, 384, 512, 640, 768, 896, 1280})
    for (const int64_t given : {32, 64, 128, 192, 256, 384, -1}) {
      const int64_t group = given < 0 ? cols : given;
      INFO(cols << " columns, groups of " << given);
      const Matrix zeros(136, cols, group, 4, false), middle(136, cols, group, 4, true), eight(8, cols, group, 8, true);
      const bool wide = cols % 256 == 0 && (group % 128 == 0 || group >= cols);
      const DType with_zeros = wide ? DType::W4G128 : DType::W4G, symmetric = wide ? DType::W4G128 : DType::Q4_0;
      CHECK(check(awq_folder(zeros), awq_json(given), zeros) == with_zeros);
      CHECK(check(gptq_folder(zeros, false), gptq_json(4, given, false), zeros, gpu) == with_zeros);
      CHECK(check(gptq_folder(middle, false), gptq_json(4, given, true), middle, gpu) == symmetric);
      CHECK(check(gptq_folder(middle, false), gptq_json(4, given, true), middle) == DType::Q4_0);  // GGUF has that, too
      const std::string strategy = given < 0 ? channel : group_of(given);
      CHECK(check(packed_folder(zeros, true), packed_json(4, strategy, false), zeros) == with_zeros);
      CHECK(check(packed_folder(middle, false), packed_json(4, strategy, true), middle, gpu) == symmetric);
      CHECK(check(packed_folder(eight, false), packed_json(8, strategy, true), eight, gpu) == DType::Q8_0);
    }
  const Matrix shuffled(24, 512, 128, 4, false, true);
  CHECK(check(gptq_folder(shuffled, false), gptq_json(4, 128, false, R"(, "desc_act": true)"), shuffled, gpu) ==
        DType::F32);
}

TEST_CASE("matrices that are no whole number of tiles come back bit for bit") {
  for (const int64_t rows : {8, 136, 248})
    for (const int64_t cols : {32, 96, 160, 288})
      for (const int64_t given : {32, 64, 128, -1}) {
        const int64_t group = given < 0 ? cols : given;
        INFO(rows << " rows, " << cols << " columns, groups of " << given);
        const Matrix middle(rows, cols, group, 4, true), zeros(rows, cols, group, 4, false),
            eight(rows, cols, group, 8, true), odd(rows - 3, cols, group, 4, false);
        const std::string size = std::to_string(given), json = gptq_json(4, given, false);
        CHECK(check(awq_folder(zeros), R"({"quant_method": "awq", "bits": 4, "group_size": )" + size + "}", zeros) ==
              DType::W4G);
        CHECK(check(gptq_folder(middle, false), gptq_json(4, given, true), middle) == DType::Q4_0);
        CHECK(check(gptq_folder(zeros, false), json, zeros) == DType::W4G);
        CHECK(check(gptq_folder(eight, false), gptq_json(8, given, true), eight) == DType::Q8_0);
        const std::string strategy = given < 0 ? R"("channel")" : R"("group", "group_size": )" + size;
        CHECK(check(packed_folder(odd, true), packed_json(4, strategy, false), odd) == DType::W4G);
        CHECK(check(packed_folder(eight, false), packed_json(8, strategy, true), eight) == DType::Q8_0);
      }
  const Matrix ragged(133, 77, 77, 4, true);  // as plain numbers, the last word of a row in part
  CHECK(check(packed_folder(ragged, false), packed_json(4, R"("channel")", true), ragged) == DType::F32);
}

TEST_CASE("rows are made in any number from any one on") {
  const Matrix zeros(136, 256, 128, 4, false), middle(136, 256, 128, 4, true), eight(136, 288, 32, 8, true),
      odd(131, 77, 77, 4, true);
  QuantFolder floats;
  std::string codes;
  for (int i = 0; i < 24 * 256; ++i) codes.push_back(static_cast<char>(i % 127));
  floats.add("m.weight", DType::F8_E4M3, {24, 256}, codes);
  floats.add("m.weight_scale", DType::F32, {1}, bytes_of(std::vector<float>{0.5f}));
  const std::pair<QuantFolder, std::string> folders[] = {
      {awq_folder(zeros), R"({"quant_method": "awq", "bits": 4, "group_size": 128})"},
      {gptq_folder(middle, false), gptq_json(4, 128, true)},
      {gptq_folder(eight, false), gptq_json(8, 32, true)},
      {packed_folder(zeros, true), packed_json(4, R"("group", "group_size": 128)", false)},
      {packed_folder(odd, false), packed_json(4, R"("channel")", true)},  // plain numbers
      {floats, R"({"quant_method": "fp8"})"}};
  for (const auto& [folder, config] : folders)
    for (const bool for_gpu : {false, true}) {
      INFO(config);
      QuantFolder mine = folder;
      unpack_quantised(mine.checkpoint, quant_of(config), {.n_threads = 2, .keep = {.for_gpu = for_gpu}});
      const HostTensor& tensor = mine.at("m.weight");
      REQUIRE(tensor.make);
      const int64_t rows = tensor.dims[0];
      const size_t row = tensor.bytes / static_cast<size_t>(rows);
      std::vector<std::byte> whole(tensor.bytes), some(tensor.bytes);
      tensor.make(0, rows, whole.data());
      for (const int64_t first : {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{8}, rows / 2 + 3, rows - 1})
        for (const int64_t n : {int64_t{1}, int64_t{5}, int64_t{9}, rows - first}) {
          if (first + n > rows) continue;
          tensor.make(first, n, some.data());
          CHECK(std::memcmp(some.data(), whole.data() + static_cast<size_t>(first) * row,
                            static_cast<size_t>(n) * row) == 0);
        }
    }
}

TEST_CASE("GPTQ: a g_idx that only says what is clear anyway need not be there") {
  const Matrix m(8, 64, 32, 4, true);
  QuantFolder folder = gptq_folder(m, false);
  folder.drop("m.g_idx");
  CHECK(check(folder, gptq_json(4, 32, true), m) == DType::Q4_0);
  CHECK_THAT(refusal([&] { folder.unpack(quant_of(gptq_json(4, 32, true, R"(, "desc_act": true)"))); }),
             Catch::Contains("g_idx"));
}

TEST_CASE("compressed-tensors: packed integers of 4 and 8 bits") {
  const Matrix four(24, 96, 32, 4, true), zeros(20, 96, 32, 4, false), eight(24, 96, 32, 8, true),
      channel(12, 96, 96, 4, true), ragged(12, 45, 45, 4, true);
  CHECK(check(packed_folder(four, false), packed_json(4, kGroup32, true), four) == DType::Q4_0);
  CHECK(check(packed_folder(zeros, true), packed_json(4, kGroup32, false), zeros) == DType::W4G);
  CHECK(check(packed_folder(eight, false), packed_json(8, kGroup32, true), eight) == DType::Q8_0);
  CHECK(check(packed_folder(channel, false), packed_json(4, "\"channel\"", true), channel) == DType::Q4_0);
  CHECK(check(packed_folder(ragged, false), packed_json(4, "\"channel\"", true), ragged) == DType::F32);
  Matrix shuffled(16, 96, 32, 4, false, true);
  QuantFolder folder = packed_folder(shuffled, true);
  folder.add("m.weight_g_idx", DType::I32, {96}, bytes_of(shuffled.group_of));
  CHECK(check(folder, packed_json(4, kGroup32, false, R"(, "actorder": "group")"), shuffled) == DType::F32);
}

TEST_CASE("compressed-tensors: scales that F16 cannot hold are kept exactly") {
  Matrix m(8, 64, 32, 4, true);
  m.scale[3][1] = 0.1f;
  CHECK(check(packed_folder(m, false), packed_json(4, kGroup32, true), m) == DType::F32);
  m.scale[3][1] = 0x1p-40f;
  CHECK(check(packed_folder(m, false), packed_json(4, kGroup32, true), m) == DType::F32);
  QuantFolder folder = packed_folder(m, false);
  CHECK(folder.unpack(quant_of(packed_json(4, kGroup32, true)), false).dtype == DType::Q4_0);  // scales rounded
  CHECK_THAT(folder.checkpoint.warnings.at(0), Catch::Contains("Q4_0 (rounded)"));
  m.scale[3][1] = 70000;  // no F16
  CHECK(packed_folder(m, false).unpack(quant_of(packed_json(4, kGroup32, true)), false).dtype == DType::BF16);
}

TEST_CASE("compressed-tensors: signed bytes with a scale to a row, with and without zero points") {
  for (const bool symmetric : {true, false}) {
    const Matrix m(12, 64, 64, 8, symmetric);
    std::vector<int8_t> codes, zeros;
    for (size_t r = 0; r < m.code.size(); ++r) {
      for (const int code : m.code[r]) codes.push_back(static_cast<int8_t>(code - 128));
      zeros.push_back(static_cast<int8_t>(m.zero[r][0] - 128));
    }
    QuantFolder folder;
    folder.add("m.weight", DType::I8, {12, 64}, bytes_of(codes));
    folder.add("m.weight_scale", DType::F16, {12, 1}, m.halves());
    folder.add("m.input_scale", DType::F32, {1}, std::string(4, '\0'));
    if (!symmetric) folder.add("m.weight_zero_point", DType::I8, {12, 1}, bytes_of(zeros));
    std::string config = packed_json(8, "\"channel\"", symmetric);
    config.replace(config.find("pack-quantized"), 14, "int-quantized");
    CHECK(check(folder, config, m) == (symmetric ? DType::Q8_0 : DType::F32));
  }
}

TEST_CASE("8-bit floats: scales of the matrix, of rows, of blocks with ragged edges") {
  constexpr int64_t kRows = 40, kCols = 72;
  std::mt19937 random(1);
  std::vector<uint8_t> codes;
  for (int64_t i = 0; i < kRows * kCols; ++i)
    codes.push_back(static_cast<uint8_t>(random() % 127 + random() % 2 * 128));
  std::string of_rows = packed_json(8, "\"channel\"", true);
  of_rows.replace(of_rows.find("pack-quantized"), 14, "float-quantized");
  of_rows.replace(of_rows.find("\"int\""), 5, "\"float\"");
  const struct {
    std::string config;
    const char* name;
    int64_t cell_rows, cell_cols;
  } kinds[] = {{R"({"quant_method": "fp8", "activation_scheme": "static"})", "m.weight_scale", kRows, kCols},
               {of_rows, "m.weight_scale", 1, kCols},
               {kFp8Block, "m.weight_scale_inv", 16, 32}};
  for (const bool powers : {false, true}) {
    for (const auto& kind : kinds) {
      const int64_t n_rows = (kRows + kind.cell_rows - 1) / kind.cell_rows,
                    n_cols = (kCols + kind.cell_cols - 1) / kind.cell_cols;
      std::vector<float> scales;
      for (int64_t i = 0; i < n_rows * n_cols; ++i)
        scales.push_back(powers ? std::ldexp(1.0f, -static_cast<int>(random() % 9))
                                : 0.001f * static_cast<float>(i + 1));
      QuantFolder folder;
      folder.add("m.weight", DType::F8_E4M3, {kRows, kCols}, bytes_of(codes));
      folder.add(kind.name, DType::F32, {n_rows, n_cols}, bytes_of(scales));
      folder.add("other.weight", DType::F32, {1}, std::string(4, '\0'));
      const HostTensor& tensor = folder.unpack(quant_of(kind.config));
      CHECK(tensor.dtype == (powers ? DType::BF16 : DType::F32));  // the smallest that is exact
      CHECK(folder.checkpoint.tensors.size() == 2);
      CHECK_THAT(folder.checkpoint.warnings.at(0), Catch::Contains("8-bit floats"));
      const std::vector<float> got = decoded(tensor);
      int wrong = 0;
      for (int64_t r = 0; r < kRows; ++r)
        for (int64_t c = 0; c < kCols; ++c) {
          const float scale = scales[static_cast<size_t>(r / kind.cell_rows * n_cols + c / kind.cell_cols)];
          const auto at = static_cast<size_t>(r * kCols + c);
          wrong += got[at] != e4m3_to_f32(codes[at]) * scale;
        }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("8-bit floats stay what they are for a GPU, where 128 columns share a scale") {
  constexpr int64_t kRows = 9, kCols = 512;
  std::mt19937 random(2);
  std::vector<uint8_t> codes;
  for (int64_t i = 0; i < kRows * kCols; ++i)
    codes.push_back(static_cast<uint8_t>(random() % 127 + random() % 2 * 128));
  const auto folder_of = [&](int64_t cell_rows, int64_t cell_cols, float first) {
    QuantFolder folder;
    folder.add("m.weight", DType::F8_E4M3, {kRows, kCols}, bytes_of(codes));
    std::vector<float> scales{first};
    const int64_t n_rows = (kRows + cell_rows - 1) / cell_rows, n_cols = (kCols + cell_cols - 1) / cell_cols;
    for (int64_t i = 1; i < n_rows * n_cols; ++i) scales.push_back(0.001f * static_cast<float>(i + 1));
    folder.add("m.weight_scale_inv", DType::F32, {n_rows, n_cols}, bytes_of(scales));
    return folder;
  };
  const auto block_json = [](int64_t rows, int64_t cols) {
    return "{\"quant_method\": \"fp8\", \"weight_block_size\": [" + std::to_string(rows) + ", " + std::to_string(cols) +
           "]}";
  };
  for (const int64_t cols : {int64_t{128}, int64_t{256}, int64_t{384}, kCols}) {
    QuantFolder exact = folder_of(4, cols, 0.5f), small = folder_of(4, cols, 0.5f);
    const HfQuant quant = quant_of(block_json(4, cols));
    const std::vector<float> wanted = decoded(exact.unpack(quant));
    const HostTensor& tensor = small.unpack(quant, {.for_gpu = true});
    CHECK(tensor.dtype == DType::W8F);
    CHECK(decoded(tensor) == wanted);
    CHECK(small.checkpoint.warnings.empty());
  }
  const auto reason = [&](QuantFolder folder, const std::string& config) {
    CHECK(folder.unpack(quant_of(config), {.for_gpu = true}).dtype != DType::W8F);
    return folder.checkpoint.warnings.at(0);
  };
  CHECK_THAT(reason(folder_of(4, 64, 0.5f), block_json(4, 64)), Catch::Contains("do not share a scale"));
  CHECK_THAT(reason(folder_of(4, 128, 1000.0f), block_json(4, 128)), Catch::Contains("too large"));
  codes[kCols + 77] = 0xff;
  QuantFolder nan = folder_of(4, 128, 0.5f);
  CHECK_THAT(refusal([&] { nan.unpack(quant_of(block_json(4, 128)), {.for_gpu = true}); }),
             Catch::Contains("folder: m.weight") && Catch::Contains("row 1 is not all numbers"));
}

TEST_CASE("where it need not be exact, what fits no block is rounded to 16 bits, and that is said") {
  for (const float scale : {0.001f, 1000.0f}) {
    std::vector<uint8_t> codes;
    for (int i = 0; i < 64; ++i) codes.push_back(static_cast<uint8_t>(2 * i));
    codes.back() = 125;
    QuantFolder folder;
    folder.add("m.weight", DType::F8_E4M3, {1, 64}, bytes_of(codes));
    folder.add("m.weight_scale", DType::F32, {1}, bytes_of(std::vector<float>{scale}));
    const HostTensor& tensor = folder.unpack(quant_of(R"({"quant_method": "fp8"})"), false);
    const bool small = scale < 1;
    CHECK(tensor.dtype == (small ? DType::F16 : DType::BF16));  // 416000 is no F16
    CHECK_THAT(folder.checkpoint.warnings.at(0), Catch::Contains("(rounded)"));
    const std::vector<float> got = decoded(tensor);
    for (size_t i = 0; i < codes.size(); ++i) {
      const float want = e4m3_to_f32(codes[i]) * scale;
      CHECK(std::fabs(got[i] - want) <= (small ? want * 0x1p-11f + 0x1p-25f : want * 0x1p-8f));
    }
  }
}

TEST_CASE("e4m3 is a sign, four bits of exponent and three of fraction") {
  for (int i = 0; i < 256; ++i) {
    const int exponent = i >> 3 & 15, fraction = i & 7;
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
    const float got = e4m3_to_f32(static_cast<uint8_t>(i));
    if ((i & 127) == 127)
      CHECK(std::isnan(got));
    else
      CHECK(got == static_cast<float>(i & 128 ? -magnitude : magnitude));
    CHECK(std::signbit(got) == (i >= 128));
  }
}

TEST_CASE("methods, versions, strategies and bits that are not known are refused by name") {
  const std::pair<std::string, const char*> configs[] = {
      {R"({"quant_method": "bitsandbytes", "load_in_4bit": true})", "bitsandbytes"},
      {R"({"bits": 4})", "quant_method"},
      {R"({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"})", "gemv"},
      {R"({"quant_method": "awq", "bits": 8, "group_size": 128})", "bits"},
      {R"({"quant_method": "awq", "bits": 4})", "group_size"},
      {R"({"quant_method": "awq", "bits": 4, "group_size": 0})", "group_size"},
      {R"({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": false})", "zero_point"},
      {R"({"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": [3]})",
       "modules_to_not_convert"},
      {gptq_json(3, 128, true), "bits"},
      {gptq_json(4, -2, true), "group_size"},
      {gptq_json(4, 128, true, R"(, "checkpoint_format": "marlin")"), "marlin"},
      {gptq_json(4, 128, true, R"(, "is_marlin_format": true)"), "is_marlin_format"},
      {gptq_json(4, 128, true, R"(, "dynamic": {"+:lm_head": {"bits": 8}})"), "dynamic"},
      {gptq_json(4, 128, true, R"(, "desc_act": 1)"), "desc_act"},
      {R"({"quant_method": "fp8", "fmt": "e5m2"})", "e5m2"},
      {R"({"quant_method": "fp8", "weight_block_size": [128]})", "weight_block_size"},
      {R"({"quant_method": "fp8", "weight_block_size": [0, 128]})", "weight_block_size"},
      {R"({"quant_method": "fp8", "activation_scheme": "guess"})", "guess"},
      {R"({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"a": {}}})",
       "nvfp4-pack-quantized"},
      {R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"a": {}, "b": {}}})",
       "2 groups"},
      {R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"a": {}}})", "weights"},
      {R"({"quant_method": "compressed-tensors", "format": "pack-quantized"})", "config_groups"},
      {packed_json(3, kGroup32, true), "num_bits"},
      {packed_json(4, R"("tensor_group")", true), "tensor_group"},
      {packed_json(4, R"("group")", true), "group_size"},
      {packed_json(4, kGroup32, true, R"(, "dynamic": true)"), "dynamic"},
      {packed_json(4, kGroup32, true, R"(, "actorder": "random")"), "random"},
  };
  for (const auto& [config, name] : configs) {
    INFO(config);
    const std::string message = refusal([&, &text = config] { quant_of(text); });
    CHECK_THAT(message, Catch::Contains(name));
    CHECK_THAT(message, Catch::StartsWith("config.json: quantization_config"));
  }
}

TEST_CASE("quantize_config.json may stand alone, and may not contradict config.json") {
  const auto with = [](const HfQuant& quant, const std::string& text) {
    const Json json = parse_json(text, "quantize_config.json");
    return with_quantize_config(quant, JsonObject(json, "quantize_config.json"));
  };
  const HfQuant quant = quant_of(gptq_json(4, 32, true));
  CHECK(with({}, R"({"bits": 4, "group_size": 32, "sym": true})") == quant);
  CHECK(with(quant, R"({"bits": 4, "group_size": 32, "sym": true, "desc_act": false})") == quant);
  for (const char* other :
       {R"({"bits": 8, "group_size": 32, "sym": true})", R"({"bits": 4, "group_size": 64, "sym": true})",
        R"({"bits": 4, "group_size": 32})", R"({"bits": 4, "group_size": 32, "sym": true, "desc_act": true})",
        R"({"bits": 4, "group_size": 32, "sym": true, "checkpoint_format": "gptq_v2"})"})
    CHECK_THAT(refusal([&] { with(quant, other); }), Catch::StartsWith("quantize_config.json"));
}

TEST_CASE("tensors that are missing, or of another shape or type than the others, are refused by name") {
  const Matrix m(16, 64, 32, 4, false);
  std::vector<uint8_t> codes(32 * 64);
  QuantFolder blocks;
  blocks.add("m.weight", DType::F8_E4M3, {32, 64}, bytes_of(codes));
  blocks.add("m.weight_scale_inv", DType::F32, {2, 2}, bytes_of(std::vector<float>(4, 1.0f)));
  const std::pair<QuantFolder, std::string> folders[] = {{awq_folder(m), kAwq},
                                                         {gptq_folder(m, false), gptq_json(4, 32, false)},
                                                         {packed_folder(m, true), packed_json(4, kGroup32, false)},
                                                         {blocks, kFp8Block}};
  for (const auto& [good, config] : folders) {
    const HfQuant quant = quant_of(config);
    CHECK(QuantFolder(good).unpack(quant).dims.size() == 2);
    for (const HostTensor& tensor : good.checkpoint.tensors) {
      INFO(tensor.name);
      const auto spoiled = [&, &original = good](const std::function<void(QuantFolder&)>& spoil) {
        QuantFolder folder = original;
        spoil(folder);
        return refusal([&] { folder.unpack(quant); });
      };
      const std::string name = tensor.name;
      if (name != "m.g_idx") CHECK_THAT(spoiled([&](QuantFolder& f) { f.drop(name); }), Catch::Contains("m"));
      CHECK_THAT(spoiled([&](QuantFolder& f) { f.at(name).dims.push_back(1), f.at(name).dims.push_back(1); }),
                 Catch::Contains("m."));
      CHECK_THAT(spoiled([&](QuantFolder& f) { f.at(name).dims.back() += 1; }), Catch::Contains("m."));
      CHECK_THAT(spoiled([&](QuantFolder& f) { f.at(name).dims[0] *= 2; }), Catch::Contains("m."));
      CHECK_THAT(spoiled([&](QuantFolder& f) { f.at(name).dtype = DType::U8; }), Catch::Contains("m"));
    }
  }
}

TEST_CASE("contents that contradict the config are refused") {
  const Matrix m(16, 64, 32, 4, false);
  QuantFolder folder = gptq_folder(m, false);
  CHECK_THAT(refusal([&] { folder.unpack(quant_of(gptq_json(4, 32, true))); }), Catch::Contains("symmetric"));
  for (const int group : {2, -1, std::numeric_limits<int>::max()}) {
    Matrix wrong = m;
    wrong.group_of[7] = group;
    CHECK_THAT(refusal([&] { gptq_folder(wrong, false).unpack(quant_of(gptq_json(4, 32, false))); }),
               Catch::Contains("no such group"));
  }
  Matrix infinite = m;
  infinite.scale[1][1] = std::numeric_limits<float>::infinity();
  CHECK_THAT(refusal([&] { awq_folder(infinite).unpack(quant_of(kAwq)); }), Catch::Contains("not finite"));
  QuantFolder none;
  none.add("m.weight", DType::F32, {1}, std::string(4, '\0'));
  CHECK_THAT(refusal([&] { none.unpack(quant_of(kAwq)); }), Catch::Contains("no tensor is quantised that way"));
  QuantFolder shape = packed_folder(m, true);
  for (const std::vector<int64_t>& sizes : std::vector<std::vector<int64_t>>{
           {16, 65}, {17, 64}, {16, 0}, {-16, 64}, {16, std::numeric_limits<int64_t>::max()}}) {
    QuantFolder wrong = packed_folder(m, true);
    const std::string bytes = bytes_of(sizes);
    wrong.at("m.weight_shape").data = reinterpret_cast<const std::byte*>(bytes.data());
    CHECK_THAT(refusal([&] { wrong.unpack(quant_of(packed_json(4, kGroup32, false))); }),
               Catch::Contains("does not fit weight_packed"));
  }
}
