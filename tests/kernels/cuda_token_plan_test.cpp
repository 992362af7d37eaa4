// Where a token's activations lie and how large tiles are, for products token by token: on the host, for every format.
#include "kernels/cuda/token_plan.h"

#include "kernels/tensor.h"
#include "tests/catch.h"

using namespace infer;
using namespace infer::cuda;

namespace {

template <class... F>
void for_each_format(FormatList<F...>, const auto& f) {
  (f.template operator()<F>(), ...);
}

}  // namespace

TEST_CASE("cuda: activations of a token end in zeros up to what a warp takes at a time") {
  for_each_format(Formats{}, []<class F>() {
    INFO(format_name(F::id));
    for (const int cols : {1, 21, 32, 96, 128, 160, 256, 257, 2048, 2880}) {
      const int padded = token_columns(F::id, cols);
      const int step = F::block > 1 ? 128 : 512 / static_cast<int>(sizeof(typename F::Block));
      CHECK(padded >= cols);
      CHECK(padded - cols < 256);
      CHECK(padded % step == 0);
      CHECK(padded % 128 == 0);  // whole warps of four columns a thread
      CHECK(token_act_bytes(F::id, cols) == (F::block > 1 ? padded + padded / 32 * 16 : padded * 4));
    }
  });
}

TEST_CASE("cuda: tiles of 16 rows follow one another in a packed matrix") {
  for_each_format(Formats{}, []<class F>() {
    INFO(format_name(F::id));
    for (const int64_t cols : {256, 512, 2304})
      for (const int64_t tiles : {1, 3, 64}) {
        const int64_t bytes = packed_matrix_bytes(F::id, tiles * kTileRows, cols);
        CHECK(bytes == tiles * token_tile_bytes<F>(cols));
        CHECK(token_tile_bytes<F>(cols) % 16 == 0);
      }
  });
}
