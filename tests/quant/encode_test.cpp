// The encoders: errors beside those of ggml's quantisers on the same weights, blocks at the edges, refusals, and the
// same bytes from every level of the CPU.
#include "quant/encode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "quant/formats.h"
#include "tests/catch.h"
#include "tests/quant/recorded.h"

using namespace infer;
using namespace infer::quant_test;

namespace {

constexpr int64_t kRow = 256;

// NMSE of ggml 0.25.3 (ggml_quantize_chunk) on the weights below: normal, heavy-tailed, and both again with
// importances.
struct Recorded {
  DType dtype;
  double nmse[4];
};
constexpr Recorded kGgml[] = {
    {DType::Q4_0, {7.3728e-03, 1.3429e-02, 5.4183e-03, 1.0955e-02}},
    {DType::Q4_1, {6.1124e-03, 8.8834e-03, 3.3158e-03, 5.1415e-03}},
    {DType::Q5_0, {1.8222e-03, 3.3974e-03, 1.3398e-03, 2.8419e-03}},
    {DType::Q5_1, {1.4273e-03, 2.0728e-03, 7.8656e-04, 1.2195e-03}},
    {DType::Q8_0, {2.8638e-05, 5.3454e-05, 2.8416e-05, 5.6002e-05}},
    {DType::Q2_K, {8.8001e-02, 1.1919e-01, 4.3926e-02, 6.1079e-02}},
    {DType::Q3_K, {2.2515e-02, 3.4009e-02, 1.5595e-02, 2.5447e-02}},
    {DType::Q4_K, {5.0663e-03, 7.5948e-03, 3.4416e-03, 5.4959e-03}},
    {DType::Q5_K, {1.3007e-03, 1.9368e-03, 9.2404e-04, 1.5319e-03}},
    {DType::Q6_K, {3.1605e-04, 5.1614e-04, 2.2562e-04, 4.1108e-04}},
    {DType::IQ4_NL, {5.7621e-03, 8.7611e-03, 4.3230e-03, 6.9253e-03}},
    {DType::IQ4_XS, {5.8506e-03, 8.9400e-03, 4.4283e-03, 7.1919e-03}},
    {DType::MXFP4, {1.3041e-02, 1.7159e-02, 1.2910e-02, 1.6906e-02}},
    {DType::TQ1_0, {6.4949e-01, 7.1051e-01, 6.5076e-01, 7.2735e-01}},
    {DType::TQ2_0, {6.4949e-01, 7.1051e-01, 6.5076e-01, 7.2735e-01}},
};

// The same numbers on every machine, and easily made in other languages: splitmix64, then Box-Muller.
double uniform(uint64_t index, uint64_t seed) {
  uint64_t z = (index + 1) * 0x9E3779B97F4A7C15u + seed;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return (static_cast<double>(z >> 11) + 0.5) / 9007199254740992.0;
}

double normal(uint64_t index, uint64_t seed) {
  return std::sqrt(-2 * std::log(uniform(2 * index, seed))) * std::cos(2 * M_PI * uniform(2 * index + 1, seed));
}

std::vector<float> normal_weights(size_t n) {
  std::vector<float> out(n);
  for (size_t i = 0; i < n; ++i) out[i] = static_cast<float>(normal(i, 1));
  return out;
}

// Student's t with four degrees of freedom.
std::vector<float> heavy_weights(size_t n) {
  std::vector<float> out(n);
  for (size_t i = 0; i < n; ++i) {
    double squares = 0;
    for (uint64_t k = 1; k < 5; ++k) squares += normal(5 * i + k, 2) * normal(5 * i + k, 2) / 4;
    out[i] = static_cast<float>(normal(5 * i, 2) / std::sqrt(squares) * 0.02);
  }
  return out;
}

std::vector<float> importances() {
  std::vector<float> out(kRow);
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(std::exp(1.5 * normal(i, 3)));
  return out;
}

// Rows of 256 through the encoder and back.
std::vector<float> through(DType dtype, const std::vector<float>& weights, const float* importance = nullptr) {
  std::vector<float> back(weights.size(), NAN);
  std::vector<char> bytes(static_cast<size_t>(row_bytes(dtype, kRow)) + 1);  // at an odd address
  for (size_t i = 0; i < weights.size(); i += kRow) {
    const Encoded done = encode_weights(dtype, weights.data() + i, importance, bytes.data() + 1, kRow);
    REQUIRE(done.fault == Encoded::none);
    REQUIRE(done.at == kRow);
    REQUIRE(decode_row(dtype, bytes.data() + 1, back.data() + i, kRow));
  }
  return back;
}

double squares(const std::vector<float>& got, const std::vector<float>& want, const float* importance = nullptr) {
  double out = 0;
  for (size_t i = 0; i < want.size(); ++i)
    out += (importance ? importance[i % kRow] : 1.0) * std::pow(static_cast<double>(got[i]) - want[i], 2);
  return out;
}

double nmse(const std::vector<float>& got, const std::vector<float>& want, const float* importance = nullptr) {
  return squares(got, want, importance) / squares(std::vector<float>(want.size()), want, importance);
}

std::vector<float> filled(float value) { return std::vector<float>(kRow, value); }

}  // namespace

TEST_CASE("every format of files and the ternary ones can be written, the codebook ones not") {
  int n = 0;
  for (uint32_t number = 0; number < 64; ++number) n += encodable(static_cast<DType>(number));
  CHECK(n == Formats::size - 2 + 2);  // all but W4G and W4G128
  CHECK(encodable(DType::TQ1_0));
  CHECK_FALSE(encodable(DType::IQ2_XS));
  CHECK_FALSE(encodable(DType::Q8_K));
  CHECK_FALSE(encodable(DType::W4G));
  CHECK_FALSE(encodable(DType::W4G128));
}

TEST_CASE("weights are written with no more error than ggml's quantisers make") {
  const std::vector<float> weights[] = {normal_weights(256 * kRow), heavy_weights(256 * kRow)};
  const std::vector<float> importance = importances();
  for (const Recorded& recorded : kGgml) {
    for (int kind = 0; kind < 4; ++kind) {
      const float* by = kind < 2 ? nullptr : importance.data();
      const double got = nmse(through(recorded.dtype, weights[kind % 2], by), weights[kind % 2], by);
      INFO(find_format(recorded.dtype)->name << ", kind " << kind << ": " << got << ", ggml " << recorded.nmse[kind]);
      CHECK(got <= 1.001 * recorded.nmse[kind]);
    }
  }
}

TEST_CASE("no row of the shared folder is written with more error than ggml's blocks have") {
  const std::string folder = SHARED_DATA "/golden/quants/";
  const std::vector<float> input = read_floats(folder + "input.f32");
  if (input.empty()) {
    WARN("skipped: the shared folder is not here");
    return;
  }
  for (const Recorded& recorded : kGgml) {
    const std::string name = find_format(recorded.dtype)->name;
    std::vector<float> ggml = read_floats(folder + name + ".f32");
    REQUIRE(ggml.size() >= input.size());
    for (size_t i = 0; i < input.size(); i += kRow) {
      INFO(name << ", row " << i / kRow);
      const std::vector<float> row(input.begin() + static_cast<int64_t>(i),
                                   input.begin() + static_cast<int64_t>(i + kRow));
      const std::vector<float> theirs(ggml.begin() + static_cast<int64_t>(i),
                                      ggml.begin() + static_cast<int64_t>(i + kRow));
      const double bound = std::max(1.02 * squares(theirs, row), 1e-6 * squares(filled(0), row));
      CHECK(squares(through(recorded.dtype, row), row) <= bound);
    }
  }
}

TEST_CASE("every level of the CPU writes the same bytes") {
  const std::vector<float> weights = heavy_weights(32 * kRow), importance = importances();
  for (const Recorded& recorded : kGgml) {
    INFO(find_format(recorded.dtype)->name);
    const auto n = static_cast<int64_t>(weights.size());
    std::vector<float> by;
    for (int64_t i = 0; i < n; ++i) by.push_back(importance[static_cast<size_t>(i % kRow)]);
    std::vector<char> want(static_cast<size_t>(row_bytes(recorded.dtype, n)), 'x'), got(want.size(), 'y');
    REQUIRE(encode_weights(EncodeLevel::any, recorded.dtype, weights.data(), by.data(), want.data(), n).at == n);
    for (const EncodeLevel level : {EncodeLevel::avx2, EncodeLevel::avx512}) {
      if (level > encode_level()) continue;
      REQUIRE(encode_weights(level, recorded.dtype, weights.data(), by.data(), got.data(), n).at == n);
      CHECK((got == want));
    }
    REQUIRE(encode_weights(recorded.dtype, weights.data(), by.data(), got.data(), n).at == n);
    CHECK((got == want));
  }
}

TEST_CASE("every level of the CPU reads every f16 as decode_row does, at any address and length") {
  std::vector<char> halves(2 * 65536 + 1);
  for (size_t i = 0; i < 65536; ++i) {
    const auto half = static_cast<uint16_t>(i);
    std::memcpy(halves.data() + 1 + 2 * i, &half, sizeof half);
  }
  std::vector<float> want(65536), got(want.size());
  REQUIRE(decode_row(DType::F16, halves.data() + 1, want.data(), 65536));
  for (const EncodeLevel level : {EncodeLevel::any, EncodeLevel::avx2, EncodeLevel::avx512}) {
    if (level > encode_level()) continue;
    REQUIRE(decode_weights(level, DType::F16, halves.data() + 1, got.data(), 65536));
    CHECK(std::memcmp(got.data(), want.data(), 4 * want.size()) == 0);  // NaNs too
    for (const int64_t n : {0, 1, 15, 16, 17, 47}) {
      std::vector<float> short_row(48, -7.0f);
      REQUIRE(decode_weights(level, DType::F16, halves.data() + 1, short_row.data(), n));
      CHECK(std::memcmp(short_row.data(), want.data(), 4 * static_cast<size_t>(n)) == 0);
      CHECK(short_row[static_cast<size_t>(n)] == -7.0f);
    }
    std::vector<char> blocks(static_cast<size_t>(row_bytes(DType::Q4_0, kRow)));
    const std::vector<float> weights = normal_weights(kRow);
    REQUIRE(encode_weights(DType::Q4_0, weights.data(), nullptr, blocks.data(), kRow).at == kRow);
    std::vector<float> as_row(kRow), as_weights(kRow);
    REQUIRE(decode_row(DType::Q4_0, blocks.data(), as_row.data(), kRow));
    REQUIRE(decode_weights(level, DType::Q4_0, blocks.data(), as_weights.data(), kRow));
    CHECK(as_row == as_weights);
    CHECK_FALSE(decode_weights(level, DType::F16, halves.data(), got.data(), -1));
    CHECK_FALSE(decode_weights(level, DType::I32, halves.data(), got.data(), 16));
  }
}

TEST_CASE("a block gets the same bytes alone and among others, whatever they are") {
  std::vector<float> weights = heavy_weights(16 * kRow);
  for (size_t i = 0; i < weights.size(); ++i) {
    const size_t block = i / 32, at = i % 32;
    if (block % 9 == 1) weights[i] = block % 2 ? 0.0f : -0.0f;
    if (block % 9 == 3) weights[i] = block % 2 ? 0.7f : -3.0f;
    if (block % 9 == 4) weights[i] = at == block % 32 ? -5.0f : 0.0f;
    if (block % 9 == 6) weights[i] *= block % 2 ? 1e-42f : 1e4f;
    if (block % 9 == 7) weights[i] = block % 2 ? std::abs(weights[i]) : static_cast<float>(at % 2) - 0.5f;
  }
  for (const EncodeLevel level : {EncodeLevel::any, EncodeLevel::avx2, EncodeLevel::avx512}) {
    if (level > encode_level()) continue;
    for (const Recorded& recorded : kGgml) {
      INFO(find_format(recorded.dtype)->name);
      const int64_t block = std::max<int64_t>(32, find_format(recorded.dtype)->block);
      const int64_t n = static_cast<int64_t>(weights.size()) - (block == 32 ? 3 * 32 : 0);
      std::vector<char> together(static_cast<size_t>(row_bytes(recorded.dtype, n))), alone(together.size());
      REQUIRE(encode_weights(level, recorded.dtype, weights.data(), nullptr, together.data(), n).at == n);
      for (int64_t i = 0; i < n; i += block)
        encode_weights(level, recorded.dtype, weights.data() + i, nullptr, alone.data() + row_bytes(recorded.dtype, i),
                       block);
      CHECK((together == alone));
      // The place of a fault is told among others, too.
      std::vector<float> bad = weights;
      bad[24 * 32 + 5] = NAN;
      CHECK(encode_weights(level, recorded.dtype, bad.data(), nullptr, together.data(), n).at == 24 * 32 + 5);
    }
  }
}

TEST_CASE("zeros stay zeros, and what is too small for a scale becomes zero") {
  std::vector<float> tiny = filled(0);
  for (size_t i = 0; i < tiny.size(); ++i) tiny[i] = std::ldexp(static_cast<float>(i) - 128, -149);
  for (const Recorded& recorded : kGgml) {
    INFO(find_format(recorded.dtype)->name);
    for (const float value : {0.0f, -0.0f}) CHECK(squares(through(recorded.dtype, filled(value)), filled(0)) == 0);
    CHECK(squares(through(recorded.dtype, tiny), filled(0)) == 0);
  }
}

TEST_CASE("constants, single weights and outliers survive") {
  std::vector<float> single = filled(0), outlier = normal_weights(kRow);
  single[77] = -3.5f;
  outlier[200] = 1000;
  for (const Recorded& recorded : kGgml) {
    INFO(find_format(recorded.dtype)->name);
    // MXFP4's scales are powers of two, and the levels of the IQ4 formats do not include zero.
    const bool uneven = recorded.dtype == DType::IQ4_NL || recorded.dtype == DType::IQ4_XS;
    const double step = recorded.dtype == DType::MXFP4 || uneven ? 0.03 : 1e-5;
    for (const float value : {0.75f, -3.0f, 0.05f, 3e4f})
      CHECK(nmse(through(recorded.dtype, filled(value)), filled(value)) <= step);
    CHECK(nmse(through(recorded.dtype, single), single) <= step);
    const std::vector<float> back = through(recorded.dtype, outlier);
    CHECK(back[200] == Approx(1000).epsilon(0.2));
    CHECK(nmse(back, outlier) <= 0.05);
  }
}

TEST_CASE("weights that are ternary already are only rounded in their scale") {
  std::vector<float> weights = filled(0);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = 0.375f * static_cast<float>(static_cast<int>(i * 7 % 3) - 1);
  CHECK(through(DType::TQ1_0, weights) == weights);
  CHECK(through(DType::TQ2_0, weights) == weights);
}

TEST_CASE("importances move the error to where it matters least, and only their proportions count") {
  const std::vector<float> weights = normal_weights(16 * kRow);
  std::vector<float> importance = filled(0.01f), scaled = filled(0.01f * 0x1p-60f);
  for (size_t i = 0; i < importance.size(); i += 4) importance[i] = 1, scaled[i] = 0x1p-60f;
  const std::vector<float> none = filled(0);
  for (const DType dtype :
       {DType::Q4_0, DType::Q4_1, DType::Q2_K, DType::Q3_K, DType::Q4_K, DType::Q6_K, DType::IQ4_XS}) {
    INFO(find_format(dtype)->name);
    const std::vector<float> plain = through(dtype, weights), weighted = through(dtype, weights, importance.data());
    CHECK(nmse(weighted, weights, importance.data()) < 0.97 * nmse(plain, weights, importance.data()));
    CHECK((through(dtype, weights, scaled.data()) == weighted));
    CHECK((through(dtype, weights, none.data()) == plain));
  }
}

TEST_CASE("an infinity or a NaN is refused with its place, a weight too large with its block's") {
  std::vector<char> bytes(2048);
  for (const Recorded& recorded : kGgml) {
    const FormatInfo& format = *find_format(recorded.dtype);
    INFO(format.name);
    for (const float bad : {INFINITY, -INFINITY, NAN, -NAN}) {
      std::vector<float> weights = normal_weights(kRow);
      weights[201] = bad;
      const Encoded done = encode_weights(recorded.dtype, weights.data(), nullptr, bytes.data(), kRow);
      CHECK(done.fault == Encoded::not_finite);
      CHECK(done.at == 201);
    }
    for (const float large : {1e30f, -std::numeric_limits<float>::max()}) {
      std::vector<float> weights = normal_weights(kRow);
      weights[201] = large;
      const Encoded done = encode_weights(recorded.dtype, weights.data(), nullptr, bytes.data(), kRow);
      const bool powers_of_two = recorded.dtype == DType::MXFP4;
      CHECK(done.fault == (powers_of_two ? Encoded::none : Encoded::too_large));
      CHECK(done.at == (powers_of_two ? kRow : 201 / format.block * format.block));
    }
  }
}

TEST_CASE("plain formats and Q8_0 are written as encode_row writes them; nonsense is refused") {
  const std::vector<float> weights = normal_weights(kRow);
  for (const DType dtype : {DType::F32, DType::F16, DType::BF16, DType::Q8_0}) {
    std::vector<char> want(1024), got(1024);
    REQUIRE(encode_row(dtype, weights.data(), want.data(), kRow));
    REQUIRE(encode_weights(dtype, weights.data(), nullptr, got.data(), kRow).fault == Encoded::none);
    CHECK((got == want));
  }
  std::vector<char> bytes(2048, 'x');
  CHECK(encode_weights(DType::IQ1_S, weights.data(), nullptr, bytes.data(), kRow).fault == Encoded::unknown);
  CHECK(encode_weights(DType::I32, weights.data(), nullptr, bytes.data(), kRow).fault == Encoded::unknown);
  CHECK(encode_weights(DType::Q4_K, weights.data(), nullptr, bytes.data(), 255).fault == Encoded::unknown);
  CHECK(encode_weights(DType::Q4_0, weights.data(), nullptr, bytes.data(), -32).fault == Encoded::unknown);
  CHECK(bytes == std::vector<char>(2048, 'x'));
}
