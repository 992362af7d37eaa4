// Every quantised format against blocks and floats recorded from the published decoders: a few rows from tests/data,
// and all rows where the shared folder is present.
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "quant/formats.h"
#include "tests/catch.h"
#include "tests/quant/recorded.h"

using namespace infer;
using namespace infer::quant_test;

namespace {

nlohmann::json read_index(const std::string& folder) {
  std::ifstream file(folder + "/index.json");
  return file ? nlohmann::json::parse(file) : nlohmann::json();
}

// The recorded types that the tables can decode: all of them but F32, F16, BF16, W4G and W4G128, which no file has.
constexpr int kRecorded = Formats::size + RowFormats::size - 5;

bool same_bits(float a, float b) { return float_bits(a) == float_bits(b) || (std::isnan(a) && std::isnan(b)); }

// The first weight that differs, or -1.
int64_t first_difference(const std::vector<float>& got, const std::vector<float>& want) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (!same_bits(got[i], want[i])) return static_cast<int64_t>(i);
  }
  return -1;
}

// Decodes every type of a golden folder that the table has; returns how many types that were.
int check_folder(const std::string& folder) {
  int checked = 0;
  const nlohmann::json index = read_index(folder);
  for (const auto& [name, entry] : index.at("types").items()) {
    INFO(folder << " " << name);
    const FormatInfo* info = find_format(name);
    REQUIRE(info);
    CHECK(static_cast<int>(info->id) == entry.at("ggml_type").get<int>());
    CHECK(info->block == entry.at("block").get<int64_t>());
    CHECK(info->block_bytes == entry.at("block_bytes").get<int64_t>());
    if (!row_decodable(info->id)) continue;

    const std::vector<char> blocks = read_bytes(folder + "/" + entry.at("blocks").get<std::string>());
    const std::vector<float> want = read_floats(folder + "/" + entry.at("values").get<std::string>());
    REQUIRE(want.size() >= 2560);
    REQUIRE(want.size() == entry.at("n_values").get<size_t>());
    const int64_t n = static_cast<int64_t>(want.size());
    REQUIRE(row_bytes(info->id, n) == static_cast<int64_t>(blocks.size()));
    std::vector<float> got(want.size(), NAN);
    REQUIRE(decode_row(info->id, blocks.data(), got.data(), n));
    CHECK(first_difference(got, want) == -1);

    std::vector<char> shifted(blocks.size() + 1);  // the same bytes at an odd address
    std::memcpy(shifted.data() + 1, blocks.data(), blocks.size());
    std::fill(got.begin(), got.end(), NAN);
    REQUIRE(decode_row(info->id, shifted.data() + 1, got.data(), n));
    CHECK(first_difference(got, want) == -1);
    ++checked;
  }
  return checked;
}

// Takes recorded blocks apart and puts them together again in double; counts what decode and the rules get wrong and
// returns the worst error relative to the size of the terms.
template <QuantFormat F>
double worst_of_unpacking(const std::vector<char>& blocks, const std::vector<float>& want, int& wrong) {
  double worst = 0;
  for (size_t i = 0; i < want.size(); i += kGroup) {
    typename F::Block block;
    std::memcpy(&block, blocks.data() + i / F::block * sizeof block, sizeof block);
    const int group = static_cast<int>(i % F::block) / kGroup;
    Group g;
    float decoded[kGroup];
    F::unpack(block, group, g);
    F::decode(block, group, decoded);
    for (int k = 0; k < kGroup; ++k) {
      const double product = static_cast<double>(g.scale[k / 16]) * g.code[k];
      const double offset = g.offset[k / 16];
      const double size = std::abs(product) + std::abs(offset) + 1e-30;
      worst = std::max(worst, std::abs(product + offset - want[i + k]) / size);
      wrong += !same_bits(decoded[k], want[i + k]);
      wrong += !F::has_offset && offset != 0;
    }
  }
  return worst;
}

}  // namespace

TEST_CASE("every quantised format decodes the recorded blocks bit for bit") {
  CHECK(check_folder(TEST_DATA "/quants") == kRecorded);
}

TEST_CASE("the same over all recorded rows of the shared folder") {
  const std::string folder = SHARED_DATA "/golden/quants";
  if (read_index(folder).is_null()) {
    WARN("skipped: the shared folder is not here");
    return;
  }
  CHECK(check_folder(folder) == kRecorded);
}

TEST_CASE("codes, scales and offsets rebuild the recorded floats") {
  const std::string folder = TEST_DATA "/quants";
  const nlohmann::json index = read_index(folder);
  int checked = 0;
  for (const auto& [name, entry] : index.at("types").items()) {
    const std::vector<char> blocks = read_bytes(folder + "/" + entry.at("blocks").get<std::string>());
    const std::vector<float> want = read_floats(folder + "/" + entry.at("values").get<std::string>());
    INFO(name);
    visit_any_format(find_format(name)->id, [&, &want = want]<class F>() {
      if constexpr (QuantFormat<F>) {
        int wrong = 0;
        CHECK(worst_of_unpacking<F>(blocks, want, wrong) < 1.2e-7);
        CHECK(wrong == 0);
        ++checked;
      }
    });
  }
  CHECK(checked == kRecorded);
}

TEST_CASE("rows of Q8_0 and Q4_0 are written as the published quantiser writes them") {
  const DType dtype = GENERATE(DType::Q8_0, DType::Q4_0);
  const std::vector<float> input = read_floats(SHARED_DATA "/golden/quants/input.f32");
  if (input.empty()) {
    WARN("skipped: the shared folder is not here");
    return;
  }
  const std::vector<char> want =
      read_bytes(std::string(SHARED_DATA "/golden/quants/") + find_format(dtype)->name + ".blocks");
  const int64_t n = static_cast<int64_t>(input.size());
  std::vector<char> got(row_bytes(dtype, n));
  REQUIRE(encode_row(dtype, input.data(), got.data(), n));
  REQUIRE(want.size() > got.size());
  int64_t different = 0;
  for (size_t i = 0; i < got.size(); ++i) different += got[i] != want[i];
  CHECK(different == 0);
}
