// The scheduling policy, on integers alone: decodes first, chunks by arrival, preemption of the newest.
#include "runtime/scheduler.h"

#include "tests/catch.h"

using namespace infer;

namespace {

SequenceView running(int64_t n_tokens, int64_t n_computed, int64_t n_pages) {
  return {true, n_tokens, n_computed, n_pages, n_pages};
}
SequenceView waiting(int64_t n_tokens) { return {false, n_tokens, 0, 0, 0}; }

std::vector<std::pair<size_t, int64_t>> work_of(const std::vector<SequenceView>& views, int64_t available,
                                                const SchedulerLimits& limits, std::vector<size_t> preempted = {}) {
  Schedule schedule;
  plan_step(views, available, limits, schedule);
  CHECK(schedule.preempted == preempted);
  std::vector<std::pair<size_t, int64_t>> work;
  for (const auto& w : schedule.work) work.emplace_back(w.index, w.n_tokens);
  return work;
}

using Work = std::vector<std::pair<size_t, int64_t>>;
const SchedulerLimits kLimits{.max_tokens = 64, .max_running = 4, .page_tokens = 32, .chunk_beside_decodes = 16};

}  // namespace

TEST_CASE("scheduler: a lone prompt is computed in chunks of a step's size") {
  CHECK(work_of({running(150, 0, 0)}, 100, kLimits) == Work{{0, 64}});
  CHECK(work_of({running(150, 128, 4)}, 100, kLimits) == Work{{0, 22}});
}

TEST_CASE("scheduler: who decodes goes first, prompts get a smaller chunk beside them") {
  CHECK(work_of({running(150, 0, 0), running(10, 9, 1), running(40, 39, 2)}, 100, kLimits) ==
        Work{{0, 16}, {1, 1}, {2, 1}});
}

TEST_CASE("scheduler: older prompts are served before newer ones") {
  CHECK(work_of({running(40, 0, 0), running(50, 0, 0)}, 100, kLimits) == Work{{0, 40}, {1, 24}});
}

TEST_CASE("scheduler: waiting sequences get no work") {
  CHECK(work_of({running(3, 2, 1), waiting(10)}, 100, kLimits) == Work{{0, 1}});
  CHECK(work_of({waiting(10)}, 100, kLimits).empty());
}

TEST_CASE("scheduler: a step has at most its size of decodes") {
  SchedulerLimits limits = kLimits;
  limits.max_tokens = 2;
  CHECK(work_of({running(9, 8, 1), running(9, 8, 1), running(9, 8, 1)}, 9, limits) == Work{{0, 1}, {1, 1}});
}

TEST_CASE("scheduler: a chunk shrinks to the pages that are left") {
  CHECK(work_of({running(100, 0, 0)}, 1, kLimits) == Work{{0, 32}});
  CHECK(work_of({running(100, 40, 2)}, 0, kLimits) == Work{{0, 24}});
}

TEST_CASE("scheduler: the newest gives back its pages when the oldest has none") {
  CHECK(work_of({running(33, 32, 1), running(10, 9, 1), running(20, 19, 1)}, 0, kLimits, {2}) == Work{{0, 1}, {1, 1}});
}

TEST_CASE("scheduler: work that was granted to a preempted sequence is taken back") {
  // The old prompt finds no page, and the decoding newcomer has been served before it.
  const std::vector<SequenceView> views = {running(100, 32, 1), running(10, 9, 1)};
  CHECK(work_of(views, 0, kLimits, {1}) == Work{{0, 16}});
}

TEST_CASE("scheduler: the newest itself waits rather than push out an older one") {
  CHECK(work_of({running(10, 9, 1), running(33, 32, 1)}, 0, kLimits) == Work{{0, 1}});
}

TEST_CASE("scheduler: shared pages free nothing, so planning is repeated after preemption") {
  std::vector<SequenceView> views = {running(33, 32, 1), running(40, 39, 2)};
  views[1].n_private = 0;
  CHECK(work_of(views, 0, kLimits, {1}).empty());
}

TEST_CASE("scheduler: admission is in order, up to the limit, while pages last") {
  CHECK(admit(std::vector{waiting(10), waiting(10)}, 100, kLimits) == 0);
  CHECK(admit(std::vector{running(10, 0, 0), waiting(10)}, 100, kLimits) == 1);
  const SequenceView some = running(5, 0, 0);
  CHECK(admit(std::vector{some, some, some, waiting(5), waiting(5)}, 100, kLimits) == 3);
  CHECK_FALSE(admit(std::vector{some, some, some, some, waiting(5)}, 100, kLimits));
  CHECK_FALSE(admit(std::vector{running(5, 0, 1), waiting(100), waiting(5)}, 2, kLimits));  // nobody overtakes
  CHECK(admit(std::vector{waiting(100)}, 2, kLimits) == 0);
  CHECK_FALSE(admit(std::vector{some, some}, 100, kLimits));
}

TEST_CASE("scheduler: pages that a prompt under way will want are not given to newcomers") {
  // 10 pages wanted, 2 held: of the 12 that are free 8 are spoken for.
  CHECK(admit(std::vector{running(300, 64, 2), waiting(120)}, 12, kLimits) == 1);
  CHECK_FALSE(admit(std::vector{running(300, 64, 2), waiting(120)}, 11, kLimits));
  // Who talks claims the page that the next token begins.
  CHECK_FALSE(admit(std::vector{running(32, 31, 1), waiting(31)}, 1, kLimits));
  CHECK(admit(std::vector{running(31, 30, 1), waiting(31)}, 1, kLimits) == 1);
}

TEST_CASE("scheduler: pages that others hold cost a newcomer nothing") {
  std::vector<SequenceView> views = {running(320, 319, 10), waiting(320)};
  CHECK_FALSE(admit(views, 3, kLimits));
  views[1].n_shared = 9;
  CHECK(admit(views, 3, kLimits) == 1);
}

TEST_CASE("scheduler: a prompt of 100 000 tokens among 32 that talk delays none of them by more than a chunk") {
  const SchedulerLimits limits{.max_tokens = 512, .max_running = 33, .page_tokens = 32, .chunk_beside_decodes = 128};
  constexpr int64_t kPrompt = 100000, kPages = 3125 + 32 * 40;
  std::vector<SequenceView> views(32, running(20, 19, 1));
  views.insert(views.begin(), running(kPrompt, 0, 0));  // the oldest: it comes before all others wherever it can
  int64_t steps = 0;
  Schedule schedule;
  for (; views[0].n_computed < kPrompt; ++steps) {
    REQUIRE(steps < 1000);
    int64_t held = 0, n_tokens = 0, n_talking = 0;
    for (const SequenceView& v : views) held += v.n_pages;
    plan_step(views, kPages - held, limits, schedule);
    REQUIRE(schedule.preempted.empty());
    for (const auto& w : schedule.work) {
      SequenceView& v = views[w.index];
      v.n_computed += w.n_tokens;
      v.n_pages = v.n_private = std::max(v.n_pages, (v.n_computed + 31) / 32);
      n_tokens += w.n_tokens;
      if (w.index == 0) continue;
      ++v.n_tokens, ++n_talking;
      REQUIRE(w.n_tokens == 1);
    }
    REQUIRE(n_talking == 32);
    REQUIRE(n_tokens <= 32 + limits.chunk_beside_decodes);
  }
  CHECK(steps == (kPrompt + 127) / 128);
}

TEST_CASE("scheduler: with too few pages every sequence still ends, the oldest without interruption") {
  constexpr int64_t kPages = 8;
  const SchedulerLimits limits{.max_tokens = 32, .max_running = 6, .page_tokens = 32, .chunk_beside_decodes = 8};
  std::vector<SequenceView> views(12, waiting(70));
  std::vector<int64_t> goal(12, 200), id(12);
  for (size_t i = 0; i < id.size(); ++i) id[i] = static_cast<int64_t>(i);
  Schedule schedule;
  int64_t steps = 0, n_preempted = 0;
  while (!views.empty()) {
    REQUIRE(++steps < 20000);
    int64_t held = 0;
    for (const auto& v : views) held += v.n_pages;
    while (const auto i = admit(views, kPages - held, limits)) views[*i].running = true;
    plan_step(views, kPages - held, limits, schedule);
    for (size_t i : schedule.preempted) {
      CHECK(i != 0);
      ++n_preempted;
      views[i] = {false, views[i].n_tokens, 0, 0, 0};
    }
    REQUIRE_FALSE(schedule.work.empty());
    for (const auto& w : schedule.work) {
      SequenceView& v = views[w.index];
      v.n_computed += w.n_tokens;
      v.n_pages = v.n_private = std::max(v.n_pages, (v.n_computed + 31) / 32);
      if (v.n_computed == v.n_tokens) ++v.n_tokens;
    }
    held = 0;
    for (const auto& v : views) held += v.n_pages;
    REQUIRE(held <= kPages);
    for (size_t i = views.size(); i-- > 0;)
      if (views[i].n_tokens >= goal[i]) views.erase(views.begin() + static_cast<std::ptrdiff_t>(i));
  }
  CHECK(n_preempted > 0);
}
