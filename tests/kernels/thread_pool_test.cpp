// Regions of the thread pool: every chunk once, phases in order, nobody lost whether threads spin or sleep.
#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "tests/catch.h"

using infer::cpu::ThreadPool;

TEST_CASE("every chunk of a region runs exactly once") {
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.n_threads() == threads);
    for (int64_t n : {0, 1, 2, 3, 63, 1000}) {
      std::vector<int> seen(static_cast<size_t>(n), 0);
      std::vector<int> who(static_cast<size_t>(n), -1);
      pool.parallel(n, [&](int64_t chunk, int thread) {
        ++seen[static_cast<size_t>(chunk)];
        who[static_cast<size_t>(chunk)] = thread;
      });
      CHECK(std::accumulate(seen.begin(), seen.end(), 0) == n);
      for (size_t i = 0; i < seen.size(); ++i) {
        REQUIRE(seen[i] == 1);
        REQUIRE((who[i] >= 0 && who[i] < threads));
      }
    }
  }
}

TEST_CASE("a phase sees all that the phases before it wrote") {
  for (int threads : {2, 3}) {
    ThreadPool pool(threads);
    std::vector<int64_t> a(37), b(5);
    int64_t total = 0;
    for (int64_t round = 0; round < 3000; ++round) {
      auto fill = [&](int64_t c, int) { a[static_cast<size_t>(c)] = round + c; };
      auto reduce = [&](int64_t c, int) {
        b[static_cast<size_t>(c)] = std::accumulate(a.begin(), a.end(), int64_t{0}) + c;
      };
      auto finish = [&](int64_t, int) { total = std::accumulate(b.begin(), b.end(), int64_t{0}); };
      pool.run(ThreadPool::phase(37, fill), ThreadPool::phase(0, fill), ThreadPool::phase(5, reduce),
               ThreadPool::phase(1, finish));
      REQUIRE(total == 5 * (37 * round + 37 * 36 / 2) + 10);
    }
    CHECK(pool.n_regions() == 3000);
  }
}

TEST_CASE("more threads than cores lose no region") {
  // Threads are taken off their cores in the middle of everything here, between any two atomic operations of the pool.
  ThreadPool pool(8);
  std::vector<int> marks(16);
  for (int round = 0; round < 20000; ++round) {
    auto mark = [&](int64_t c, int) { marks[static_cast<size_t>(c)] = round; };
    auto check = [&](int64_t c, int) { marks[static_cast<size_t>(c)] += marks[15 - static_cast<size_t>(c)] == round; };
    pool.run(ThreadPool::phase(16, mark), ThreadPool::phase(8, check));
    for (size_t c = 0; c < 8; ++c) REQUIRE(marks[c] == round + 1);
  }
}

TEST_CASE("waiting threads go to sleep and are woken by the next region") {
  ThreadPool pool(2);
  auto nap = [] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); };
  std::atomic<int> runs{0};
  // Both threads nap once per region, the faster claimer waits for the other: far longer than anyone spins. On a busy
  // machine a thread may get its core back only when there is work again, so that it has nothing to sleep for.
  int rounds = 0;
  for (; rounds < 3 || (pool.n_sleeps() < 3 && rounds < 500); ++rounds) {
    nap();
    pool.parallel(2, [&](int64_t chunk, int) {
      if (chunk == 0) nap();
      ++runs;
    });
  }
  CHECK(runs == 2 * rounds);
  CHECK(pool.n_sleeps() >= 3);
}

TEST_CASE("a pool that was never used, and one that sleeps, end cleanly") {
  { ThreadPool pool(4); }
  ThreadPool pool(3);
  pool.parallel(3, [](int64_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

TEST_CASE("the default number of threads is one for a physical core at most") {
  const int n = infer::cpu::default_threads();
  CHECK(n >= 1);
  CHECK(n <= static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
}

TEST_CASE("a region with more chunks than can be counted is refused") {
  ThreadPool pool(2);
  CHECK_THROWS(pool.parallel(ThreadPool::kMaxChunks + 1, [](int64_t, int) {}));
}
