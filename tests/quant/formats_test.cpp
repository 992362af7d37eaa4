// The format table: names, sizes, what it refuses, and rows encoded and decoded through it.
#include "quant/formats.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/catch.h"

using namespace infer;

namespace {

std::vector<float> normal_row(int64_t n, float deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> row(n);
  for (float& x : row) x = normal(random) * deviation;
  return row;
}

std::vector<float> through(DType dtype, const std::vector<float>& row) {
  const int64_t n = static_cast<int64_t>(row.size());
  std::vector<char> bytes(row_bytes(dtype, n) + 1);  // at an odd address
  std::vector<float> back(row.size() + 1, -1.0f);
  REQUIRE(encode_row(dtype, row.data(), bytes.data() + 1, n));
  REQUIRE(decode_row(dtype, bytes.data() + 1, back.data(), n));
  REQUIRE(back.back() == -1.0f);
  back.pop_back();
  return back;
}

constexpr DType kUnknown = static_cast<DType>(1000);

}  // namespace

TEST_CASE("a format is found by number and by name in either case") {
  REQUIRE(find_format(DType::Q4_K));
  CHECK(std::string(find_format(DType::Q4_K)->name) == "Q4_K");
  CHECK(find_format("q4_k") == find_format(DType::Q4_K));
  CHECK(find_format("Q4_K") == find_format(DType::Q4_K));
  CHECK(find_format("q4_K") == find_format(DType::Q4_K));
  CHECK(find_format("bf16") == find_format(DType::BF16));
  CHECK(find_format("mxfp4") == find_format(DType::MXFP4));
  CHECK_FALSE(find_format("q4_k_m"));
  CHECK_FALSE(find_format("q4"));
  CHECK_FALSE(find_format(""));
  CHECK_FALSE(find_format(kUnknown));
  CHECK_FALSE(find_format(static_cast<DType>(static_cast<uint32_t>(DType::kPrivate) - 1)));
}

TEST_CASE("every number GGUF gave out has one name and a size, and the table's formats are decodable") {
  std::set<std::string> names;
  int n_decodable = 0, n_row_decodable = 0;
  for (uint32_t number = 0; number <= 41; ++number) {
    INFO(number);
    const FormatInfo* info = find_format(static_cast<DType>(number));
    REQUIRE(info);
    CHECK(static_cast<uint32_t>(info->id) == number);
    CHECK(info->block > 0);
    CHECK(info->block_bytes > 0);
    CHECK(names.insert(info->name).second);
    CHECK(find_format(std::string_view(info->name)) == info);
    n_decodable += decodable(info->id);
    n_row_decodable += row_decodable(info->id);
  }
  CHECK_FALSE(find_format(static_cast<DType>(42)));
  CHECK(n_decodable == Formats::size - 2);  // all but W4G and W4G128, which no GGUF file has
  CHECK(n_row_decodable == Formats::size - 2 + RowFormats::size);
  CHECK(decodable(DType::IQ4_XS));
  CHECK_FALSE(decodable(DType::I32));
  CHECK_FALSE(decodable(DType::IQ2_XXS));
  CHECK(row_decodable(DType::IQ2_XXS));
  CHECK(row_decodable(DType::Q4_K));
  CHECK_FALSE(row_decodable(DType::Q8_K));
  CHECK_FALSE(row_decodable(kUnknown));
  CHECK_FALSE(decodable(kUnknown));
}

TEST_CASE("visit_format calls once with the format asked for, or not at all") {
  int calls = 0;
  DType seen = kUnknown;
  const auto note = [&]<class F>() {
    ++calls;
    seen = F::id;
  };
  CHECK(visit_format(DType::Q6_K, note));
  CHECK(calls == 1);
  CHECK(seen == DType::Q6_K);
  CHECK_FALSE(visit_format(DType::I8, note));
  CHECK_FALSE(visit_format(kUnknown, note));
  CHECK(calls == 1);
}

TEST_CASE("sizes of rows and tensors are exact, and -1 where there is none") {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  CHECK(row_bytes(DType::F32, 7) == 28);
  CHECK(row_bytes(DType::BF16, 0) == 0);
  CHECK(row_bytes(DType::Q8_0, 4096) == 4352);
  CHECK(row_bytes(DType::Q6_K, 512) == 420);
  CHECK(row_bytes(DType::MXFP4, 64) == 34);
  CHECK(row_bytes(DType::I32, 3) == 12);
  CHECK(row_bytes(DType::Q8_0, 33) == -1);
  CHECK(row_bytes(DType::Q4_K, 128) == -1);
  CHECK(row_bytes(DType::F32, -1) == -1);
  CHECK(row_bytes(kUnknown, 32) == -1);
  CHECK(row_bytes(DType::F32, kMax / 4) == kMax / 4 * 4);
  CHECK(row_bytes(DType::F32, kMax / 4 + 1) == -1);
  CHECK(row_bytes(DType::Q8_0, kMax - 31) == -1);
  CHECK(tensor_bytes(DType::Q4_0, 3, 64) == 108);
  CHECK(tensor_bytes(DType::F32, 0, 5) == 0);
  CHECK(tensor_bytes(DType::F32, kMax, 0) == 0);
  CHECK(tensor_bytes(DType::F16, -1, 4) == -1);
  CHECK(tensor_bytes(DType::F16, int64_t{1} << 32, int64_t{1} << 30) == -1);
  CHECK(tensor_bytes(DType::I8, kMax, 1) == kMax);
  CHECK(tensor_bytes(DType::I8, kMax, 2) == -1);
  CHECK(tensor_bytes(DType::Q4_0, 3, 65) == -1);
}

TEST_CASE("plain rows of any length survive encoding, rounded as their format says") {
  const std::vector<float> row = normal_row(77, 3.0f, 1);
  CHECK(through(DType::F32, row) == row);
  std::vector<float> as_f16, as_bf16;
  for (float x : row) {
    as_f16.push_back(f16_to_f32(f32_to_f16(x)));
    as_bf16.push_back(bf16_to_f32(f32_to_bf16(x)));
  }
  CHECK(through(DType::F16, row) == as_f16);
  CHECK(through(DType::BF16, row) == as_bf16);
}

TEST_CASE("Q8_0 errs by at most half a step of its block") {
  for (float deviation : {1e-30f, 1e-6f, 0.02f, 1.0f, 1e4f}) {
    INFO(deviation);
    const std::vector<float> row = normal_row(4096, deviation, 3);
    const std::vector<float> back = through(DType::Q8_0, row);
    int wrong = 0;
    for (size_t start = 0; start < row.size(); start += 32) {
      double largest = 0;
      for (size_t i = start; i < start + 32; ++i) largest = std::max(largest, std::abs(double{row[i]}));
      // Half a step from rounding the code, and 127 times what rounding the step to f16 moves it.
      const double step = largest / 127;
      const double bound = step * 0.5001 + 127 * std::max(step * 0x1p-11, 0x1p-25);
      for (size_t i = start; i < start + 32; ++i) wrong += !(std::abs(double{back[i]} - row[i]) <= bound);
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("Q8_0 keeps zero and both extremes, and ties go to the even code") {
  std::vector<float> row(32, 0.0f);
  CHECK(through(DType::Q8_0, row) == row);
  row[3] = 127.0f;  // so that a step is 1
  row[4] = -127.0f;
  row[5] = 2.5f;
  row[6] = 3.5f;
  row[7] = -2.5f;
  const std::vector<float> back = through(DType::Q8_0, row);
  CHECK(back[3] == 127.0f);
  CHECK(back[4] == -127.0f);
  CHECK(back[5] == 2.0f);
  CHECK(back[6] == 4.0f);
  CHECK(back[7] == -2.0f);
  CHECK(back[8] == 0.0f);
}

TEST_CASE("Q4_0 errs by half a step, and by a whole one where the other end of the codes is one short") {
  for (float deviation : {1e-6f, 0.02f, 1.0f, 1e4f}) {
    INFO(deviation);
    const std::vector<float> row = normal_row(4096, deviation, 4);
    const std::vector<float> back = through(DType::Q4_0, row);
    int wrong = 0, exact = 0;
    for (size_t start = 0; start < row.size(); start += 32) {
      float largest = 0;
      for (size_t i = start; i < start + 32; ++i)
        if (std::abs(row[i]) > std::abs(largest)) largest = row[i];
      const double step = std::abs(largest) / 8, of_scale = 8 * std::max(step * 0x1p-11, 0x1p-25);
      for (size_t i = start; i < start + 32; ++i) {
        const double error = std::abs(double{back[i]} - row[i]);
        const bool short_end = row[i] * largest < 0 && std::abs(row[i]) > 7.5 * step;
        wrong += !(error <= (short_end ? 1.0001 : 0.5001) * step + of_scale);
        exact += row[i] == largest && error <= of_scale;
      }
    }
    CHECK(wrong == 0);
    CHECK(exact == 4096 / 32);
  }
  CHECK(through(DType::Q4_0, std::vector<float>(32, 0.0f)) == std::vector<float>(32, 0.0f));
}

TEST_CASE("a block with an infinity or a NaN decodes to NaN, its neighbours are untouched") {
  const DType dtype = GENERATE(DType::Q8_0, DType::Q4_0);
  for (float bad : {INFINITY, -INFINITY, NAN, -NAN}) {
    for (int at : {0, 17, 31}) {
      std::vector<float> row(96, 127.0f);
      row[32 + at] = bad;
      const std::vector<float> back = through(dtype, row);
      int wrong = 0;
      for (int i = 0; i < 96; ++i) wrong += i / 32 == 1 ? !std::isnan(back[i]) : back[i] != 127.0f;
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("Q8_0 takes the whole range of floats: too small is zero, too large is not finite") {
  const auto first = [](float size) { return through(DType::Q8_0, std::vector<float>(32, size))[0]; };
  for (float size : {1e-45f, 1e-40f, 1.2e-38f, 1e-36f, 1e-8f}) CHECK(first(size) == 0.0f);
  CHECK(first(8e6f) == Approx(8e6).epsilon(0.001));
  for (float size : {9e6f, 1e30f, std::numeric_limits<float>::max()}) CHECK_FALSE(std::isfinite(first(size)));
}

TEST_CASE("a row that cannot be decoded or encoded is refused and nothing is written") {
  std::vector<float> floats(256, 5.0f);
  std::vector<char> bytes(1024, 'x');
  CHECK_FALSE(decode_row(DType::I32, bytes.data(), floats.data(), 256));
  CHECK_FALSE(decode_row(DType::NVFP4, bytes.data(), floats.data(), 256));
  CHECK_FALSE(decode_row(kUnknown, bytes.data(), floats.data(), 256));
  CHECK_FALSE(decode_row(DType::Q4_K, bytes.data(), floats.data(), 255));
  CHECK_FALSE(decode_row(DType::F32, bytes.data(), floats.data(), -4));
  CHECK(floats == std::vector<float>(256, 5.0f));
  CHECK_FALSE(encode_row(DType::Q4_1, floats.data(), bytes.data(), 256));
  CHECK_FALSE(encode_row(DType::Q4_K, floats.data(), bytes.data(), 256));
  CHECK_FALSE(encode_row(DType::I8, floats.data(), bytes.data(), 256));
  CHECK_FALSE(encode_row(DType::Q8_0, floats.data(), bytes.data(), 31));
  CHECK(bytes == std::vector<char>(1024, 'x'));
  CHECK(decode_row(DType::Q4_K, bytes.data(), floats.data(), 0));
}

TEST_CASE("decode_row_group gives the groups of a row, and the rest of a plain one") {
  const std::vector<float> row = normal_row(40, 1.0f, 5);
  float out[kGroup];
  std::vector<F32::Block> plain(40);
  std::memcpy(plain.data(), row.data(), row.size() * sizeof(float));
  CHECK(decode_row_group<F32>(plain.data(), 0, 40, out) == 32);
  CHECK(out[31] == row[31]);
  CHECK(decode_row_group<F32>(plain.data(), 1, 40, out) == 8);
  CHECK(out[7] == row[39]);

  std::mt19937 random(9);
  std::vector<Q4_K::Block> blocks(2);
  for (Q4_K::Block& block : blocks) {
    for (uint8_t& byte : block.qs) byte = static_cast<uint8_t>(random());
    for (uint8_t& byte : block.scales) byte = static_cast<uint8_t>(random());
    block.d = f32_to_f16(0.01f);
    block.dmin = f32_to_f16(0.1f);
  }
  std::vector<float> want(512);
  REQUIRE(decode_row(DType::Q4_K, blocks.data(), want.data(), 512));
  int wrong = 0;
  for (int group = 0; group < 16; ++group) {
    REQUIRE(decode_row_group<Q4_K>(blocks.data(), group, 512, out) == 32);
    wrong += std::memcmp(out, want.data() + group * kGroup, sizeof out) != 0;
  }
  CHECK(wrong == 0);
}

TEST_CASE("an MXFP4 scale is a power of two, subnormal floats included") {
  MXFP4::Block block{};
  for (uint8_t& byte : block.qs) byte = 0x91;  // codes 1 and 9: 0.5 and -0.5
  int wrong = 0;
  for (int e = 0; e < 256; ++e) {
    block.e = static_cast<uint8_t>(e);
    float out[kGroup];
    MXFP4::decode(block, 0, out);
    wrong += out[0] != std::ldexp(0.5, e - 127) || out[31] != std::ldexp(-0.5, e - 127);
  }
  CHECK(wrong == 0);
}

TEST_CASE("a weight of W8F is its number of 8 bits times the scale of its 128 columns") {
  W8F::Block block{{0.5f, -3.0f}, {}};
  for (int i = 0; i < W8F::block; ++i) block.code[i] = static_cast<uint8_t>(i);
  std::vector<float> row(W8F::block);
  REQUIRE(decode_row(DType::W8F, &block, row.data(), W8F::block));
  for (int i = 0; i < W8F::block; ++i) {
    const float wanted = (i < 128 ? 0.5f : -3.0f) * e4m3_to_f32(static_cast<uint8_t>(i));
    CHECK((row[static_cast<size_t>(i)] == wanted || std::isnan(wanted)));
  }
  CHECK(row[0x38] == 0.5f);        // 1
  CHECK(row[0x38 + 128] == 3.0f);  // -1
  CHECK(find_format("W8F")->block_bytes == 264);
  CHECK(row_bytes(DType::W8F, 512) == 2 * 264);
  CHECK(row_bytes(DType::W8F, 384) == -1);
  CHECK(gpu_decodable(DType::W8F));
  CHECK_FALSE(decodable(DType::W8F));
}

TEST_CASE("W8I is Q8_0 for a GPU, bit for bit") {
  Q8_0::Block block{f32_to_f16(-0.75f), {}};
  for (int i = 0; i < 32; ++i) block.code[i] = static_cast<int8_t>(i * 8 - 128);
  float wanted[32], found[32];
  REQUIRE(decode_row(DType::Q8_0, &block, wanted, 32));
  REQUIRE(decode_row(DType::W8I, &block, found, 32));
  for (int i = 0; i < 32; ++i) CHECK((found[i] == wanted[i] && found[i] == -0.75f * static_cast<float>(i * 8 - 128)));
  CHECK(find_format("W8I")->block_bytes == 34);
  CHECK(gpu_decodable(DType::W8I));
  CHECK_FALSE(decodable(DType::W8I));
}

TEST_CASE("a weight of W4G is its scale times the distance from the zero point, exactly") {
  W4G::Block block{};
  for (int i = 0; i < 16; ++i) block.qs[i] = static_cast<uint8_t>(i | (15 - i) << 4);
  int wrong = 0;
  for (int d = 0; d < 0x7c00; d += 7) {  // every kind of finite f16
    for (int zero = 0; zero <= 16; ++zero) {
      block.d = static_cast<uint16_t>(d | (d % 2 << 15));
      block.zero = f32_to_f16(static_cast<float>(zero));
      float out[kGroup];
      W4G::decode(block, 0, out);
      for (int i = 0; i < kGroup; ++i) {
        const int q = i < 16 ? i : 31 - i;
        wrong += out[i] != f16_to_f32(block.d) * static_cast<float>(q - zero);
      }
    }
  }
  CHECK(wrong == 0);
  CHECK(find_format("W4G")->block_bytes == 20);
}

TEST_CASE("a weight of W4G128 is what W4G makes of its codes with the scale and the zero point of its 128 columns") {
  W4G128::Block block{{f32_to_f16(0.125f), f32_to_f16(-0.0625f)}, {f32_to_f16(3.0f), f32_to_f16(16.0f)}, {}};
  for (int i = 0; i < 128; ++i) block.qs[i] = static_cast<uint8_t>(i * 37 + i / 16);
  std::vector<float> row(W4G128::block);
  REQUIRE(decode_row(DType::W4G128, &block, row.data(), W4G128::block));
  for (int group = 0; group < 8; ++group) {
    W4G::Block same{block.d[group / 4], block.zero[group / 4], {}};
    std::copy_n(block.qs + 16 * group, 16, same.qs);
    float want[kGroup];
    W4G::decode(same, 0, want);
    for (int i = 0; i < kGroup; ++i) {
      INFO("group " << group << ", weight " << i);
      CHECK(row[static_cast<size_t>(group * kGroup + i)] == want[i]);
    }
  }
  CHECK(row[0] == 0.125f * -3);
  CHECK(row[128] == -0.0625f * (block.qs[64] % 16 - 16));
  CHECK(find_format("W4G128")->block_bytes == 136);
  CHECK(row_bytes(DType::W4G128, 512) == 2 * 136);
  CHECK(row_bytes(DType::W4G128, 384) == -1);
  CHECK(decodable(DType::W4G128));
}
