// In which form attention leaves its result for the product that follows: what serves all weights it could meet, and
// nothing where it would not be right.
#include "kernels/cuda/attention_copy.h"
#include "tests/catch.h"

using namespace infer;
using namespace infer::cuda;

namespace {

constexpr int64_t kRoom = 128 * 4096;

/// Of an 8B's attention but for what is given, on a GPU that has everything.
std::optional<PassedForm> form_of(int64_t rows, const std::vector<DType>& formats, int64_t n_heads = 32,
                                  int64_t head_dim = 128, int64_t room = kRoom) {
  return attention_copy_form({rows, n_heads, head_dim, room, true, true}, formats);
}

}  // namespace

TEST_CASE("cuda attention copy: codes up to 8 rows, operands beyond, rows for BF16") {
  const std::vector<DType> mixed = {DType::Q4_K, DType::Q6_K, DType::F16};  // a head in F16
  for (int64_t rows = 3; rows <= 128; ++rows) {
    CHECK(form_of(rows, mixed) == (rows <= 8 ? PassedForm::codes : PassedForm::operand));
    CHECK(form_of(rows, {DType::BF16}) == PassedForm::rows);
    CHECK(form_of(rows, {DType::W8F, DType::BF16}) == PassedForm::operand);  // has no codes
    CHECK(form_of(rows, {DType::W8I}) == (rows <= 8 ? PassedForm::codes : PassedForm::operand));
    CHECK(form_of(rows, {DType::Q8_0, DType::W8F}) == PassedForm::operand);  // either may follow
    CHECK_FALSE(form_of(rows, {DType::F16}));
    CHECK_FALSE(form_of(rows, {DType::F32, DType::BF16}));
  }
  CHECK_FALSE(form_of(129, mixed));
}

TEST_CASE("cuda attention copy: a group of codes is never of two heads") {
  for (const int64_t head_dim : {16, 20, 48, 72, 80, 100, 112, 120, 144}) {
    INFO(head_dim);
    CHECK_FALSE(form_of(5, {DType::Q8_0}, 32, head_dim));
    CHECK_FALSE(form_of(8, {DType::Q4_K}, 64, head_dim));
  }
  for (const int64_t head_dim : {32, 64, 96, 128, 160, 256}) CHECK(form_of(5, {DType::Q8_0}, 8, head_dim));
  CHECK_FALSE(form_of(5, {DType::Q8_0}, 3, 32));  // pairs of groups
}

TEST_CASE("cuda attention copy: nothing without room or kernels") {
  const int64_t codes = Int8Operand<1>::bytes(4096) / 2;
  CHECK(form_of(5, {DType::Q8_0}, 32, 128, codes) == PassedForm::codes);
  CHECK_FALSE(form_of(5, {DType::Q8_0}, 32, 128, codes - 1));
  CHECK(form_of(9, {DType::Q8_0}, 32, 128, 16 * 4096) == PassedForm::operand);
  CHECK_FALSE(form_of(9, {DType::Q8_0}, 32, 128, 16 * 4096 - 1));
  CHECK(form_of(9, {DType::BF16}, 32, 128, 9 * 4096) == PassedForm::rows);
  CHECK_FALSE(form_of(9, {DType::BF16}, 32, 128, 9 * 4096 - 1));
  for (const DType format : {DType::Q8_0, DType::W8F, DType::BF16})
    CHECK_FALSE(attention_copy_form({5, 32, 128, kRoom, false, false}, {format}));
}
