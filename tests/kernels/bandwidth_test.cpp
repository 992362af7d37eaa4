// The machine's limits: measured numbers are plausible, and the timed loops do what they are said to do.
#include <vector>

#include "kernels/cpu/bandwidth.h"
#include "kernels/cpu/memory.h"
#include "tests/catch.h"

using namespace infer;

TEST_CASE("the read loops look at every byte") {
  const auto live = std::make_shared<std::atomic<int64_t>>(0);
  const auto memory = cpu::map_memory(4096, live);
  auto* data = static_cast<uint8_t*>(memory.get());
  for (cpu::Isa isa : {cpu::Isa::scalar, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (!cpu::isa_available(isa)) continue;
    const auto read = cpu::bandwidth_table(isa).read;
    CHECK(read(data, 4096) == 0);
    for (size_t at : {0, 1, 63, 64, 500, 2047, 4095}) {
      data[at] = 1;
      CHECK(read(data, 4096) != 0);
      data[at] = 0;
    }
  }
}

TEST_CASE("bandwidth and int8 peak are measured in plausible numbers") {
  const double bandwidth = cpu::read_bandwidth_gbps(2, 0.05);
  CHECK(bandwidth > 0.2);
  CHECK(bandwidth < 5000);
  const double one = cpu::int8_peak_gops(1, 0.05);
  CHECK(one > 0.1);
  CHECK(one < 1e5);
}
