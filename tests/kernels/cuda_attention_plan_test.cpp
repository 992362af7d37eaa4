// How decoding deals out the positions of a sequence: every position once, in order, in pieces worth a block's while.
// Pure integers, so this runs without a GPU.
#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/divisor.h"
#include "tests/catch.h"

using namespace infer::cuda;

namespace {

/// Empty when the plan is sound, else what is wrong with it.
const char* fault(int kv_len, int64_t window, int max_splits) {
  const SplitPlan plan = plan_splits(kv_len, window, max_splits);
  const int first = window > 0 && window < kv_len ? kv_len - static_cast<int>(window) : 0;
  if (plan.n_splits < 1 || plan.n_splits > std::max(1, max_splits)) return "number of splits";
  if (plan.begin(0) != first) return "does not start at the first visible position";
  if (plan.end_of(plan.n_splits - 1) != kv_len) return "the last split lacks the newest position";
  for (int i = 0; i < plan.n_splits; ++i) {
    if (plan.end_of(i) <= plan.begin(i)) return "empty split";
    if (i > 0 && plan.begin(i) != plan.end_of(i - 1)) return "gap or overlap";
    if (i > 0 && plan.begin(i) % kSplitUnit != 0) return "cut inside a page";
    if (plan.n_splits > 1 && plan.end_of(i) - plan.begin(i) < kMinSplit) return "split too short";
  }
  return "";
}

}  // namespace

TEST_CASE("splits cover the visible positions once and the last one holds the newest") {
  for (const int max_splits : {1, 2, 3, 7, 16, 132}) {
    for (const int64_t window : {0, 1, 31, 32, 33, 255, 256, 512, 1000, 4096, 100000}) {
      for (int kv_len = 1; kv_len < 3000; ++kv_len) {
        const std::string found = fault(kv_len, window, max_splits);
        if (!found.empty())
          FAIL("kv_len " << kv_len << ", window " << window << ", splits " << max_splits << ": " << found);
      }
      for (const int kv_len : {4095, 4096, 4097, 65536, 131071, 1 << 20})
        CHECK(fault(kv_len, window, max_splits) == std::string());
    }
  }
}

TEST_CASE("short sequences are not split, long ones as often as is asked") {
  CHECK(plan_splits(1, 0, 16).n_splits == 1);
  CHECK(plan_splits(511, 0, 16).n_splits == 1);
  CHECK(plan_splits(512, 0, 16).n_splits == 2);
  CHECK(plan_splits(100000, 0, 16).n_splits == 16);
  CHECK(plan_splits(100000, 600, 16).n_splits == 2);
}

TEST_CASE("splits differ by a page at most, apart from what lies outside whole pages") {
  const SplitPlan plan = plan_splits(10007, 9000, 7);
  int shortest = 1 << 30, longest = 0;
  for (int i = 0; i < plan.n_splits; ++i) {
    shortest = std::min(shortest, plan.end_of(i) - plan.begin(i));
    longest = std::max(longest, plan.end_of(i) - plan.begin(i));
  }
  CHECK(longest - shortest <= 2 * kSplitUnit);
}

TEST_CASE("splits are wanted until every block has work") {
  CHECK(splits_wanted(132, 8) == 16);
  CHECK(splits_wanted(132, 1) == 132);
  CHECK(splits_wanted(132, 100) == 1);
  CHECK(splits_wanted(132, 132) == 2);
  CHECK(splits_wanted(132, 1000) == 1);
  CHECK(splits_wanted(132, 0) == 132);
}

TEST_CASE("a sequence's new tokens lie in the range that holds their positions") {
  for (int n_new = 1; n_new <= 40; ++n_new)
    for (const int kv_len : {n_new, n_new + 1, 33, 512, 1400}) {
      if (kv_len < n_new) continue;
      const int token = 100 + n_new - 1;  // the newest; the first is token 100
      for (const int64_t window : {0, 20, 600}) {
        const SplitPlan plan = plan_splits(kv_len, window, 5);
        for (int i = 0; i < plan.n_splits; ++i) {
          const NewTokens found = new_tokens_in(100, token, kv_len, plan.begin(i), plan.end_of(i));
          for (int t = 100; t <= token; ++t) {
            const int position = kv_len - 1 - (token - t);
            const bool inside = position >= plan.begin(i) && position < plan.end_of(i);
            INFO("new " << n_new << ", kv_len " << kv_len << ", window " << window << ", split " << i << ", token "
                        << t);
            CHECK((t >= found.begin && t < found.end) == inside);
          }
        }
      }
    }
}

TEST_CASE("cuda attention: divisions by what a launch knows are exact for all numbers of 32 bits") {
  int n_wrong = 0;
  const auto check = [&](uint32_t n, uint32_t by) {
    const auto found = Divisor(by).divide(n);
    if (found.quotient == n / by && found.rest == n % by) return;
    ++n_wrong;
    UNSCOPED_INFO(n << " / " << by << ": " << found.quotient << ", " << found.rest);
  };
  for (uint32_t by = 1; by < 400; ++by)
    for (uint32_t n = 0; n < 3000; ++n) check(n, by);
  for (const uint32_t by :
       {1u, 2u, 3u, 7u, 8u, 641u, 65535u, 65536u, 65537u, 0x7fffffffu, 0x80000000u, 0xfffffffeu, ~0u})
    for (const uint32_t at : {0u, by, 2 * by, ~0u - ~0u % by, 0x80000000u, ~0u})
      for (uint32_t d = 0; d < 7; ++d) check(at + d - 3, by);
  CHECK(n_wrong == 0);
}
