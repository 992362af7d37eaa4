// The order between warps that fetch and warps that multiply (RingOfPasses, and the decode kernel's ring), played on
// the host with barriers that know the parity of a phase and nothing else, as the hardware's do, and with warps and
// copies that are held up at random for as long as it takes the others to go round the ring.
#include <algorithm>
#include <random>
#include <vector>

#include "kernels/cuda/program.h"
#include "kernels/cuda/wgmma_plan.h"
#include "tests/catch.h"

using namespace infer;
using namespace infer::cuda;

namespace {

struct Barrier {
  int arrivals, left, phase = 0;
  explicit Barrier(int n) : arrivals(n), left(n) {}
  void arrive() {
    if (--left == 0) left = arrivals, ++phase;
  }
  bool passed(int parity) const { return (phase & 1) != parity; }
};

class Ring {
 public:
  static constexpr int kReaders = 2, kBlocks = 60;  ///< warps of a set

  Ring(int n_slots, int n_sets, int n_fetchers, uint32_t seed)
      : n_slots_(n_slots),
        weights_(static_cast<size_t>(n_slots), Barrier(1)),
        x_(weights_),
        empty_(static_cast<size_t>(n_slots), Barrier(kReaders)),
        slots_(static_cast<size_t>(n_slots)),
        random_(seed) {
    for (int i = 0; i < n_fetchers; ++i) warps_.push_back({Role::weights, i, n_fetchers});
    warps_.push_back({Role::x, 0, 1});
    for (int set = 0; set < n_sets; ++set)
      for (int i = 0; i < kReaders; ++i) warps_.push_back({Role::reader, set, n_sets});
    for (Warp& w : warps_) {
      w.slot = w.block % n_slots, w.parity = w.role == Role::reader ? 0 : 1;
      if (w.block >= n_slots) w.parity ^= 1;
    }
  }

  /// Whether every block was multiplied, and nothing else.
  bool run() {
    for (int steps = 0; steps < 40000; ++steps) {
      if (broken_) return false;
      if (std::all_of(warps_.begin(), warps_.end(), [](const Warp& w) { return w.block >= kBlocks; })) return true;
      Warp& w = warps_[random_() % warps_.size()];
      if (w.held > 0) {
        --w.held;
      } else if (w.block < kBlocks && step(w)) {
        if (random_() % 16 == 0) w.held = static_cast<int>(random_() % 400);
      }
    }
    return false;
  }

 private:
  enum class Role { weights, x, reader };
  struct Warp {
    Role role;
    int block, stride;  ///< its next block, and how far it is to the one after that
    int slot = 0, parity = 0, before = -1, held = 0;
  };
  struct Slot {
    int weights = -1, x = -1;  ///< blocks that they are of
  };

  bool step(Warp& w) {
    const auto at = static_cast<size_t>(w.slot);
    Slot& slot = slots_[at];
    if (w.role == Role::reader) {
      if (!weights_[at].passed(w.parity) || !x_[at].passed(w.parity)) return false;
      broken_ = broken_ || slot.weights != w.block || slot.x != w.block;
      if (w.before >= 0) leave(w.before);  // products of the block before end while the next ones are under way
      w.before = w.block;
    } else {
      if (!empty_[at].passed(w.parity)) return false;
      const int last = w.block - n_slots_;
      broken_ = broken_ || (last >= 0 && n_left_[static_cast<size_t>(last)] < kReaders);
      (w.role == Role::x ? slot.x : slot.weights) = w.block;
      (w.role == Role::x ? x_ : weights_)[at].arrive();
    }
    w.block += w.stride;
    w.slot += w.stride;
    while (w.slot >= n_slots_) w.slot -= n_slots_, w.parity ^= 1;
    if (w.role == Role::reader && w.block >= kBlocks) leave(w.before);
    return true;
  }
  void leave(int block) {
    ++n_left_[static_cast<size_t>(block)];
    empty_[static_cast<size_t>(block % n_slots_)].arrive();
  }

  int n_slots_;
  std::vector<Barrier> weights_, x_, empty_;
  std::vector<Slot> slots_;
  std::vector<int> n_left_ = std::vector<int>(kBlocks, 0);  ///< readers that are done with a block
  std::vector<Warp> warps_;
  std::mt19937 random_;
  bool broken_ = false;
};

int n_failed(int n_slots, int n_sets, int n_fetchers) {
  int failed = 0;
  for (uint32_t seed = 0; seed < 40; ++seed) failed += !Ring(n_slots, n_sets, n_fetchers, seed).run();
  return failed;
}

}  // namespace

TEST_CASE("cuda wgmma: whoever fetches finds slots empty that are, however late it comes") {
  for (const int n_sets : {1, 2, 4})
    for (int n_slots = 2 * n_sets; n_slots <= kWgmmaMaxSlots; n_slots += n_sets) {
      INFO(n_slots << " slots, " << n_sets << " sets");
      CHECK(n_failed(n_slots, n_sets, wgmma_weight_warps(n_slots, n_sets)) == 0);
    }
  // The rules are not there for nothing: a phase taken for the one before the last, and a slot that nobody leaves.
  CHECK(n_failed(4, 2, 3) > 0);
  CHECK(n_failed(2, 2, 2) > 0);
}

namespace {

/// The decode kernel's: one warp asks for chunks in their order, of which so many may be on their way, and land in any
/// order; teams take them in turn.
class TeamRing {
 public:
  static constexpr int kReaders = 2, kChunks = 80;  ///< warps of a team

  TeamRing(int n_slots, int n_teams, int in_flight, uint32_t seed)
      : n_slots_(n_slots),
        in_flight_(std::min(in_flight, n_slots)),
        full_(static_cast<size_t>(n_slots), Barrier(1)),
        empty_(static_cast<size_t>(n_slots), Barrier(kReaders)),
        holds_(static_cast<size_t>(n_slots), -1),
        random_(seed) {
    for (int team = 0; team < n_teams; ++team)
      for (int i = 0; i < kReaders; ++i) readers_.push_back({team, team % n_slots, team / n_slots % 2, n_teams, 0});
  }

  /// Whether every chunk was read by its own team, and nothing else.
  bool run() {
    for (int steps = 0; steps < 40000 && !broken_; ++steps) {
      if (std::all_of(readers_.begin(), readers_.end(), [](const Reader& r) { return r.chunk >= kChunks; }))
        return true;
      const auto who = random_() % (readers_.size() + 2);
      if (who < readers_.size()) {
        Reader& r = readers_[who];
        if (r.held > 0)
          --r.held;
        else if (r.chunk < kChunks && read(r) && random_() % 8 == 0)
          r.held = static_cast<int>(random_() % 200);
      } else if (who == readers_.size()) {
        ask();
      } else {
        land();
      }
    }
    return false;
  }

 private:
  struct Reader {
    int chunk, slot, parity, stride, held;
  };

  void ask() {
    if (asked_ >= kChunks) return;
    const auto at = static_cast<size_t>(asked_ % n_slots_);
    if (!empty_[at].passed(asked_ / n_slots_ % 2 ^ 1)) return;
    if (const int oldest = asked_ - in_flight_; oldest >= 0)
      if (!full_[static_cast<size_t>(oldest % n_slots_)].passed(oldest / n_slots_ % 2)) return;
    on_their_way_.push_back(asked_++);
  }
  void land() {
    if (on_their_way_.empty()) return;
    const auto which = on_their_way_.begin() + static_cast<int64_t>(random_() % on_their_way_.size());
    const int chunk = *which;
    on_their_way_.erase(which);
    const auto at = static_cast<size_t>(chunk % n_slots_);
    holds_[at] = chunk;
    full_[at].arrive();
  }
  bool read(Reader& r) {
    const auto at = static_cast<size_t>(r.slot);
    if (!full_[at].passed(r.parity)) return false;
    broken_ = broken_ || holds_[at] != r.chunk;
    empty_[at].arrive();
    r.chunk += r.stride, r.slot += r.stride;
    if (r.slot >= n_slots_) r.slot -= n_slots_, r.parity ^= 1;
    return true;
  }

  int n_slots_, in_flight_, asked_ = 0;
  std::vector<Barrier> full_, empty_;
  std::vector<int> holds_, on_their_way_;
  std::vector<Reader> readers_;
  std::mt19937 random_;
  bool broken_ = false;
};

int n_failed_teams(int n_slots, int n_teams, int in_flight) {
  int failed = 0;
  for (uint32_t seed = 0; seed < 40; ++seed) failed += !TeamRing(n_slots, n_teams, in_flight, seed).run();
  return failed;
}

}  // namespace

TEST_CASE("a ring whose slots serve one team after another hands each its own chunks") {
  for (const int teams : {2, 4})
    for (int in_flight = 2; in_flight <= 6; ++in_flight)
      for (int fit = teams; fit <= kMaxSlots; ++fit) {
        const int n = ring_slots(fit, teams, in_flight);
        INFO(fit << " slots fit, " << teams << " teams, " << in_flight << " in flight");
        CHECK((n == fit || (n > fit - teams && n % teams == 0)));
        CHECK(n_failed_teams(n, teams, in_flight) == 0);
      }
  CHECK(ring_slots(3, 4, 2) == 0);
  // The rule is not there for nothing.
  CHECK(n_failed_teams(5, 4, 3) > 0);
  CHECK(n_failed_teams(3, 2, 3) > 0);
}
