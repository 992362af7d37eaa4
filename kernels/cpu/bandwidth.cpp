// Times the loops of bandwidth_*.cpp on the threads of a pool.
#include "kernels/cpu/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"

namespace infer::cpu {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Repeats `pass` until the time is up, once at least, and returns the least seconds that one took.
template <class Pass>
double best_seconds(double seconds, Pass pass) {
  const Clock::time_point begin = Clock::now();
  double best = 1e30;
  do {
    const Clock::time_point start = Clock::now();
    pass();
    best = std::min(best, seconds_since(start));
  } while (seconds_since(begin) < seconds);
  return best;
}

}  // namespace

const BandwidthTable& bandwidth_table(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return kAvx512Bandwidth;
    case Isa::avx2:
      return kAvx2Bandwidth;
    case Isa::scalar:
      break;
  }
  return kScalarBandwidth;
}

double read_bandwidth_gbps(int n_threads, double seconds) {
  constexpr size_t kChunk = size_t{1} << 20;
  constexpr int64_t kChunks = 512;  // half a gigabyte: beyond the last level cache of any machine we know
  ThreadPool pool(n_threads > 0 ? n_threads : default_threads());
  const auto live = std::make_shared<std::atomic<int64_t>>(0);
  const std::shared_ptr<void> memory = map_memory(kChunks * kChunk, live);
  auto* data = static_cast<uint8_t*>(memory.get());
  // Untouched memory is one page of zeros that fits any cache.
  pool.parallel(kChunks, [&](int64_t c, int) { std::fill_n(data + c * kChunk, kChunk, static_cast<uint8_t>(c)); });
  const BandwidthTable& table = bandwidth_table(best_isa());
  std::atomic<uint64_t> sink{0};
  const double best = best_seconds(
      seconds, [&] { pool.parallel(kChunks, [&](int64_t c, int) { sink += table.read(data + c * kChunk, kChunk); }); });
  return static_cast<double>(kChunks * kChunk) / best * 1e-9;
}

double int8_peak_gops(int n_threads, double seconds) {
  constexpr int64_t kRounds = 20'000;
  ThreadPool pool(n_threads > 0 ? n_threads : default_threads());
  const int64_t chunks = 16 * pool.n_threads();
  const BandwidthTable& table = bandwidth_table(best_isa());
  std::atomic<uint64_t> sink{0};
  const double best = best_seconds(seconds, [&] {
    pool.parallel(chunks, [&](int64_t c, int) { sink += table.multiply(kRounds, static_cast<uint64_t>(c) + 1); });
  });
  return static_cast<double>(chunks * kRounds) * table.operations_per_round / best * 1e-9;
}

}  // namespace infer::cpu
