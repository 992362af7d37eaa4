// Which way a product goes by its rows: the built-in numbers are what the kernels were measured with, others replace
// them where device and format match, and what there is no kernel or room for is never chosen. And names of kernels.
#include "kernels/cuda/crossovers.h"
#include "kernels/cuda/kernel_name.h"
#include "quant/formats.h"
#include "tests/catch.h"

using namespace infer;
using namespace infer::cuda;

namespace {

std::vector<DType> all_formats() {
  std::vector<DType> out;
  const auto add = [&]<class... F>(FormatList<F...>) { (out.push_back(F::id), ...); };
  add(Formats{});
  return out;
}

/// What a GPU with everything can do with m rows and weights of this format.
Possible possible(DType format, int64_t m) {
  const bool plain = is_plain(format);
  return {!plain || (format != DType::F32 && m <= kPlainFewMost), true, plain};
}

}  // namespace

TEST_CASE("crossovers: built in, weights go by matvec, few and wide, those of f32 by matvec and cuBLASLt") {
  const CrossoverTable table({}, "NVIDIA H200", true), older({}, "NVIDIA A100", false);
  for (const DType format : all_formats()) {
    INFO(format_name(format));
    for (int64_t m = 1; m <= 300; ++m) {
      const Way way = choose_way(m, Act::automatic, possible(format, m), table.at(format));
      const int64_t most_few = format == DType::F32 ? 0 : is_plain(format) ? 16 : 128;
      REQUIRE(way == (m <= 2 ? Way::matvec : m <= most_few ? Way::few : Way::wide));
      // A plain weight whose shape has no kernel for few rows goes to cuBLASLt from where on it would have one.
      if (is_plain(format))
        REQUIRE(choose_way(m, Act::automatic, {false, true, true}, table.at(format)) ==
                (m <= 2 ? Way::matvec : Way::wide));
    }
    CHECK(table.program_most({format}) == (is_plain(format) && format != DType::F32 ? 2 : 4));
    CHECK(older.program_most({format}) == 4);  // plain weights have no kernel for few rows there
    CHECK(older.at(format).few_least == (is_plain(format) ? 129 : 3));
  }
  CHECK(table.few_least({DType::F32}) == 129);
  CHECK(table.few_least({DType::F32, DType::Q4_K}) == 3);
}

TEST_CASE("crossovers: what there is no kernel or room for is not chosen, whatever the numbers say") {
  const Crossovers always_wide{0, 1, 1}, always_few{0, 1, 129};
  for (const int64_t m : {1, 3, 64, 200}) {
    CHECK(choose_way(m, Act::automatic, {true, true, false}, always_wide) == Way::wide);
    CHECK(choose_way(m, Act::automatic, {true, false, false}, always_wide) == Way::few);
    CHECK(choose_way(m, Act::automatic, {false, true, false}, always_wide) == Way::matvec);  // no tiles
    CHECK(choose_way(m, Act::automatic, {false, false, true}, always_few) == Way::matvec);
    CHECK(choose_way(m, Act::int8, {true, true, false}, always_wide) == Way::matvec);
    for (const Possible& can : {Possible{true, true, false}, {true, false, false}, {false, false, true}})
      for (const Crossovers& c : {always_wide, always_few})
        CHECK(choose_way(m, Act::fp8, can, c) == choose_way(m, Act::automatic, can, c));
    // Activations of 16 bits meet quantised weights in one way only.
    CHECK(choose_way(m, Act::f16, {true, true, false}, always_few) == Way::wide);
    CHECK(choose_way(m, Act::bf16, {true, false, false}, always_few) == Way::matvec);
  }
  CHECK(choose_way(200, Act::automatic, {true, true, false}, always_few) == Way::wide);
}

TEST_CASE("crossovers: those of another device or format change nothing, of several the last counts") {
  const std::vector<FormatCrossovers> rows = {{"NVIDIA H100", DType::Q4_K, {4, 5, 60}},
                                              {"NVIDIA H200", DType::Q4_K, {3, 7, 50}},
                                              {"NVIDIA H200", DType::Q4_K, {1, 8, 40}},
                                              {"", DType::Q6_K, {4, 129, 2}}};
  const CrossoverTable h200(rows, "NVIDIA H200", true), other(rows, "NVIDIA L4", true);
  CHECK(h200.at(DType::Q4_K) == Crossovers{1, 8, 40});
  CHECK(other.at(DType::Q4_K) == built_in_crossovers(DType::Q4_K, true));
  CHECK(h200.at(DType::Q6_K) == Crossovers{4, 129, 2});
  CHECK(other.at(DType::Q6_K) == Crossovers{4, 129, 2});
  CHECK(h200.at(DType::Q8_0) == built_in_crossovers(DType::Q8_0, true));
  const Possible can{true, true, false};
  CHECK(choose_way(7, Act::automatic, can, h200.at(DType::Q4_K)) == Way::matvec);
  CHECK(choose_way(8, Act::automatic, can, h200.at(DType::Q4_K)) == Way::few);
  CHECK(choose_way(40, Act::automatic, can, h200.at(DType::Q4_K)) == Way::wide);
}

TEST_CASE("crossovers: a step is one kernel as far as each of its quantised formats wants it") {
  const CrossoverTable table(
      {{"", DType::Q4_K, {4, 3, 129}}, {"", DType::Q6_K, {3, 3, 129}}, {"", DType::F32, {3, 129, 3}}}, "any", true);
  CHECK(table.program_most({DType::Q4_K}) == 4);
  CHECK(table.program_most({DType::Q4_K, DType::Q6_K}) == 3);
  CHECK(table.program_most({DType::Q4_K, DType::F32}) == 4);  // a plain one among them has no say
  CHECK(table.program_most({DType::F32}) == 3);
  CHECK(table.program_most({DType::Q8_0, DType::Q4_K}) == 4);
  CHECK(table.program_most({DType::Q6_K, DType::Q5_K}) == 3);
}

TEST_CASE("kernel names: as in the source, without what people do not look for") {
  CHECK(short_kernel_name(
            "void infer::cuda::(anonymous namespace)::f_kernel<infer::Q4_K, (int)8, (bool)1>(int, f<int>)") ==
        "f_kernel<Q4_K, 8, 1>");
  CHECK(short_kernel_name("infer::cuda::norm_kernel(float const*, float)") == "norm_kernel");
  CHECK(short_kernel_name("void f<g<int> >(h (*)(int))") == "f<g<int> >");
  CHECK(short_kernel_name("nvjet_tst_128x64") == "nvjet_tst_128x64");
  CHECK(short_kernel_name(std::string(200, 'k')).size() == 60);
  CHECK(short_kernel_name("") == "");
  CHECK(readable_kernel_name("_ZN5infer4cuda11norm_kernelEPKf") == "norm_kernel");
  CHECK(readable_kernel_name("gemm_e4m3") == "gemm_e4m3");
}
