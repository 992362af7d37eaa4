// What a GPU says of itself and what its copies reach: plausible, and free of traces. The figures are nobody's promise.
#include "kernels/cuda/limits.h"
#include "tests/catch.h"
#include "tests/kernels/cuda_side.h"

using namespace infer;
using cuda_test::skipped;

TEST_CASE("cuda: a GPU is told with its place on the bus, and memory only where it is asked for") {
  if (skipped()) return;
  const std::vector<cuda::DeviceFacts> quick = cuda::device_facts(false), full = cuda::device_facts(true);
  REQUIRE_FALSE(full.empty());
  REQUIRE(quick.size() == full.size());
  for (size_t i = 0; i < full.size(); ++i) {
    const cuda::DeviceFacts& f = full[i];
    INFO(f.name);
    CHECK(f.index == static_cast<int>(i));
    CHECK_FALSE(f.name.empty());
    CHECK(f.pci_bus_id.size() == 12);  // 0000:17:00.0
    CHECK(f.n_sms > 0);
    CHECK(f.driver_version >= f.runtime_version / 1000 * 1000);
    CHECK(quick[i].total_bytes == 0);
    if (!f.unusable.empty()) continue;
    CHECK(f.free_bytes > 0);
    CHECK(f.free_bytes <= f.total_bytes);
  }
}

TEST_CASE("cuda: copies are measured in every direction, and give their memory back") {
  if (skipped()) return;
  cuda::copy_speeds(0);  // what the driver keeps after the first is not counted
  const cuda::CopySpeeds s = cuda::copy_speeds(0);
  for (const double gbps :
       {s.pinned_to_device, s.pinned_from_device, s.pageable_to_device, s.pageable_from_device, s.on_device}) {
    CHECK(gbps > 0.1);
    CHECK(gbps < 20000);
  }
  CHECK(s.on_device > s.pinned_to_device);
  // Other programs may take memory meanwhile; what is lost is lost every time.
  const auto gives_back = [] {
    const size_t before = cuda::device_facts(true)[0].free_bytes;
    cuda::copy_speeds(0);
    return cuda::device_facts(true)[0].free_bytes + (size_t{64} << 20) > before;
  };
  CHECK((gives_back() || gives_back() || gives_back() || gives_back()));
}

TEST_CASE("cuda: where there is no GPU there are no facts, and copies are refused with the reason") {
  if (cuda_device_count() > 0) return;
  CHECK(cuda::device_facts(true).empty());
  CHECK_THROWS_AS(cuda::copy_speeds(0), Error);
}
