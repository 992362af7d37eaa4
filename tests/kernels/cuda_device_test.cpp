// What is decided about a GPU without asking one: which architectures a build runs on, sizes on the device, refusals.
#include "kernels/cuda/architectures.h"
#include "kernels/cuda/cuda_row.h"
#include "kernels/cuda/sizes.h"
#include "tests/catch.h"

using namespace infer;

TEST_CASE("cuda: a build runs on the architectures it was made for") {
  CHECK(cuda::runs_on("90a", 9, 0));
  for (const auto& [major, minor] : {std::pair{8, 0}, {8, 9}, {10, 0}, {12, 0}, {9, 1}}) {
    INFO(major << "." << minor);
    CHECK_FALSE(cuda::runs_on("90a", major, minor));
  }
  CHECK(cuda::runs_on("80", 8, 0));
  CHECK(cuda::runs_on("80", 8, 6));
  CHECK(cuda::runs_on("86", 8, 9));
  CHECK_FALSE(cuda::runs_on("86", 8, 0));
  CHECK_FALSE(cuda::runs_on("80", 9, 0));
  CHECK_FALSE(cuda::runs_on("80", 7, 5));
  CHECK(cuda::runs_on("120a", 12, 0));
  CHECK_FALSE(cuda::runs_on("120a", 12, 1));
  CHECK_FALSE(cuda::runs_on("", 9, 0));
  CHECK_FALSE(cuda::runs_on("9x", 9, 0));
}

TEST_CASE("cuda: a build for several architectures has a form for all newer ones") {
  CHECK(cuda::runs_on("80,86,90a", 8, 0));
  CHECK(cuda::runs_on("80,86,90a", 12, 1));
  CHECK_FALSE(cuda::runs_on("80,86,90a", 7, 5));
}

TEST_CASE("cuda: version numbers are printed as people know them") {
  CHECK(cuda::version_text(13000) == "13.0");
  CHECK(cuda::version_text(12040) == "12.4");
}

TEST_CASE("cuda: weights have their sizes before there is a device") {
  const auto tensor = [](DType dtype, std::initializer_list<int64_t> dims) { return Tensor(nullptr, dtype, dims); };
  CHECK(cuda::packed_bytes(tensor(DType::F16, {100}), WeightRole::vector) == 400);
  CHECK(cuda::packed_bytes(tensor(DType::Q4_0, {10, 64}), WeightRole::embedding) == 10 * 2 * 18);
  CHECK(cuda::packed_bytes(tensor(DType::Q4_0, {16, 64}), WeightRole::matrix) == 16 * 2 * 18);
  CHECK(cuda::packed_bytes(tensor(DType::Q4_0, {1, 64}), WeightRole::matrix) == 16 * 2 * 18);  // whole tiles
  CHECK(cuda::packed_bytes(tensor(DType::BF16, {3, 64}), WeightRole::matrix) == 3 * 128);
}

TEST_CASE("cuda: what has no kernel is named") {
  Needs needs;
  needs.matrix_formats = needs.embedding_formats = {DType::Q4_K, DType::Q6_K};
  needs.head_dim = 128;
  CHECK(cuda::refusal(needs).empty());
  Needs odd = needs;
  odd.head_dim = 72;
  CHECK_THAT(cuda::refusal(odd), Catch::Contains("72"));
  odd = needs;
  odd.matrix_formats.push_back(static_cast<DType>(16));  // IQ2_XXS
  CHECK_THAT(cuda::refusal(odd), Catch::Contains("IQ2_XXS"));
  odd = needs;
  odd.k_type = DType::Q5_1;
  CHECK_THAT(cuda::refusal(odd), Catch::Contains("Q5_1"));
}

TEST_CASE("cuda: a device that cannot be used is refused with the reason, and never by a crash") {
  for (const int index : {-1, 99}) {
    const std::string reason = cuda_unusable_reason(index);
    CHECK_FALSE(reason.empty());
    BackendOptions options;
    options.device_index = index;
    CHECK_THROWS_WITH(make_backend("cuda", options), Catch::Contains("cuda cannot be used: " + reason));
  }
  CHECK(kCudaDevices.count() >= 0);
}

TEST_CASE("every backend knows the names of modes") {
  BackendOptions options;
  options.mode = "warp";
  CHECK_THROWS_WITH(make_backend("ref", options), Catch::Contains("warp") && Catch::Contains("persistent"));
  options.mode = "graph";
  CHECK_NOTHROW(make_backend("ref", options));
}
