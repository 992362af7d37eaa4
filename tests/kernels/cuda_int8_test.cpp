// Products of up to 8 tokens with int8 activations: where an operand's numbers lie, on the host. That every format's
// products are the oracle's is in cuda_wgmma_test.cpp and cuda_stages_test.cpp, which take whatever way is quickest.
#include <set>

#include "kernels/cuda/int8_operand.h"
#include "tests/kernels/cuda_side.h"

namespace cuda_int8_test {
using namespace infer;
using namespace infer::cuda;

template <int kScales>
void check_places() {
  using At = Int8Operand<kScales>;
  constexpr int64_t kGroups = 6;
  std::set<int64_t> words;
  for (int64_t group = 0; group < kGroups; ++group)
    for (int token = 0; token < kInt8Tokens; ++token) {
      for (int quad = 0; quad < 8; ++quad) words.insert(At::code(group, token, quad));
      for (int half = 0; half < kScales; ++half) words.insert(At::scale(group, half, token));
      for (int half = 0; half < 2; ++half) words.insert(At::sum(group, half, token));
    }
  // Each word has a place of its own, and there are no gaps: pairs of groups follow one another.
  CHECK(words.size() == static_cast<size_t>(kGroups * kInt8Tokens * (8 + kScales + 2)));
  CHECK(*words.begin() == 0);
  CHECK(*words.rbegin() == At::bytes(kGroups * 32) - 4);
  CHECK(static_cast<int64_t>(words.size()) * 4 == At::bytes(kGroups * 32));
  CHECK(At::kPairBytes % 16 == 0);  // any run of pairs is one bulk copy
}

TEST_CASE("cuda int8: every word of an operand has a place of its own") {
  check_places<1>();
  check_places<2>();
}

TEST_CASE("cuda int8: a lane finds what it needs of a pair of groups at one address") {
  using At = Int8Operand<2>;
  for (int token = 0; token < kInt8Tokens; ++token)
    for (int j = 0; j < 4; ++j) {
      const int64_t at = At::code(2, token, j);  // lane 4 * token + j: 16 bytes, in the order of lanes
      CHECK(at == At::kPairBytes + (4 * token + j) * 16);
      CHECK(At::code(2, token, j + 4) == at + 4);
      CHECK(At::code(3, token, j) == at + 8);
      CHECK(At::code(3, token, j + 4) == at + 12);
    }
  for (int half = 0; half < 2; ++half)
    for (int j = 0; j < 4; ++j) {  // of a result's columns 2 j and 2 j + 1
      const int64_t at = At::scale(0, half, 2 * j);
      CHECK(at % 16 == 0);
      CHECK(At::scale(0, half, 2 * j + 1) == at + 4);
      CHECK(At::scale(1, half, 2 * j) == at + 8);
      CHECK(At::scale(1, half, 2 * j + 1) == at + 12);
    }
}

}  // namespace cuda_int8_test
