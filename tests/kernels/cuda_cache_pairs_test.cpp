// Which pairs of types of a KV cache the GPU has kernels for, and what is said of the others. Pure facts, so this runs
// without a GPU.
#include "kernels/cuda/cache_pairs.h"

#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/sizes.h"
#include "tests/catch.h"

using namespace infer;

namespace {

const std::vector<DType> kTypes = {DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0};

std::string note_of(DType k, DType v) {
  const DeviceRow* cuda = find_backend("cuda").devices;
  REQUIRE(cuda);
  Needs needs;
  needs.k_type = k, needs.v_type = v;
  return cuda->slow_cache(needs);
}

bool offers(DType k, DType v, const std::string& flags) {
  INFO(note_of(k, v));
  return note_of(k, v).find("; " + flags + " has one") != std::string::npos;
}

}  // namespace

TEST_CASE("cache pairs: a pair is told to be slow if and only if tensor cores have no kernel for it") {
  int n_slow = 0;
  for (const DType k : kTypes) {
    for (const DType v : kTypes) {
      INFO(format_name(k) << " and " << format_name(v));
      REQUIRE(is_kv_format(k));
      CHECK(note_of(k, v).empty() == cuda::find_cache_pair(k, v).tensor_cores);
      n_slow += !note_of(k, v).empty();
    }
  }
  CHECK(n_slow == 25 - 8);
  CHECK(note_of(DType::F16, DType::F16).empty());
  CHECK(note_of(Needs().k_type, Needs().v_type).empty());
}

TEST_CASE("cache pairs: the note names the pair, and one instead that is quick and takes no less care") {
  for (const DType k : kTypes) {
    for (const DType v : kTypes) {
      if (note_of(k, v).empty()) continue;
      INFO(format_name(k) << " and " << format_name(v));
      const cuda::CachePairRow other = cuda::nearest_cache_pair(k, v);
      CHECK(other.tensor_cores);
      CHECK(note_of(other.k, other.v).empty());
      CHECK((row_bytes(other.k, 32) >= row_bytes(k, 32) || other.k == DType::F16));
      CHECK((row_bytes(other.v, 32) >= row_bytes(v, 32) || other.v == DType::F16));
      CHECK(note_of(k, v).find('\n') == std::string::npos);
    }
  }
  CHECK(note_of(DType::Q4_0, DType::F16).rfind("-ctk q4_0 -ctv f16 has no tensor-core kernel", 0) == 0);
  CHECK(offers(DType::Q4_0, DType::F16, "-ctk q8_0 -ctv f16"));
  CHECK(offers(DType::Q4_0, DType::Q8_0, "-ctk q8_0 -ctv q8_0"));
  CHECK(offers(DType::F32, DType::F32, "-ctk f16 -ctv f16"));
  CHECK(offers(DType::BF16, DType::Q8_0, "-ctk f16 -ctv q8_0"));
  CHECK(offers(DType::F32, DType::Q4_0, "-ctk f16 -ctv q4_0"));
}

TEST_CASE("cache pairs: what the persistent kernel has stands in the table once") {
  for (const cuda::CachePairRow& row : cuda::kCachePairs) {
    int n = 0;
    for (const cuda::CachePairRow& other : cuda::kCachePairs) n += other.k == row.k && other.v == row.v;
    CHECK(n == 1);
    CHECK((row.tensor_cores || row.persistent));  // a row that says nothing is no row
  }
  CHECK(cuda::find_cache_pair(DType::Q8_0, DType::Q4_0).persistent);
  CHECK_FALSE(cuda::find_cache_pair(DType::Q8_0, DType::F16).persistent);
  CHECK_FALSE(cuda::find_cache_pair(DType::Q4_0, DType::F32).persistent);
}
