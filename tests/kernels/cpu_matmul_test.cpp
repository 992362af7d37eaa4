// The CPU matmul against double precision, for every format, on every instruction set of this machine.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "infer/error.h"
#include "kernels/cpu/matmul.h"
#include "quant/formats.h"
#include "tests/catch.h"

using namespace infer;
using namespace infer::cpu;

namespace {

constexpr uint8_t kGuard = 0xA5;
constexpr float kPoison = -12345.678f;

std::vector<Isa> isas() {
  std::vector<Isa> all;
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (isa_available(isa)) all.push_back(isa);
  }
  return all;
}

template <class... F>
std::vector<DType> ids(FormatList<F...>) {
  return {F::id...};
}
std::vector<DType> formats() { return ids(Formats{}); }

const char* name_of(DType dtype) { return find_format(dtype)->name; }

/// Bytes aligned to 64 with guard bytes behind them.
class Guarded {
 public:
  explicit Guarded(size_t bytes) : bytes_(bytes), store_(bytes + 192, kGuard) {}
  uint8_t* data() {
    const auto address = reinterpret_cast<uintptr_t>(store_.data());
    return store_.data() + (64 - address % 64) % 64;
  }
  bool intact() {
    for (const uint8_t* p = data() + bytes_; p < store_.data() + store_.size(); ++p) {
      if (*p != kGuard) return false;
    }
    return true;
  }

 private:
  size_t bytes_;
  std::vector<uint8_t> store_;
};

/// Random file blocks whose every bit may be set, but whose scales are ordinary numbers. `fill`: all other bytes.
std::vector<uint8_t> random_weights(DType dtype, int64_t rows, int64_t cols, std::mt19937& random, int fill = -1) {
  std::vector<uint8_t> bytes(static_cast<size_t>(tensor_bytes(dtype, rows, cols)));
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> scale(0.005f, 0.02f);
  visit_format(dtype, [&]<class F>() {
    const auto n = bytes.size() / sizeof(typename F::Block);
    for (size_t i = 0; i < n; ++i) {
      typename F::Block block;
      if constexpr (F::block == 1) {
        block = F::encode(normal(random));
      } else {
        auto* raw = reinterpret_cast<uint8_t*>(&block);
        for (size_t b = 0; b < sizeof(block); ++b) raw[b] = static_cast<uint8_t>(fill < 0 ? random() : fill);
        const auto set_scale = [&](uint16_t& d) { d = f32_to_f16(scale(random) * (random() % 2 ? 1.0f : -1.0f)); };
        const auto set_zero = [&](uint16_t& zero) { zero = f32_to_f16(static_cast<float>(random() % 17)); };
        if constexpr (F::id == DType::W4G128) {
          for (int half = 0; half < 2; ++half) set_scale(block.d[half]), set_zero(block.zero[half]);
        } else {
          if constexpr (requires { block.d; }) set_scale(block.d);
          if constexpr (requires { block.zero; }) set_zero(block.zero);
        }
        if constexpr (requires { block.dmin; }) block.dmin = f32_to_f16(scale(random));
        if constexpr (requires { block.m; }) block.m = f32_to_f16(-8 * scale(random));
        if constexpr (requires { block.e; }) block.e = static_cast<uint8_t>(random() % 8 + 120);
      }
      std::memcpy(bytes.data() + i * sizeof(block), &block, sizeof(block));
    }
  });
  return bytes;
}

std::vector<float> random_activations(int64_t m, int64_t k, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(m * k));
  for (float& v : x) v = normal(random);
  return x;
}

/// What the kernel of this format sees of x: all of it, or rounded to int8 per 32.
std::vector<float> rounded_activations(DType dtype, std::vector<float> x) {
  const ActivationForm form = activation_form(dtype);
  if (form == ActivationForm::int8) {
    for (size_t g = 0; g + 32 <= x.size(); g += 32) {
      float most = 0;
      for (size_t i = g; i < g + 32; ++i) most = std::max(most, std::fabs(x[i]));
      const float inverse = most > 0 ? 127.0f / most : 0.0f;
      for (size_t i = g; i < g + 32; ++i) x[i] = most / 127.0f * std::nearbyint(x[i] * inverse);
    }
  }
  return x;
}

struct Case {
  DType dtype;
  int64_t rows, cols, m;
  std::vector<float> w, x, bias;  ///< decoded weights
  std::shared_ptr<Guarded> packed;

  Case(DType type, int64_t n_rows, int64_t n_cols, int64_t n_tokens, int fill = -1)
      : dtype(type), rows(n_rows), cols(n_cols), m(n_tokens) {
    std::mt19937 random(1 + static_cast<unsigned>(rows * 131 + cols * 7 + m));
    const std::vector<uint8_t> file = random_weights(dtype, rows, cols, random, fill);
    w.resize(static_cast<size_t>(rows * cols));
    const auto row = static_cast<size_t>(row_bytes(dtype, cols));
    for (int64_t r = 0; r < rows; ++r) {
      REQUIRE(decode_row(dtype, file.data() + static_cast<size_t>(r) * row, w.data() + r * cols, cols));
    }
    x = random_activations(m, cols, random);
    bias = random_activations(1, rows, random);
    packed = std::make_shared<Guarded>(packed_bytes(dtype, rows, cols));
    pack(dtype, file.data(), rows, cols, 0, tile_count(rows), packed->data());
    REQUIRE(packed->intact());
  }

  Tensor weight() const { return Tensor(packed->data(), dtype, {rows, cols}); }
};

/// Runs the kernel into a poisoned buffer with a wide stride; checks that nothing but the results was written.
std::vector<float> run(Isa isa, const Case& c, const std::vector<float>& x, int64_t m, const float* bias,
                       bool split = false) {
  const ActivationForm form = activation_form(c.dtype);
  Guarded acts(activation_bytes(form, m, c.cols));
  prepare_activations(isa, form, x.data(), c.cols, c.cols, 0, m / 2, acts.data());
  prepare_activations(isa, form, x.data(), c.cols, c.cols, m / 2, m, acts.data());
  Guarded scratch(matmul_scratch_bytes());
  const int64_t stride = c.rows + 5, tiles = tile_count(c.rows);
  std::vector<float> wide(static_cast<size_t>(stride * m), kPoison);
  for (int64_t begin = 0; begin < tiles;) {
    const int64_t end = split ? begin + 1 : tiles;
    matmul(isa, c.weight(), acts.data(), m, wide.data(), stride, bias, begin, end, scratch.data());
    begin = end;
  }
  REQUIRE(acts.intact());
  REQUIRE(scratch.intact());
  REQUIRE(c.packed->intact());
  std::vector<float> out;
  for (int64_t t = 0; t < m; ++t) {
    for (int64_t n = 0; n < stride; ++n) {
      const float v = wide[static_cast<size_t>(t * stride + n)];
      if (n < c.rows) {
        out.push_back(v);
      } else if (v != kPoison) {
        FAIL("wrote past the row of token " << t);
      }
    }
  }
  return out;
}

std::vector<double> reference(const Case& c, const std::vector<float>& x, bool with_bias) {
  std::vector<double> out;
  for (int64_t t = 0; t < c.m; ++t) {
    for (int64_t n = 0; n < c.rows; ++n) {
      double sum = with_bias ? c.bias[static_cast<size_t>(n)] : 0.0;
      for (int64_t k = 0; k < c.cols; ++k) {
        sum += static_cast<double>(c.w[static_cast<size_t>(n * c.cols + k)]) * x[static_cast<size_t>(t * c.cols + k)];
      }
      out.push_back(sum);
    }
  }
  return out;
}

/// Mean squared error over the mean square that a random product of this size has (|w|^2 |x|^2 / k), which unlike the
/// mean square of the result cannot happen to be near zero when there are few results.
double error_of(const Case& c, const std::vector<float>& got, const std::vector<double>& want) {
  double w2 = 0, x2 = 0, e2 = 0;
  for (const float v : c.w) w2 += static_cast<double>(v) * v;
  for (const float v : c.x) x2 += static_cast<double>(v) * v;
  for (size_t i = 0; i < got.size(); ++i) e2 += (got[i] - want[i]) * (got[i] - want[i]);
  if (!std::isfinite(e2)) return 1e9;
  const double scale = w2 * x2 / static_cast<double>(c.cols);
  return scale > 0 ? e2 / scale : e2;
}

/// The promise against the true product, rounding of activations included.
double bar(DType dtype) {
  switch (activation_form(dtype)) {
    case ActivationForm::f32:
      return 1e-10;
    case ActivationForm::int8:
      return 1e-4;
    case ActivationForm::int8_rest:
      break;  // no format's own
  }
  return 0;
}

bool allowed(DType dtype, int64_t cols) { return tensor_bytes(dtype, 1, cols) > 0; }

void check(const Case& c, Isa isa) {
  INFO(name_of(c.dtype) << " rows " << c.rows << " cols " << c.cols << " m " << c.m << " " << to_string(isa));
  const std::vector<float> got = run(isa, c, c.x, c.m, c.bias.data());
  CHECK(error_of(c, got, reference(c, rounded_activations(c.dtype, c.x), true)) < 1e-10);
  if (c.rows * c.m >= 64) CHECK(error_of(c, got, reference(c, c.x, true)) < bar(c.dtype));
}

}  // namespace

TEST_CASE("every format times any number of tokens is the product in double precision", "[cpu_matmul]") {
  for (const DType dtype : formats()) {
    for (const Isa isa : isas()) {
      for (const int64_t m : {1, 2, 3, 7, 8, 9, 31, 33, 65}) check(Case(dtype, 33, 512, m), isa);
    }
  }
}

TEST_CASE("every format works for any number of rows", "[cpu_matmul]") {
  for (const DType dtype : formats()) {
    for (const Isa isa : isas()) {
      for (const int64_t rows : {1, 15, 16, 17, 33, 64, 65, 100}) {
        for (const int64_t m : {1, 5, 13}) check(Case(dtype, rows, 256, m), isa);
      }
    }
  }
}

TEST_CASE("every format works for any row length that its blocks allow", "[cpu_matmul]") {
  for (const DType dtype : formats()) {
    for (const Isa isa : isas()) {
      for (const int64_t cols : {1, 2, 31, 32, 33, 64, 96, 129, 256, 288, 512, 544, 768}) {
        if (!allowed(dtype, cols)) continue;
        for (const int64_t m : {1, 4, 14}) check(Case(dtype, 20, cols, m), isa);
      }
    }
  }
}

TEST_CASE("a token's result has the same bits alone, in any batch and for any split of the tiles", "[cpu_matmul]") {
  for (const DType dtype : formats()) {
    for (const Isa isa : isas()) {
      const Case c(dtype, 83, 768, 65);
      INFO(name_of(dtype) << " " << to_string(isa));
      const std::vector<float> at_once = run(isa, c, c.x, c.m, c.bias.data());
      const std::vector<float> split = run(isa, c, c.x, c.m, c.bias.data(), true);
      CHECK(std::memcmp(at_once.data(), split.data(), at_once.size() * sizeof(float)) == 0);
      for (const int64_t batch : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 17, 32}) {
        std::vector<float> pieces;
        for (int64_t t = 0; t < c.m; t += batch) {
          const int64_t n = std::min(batch, c.m - t);
          const std::vector<float> x(c.x.begin() + t * c.cols, c.x.begin() + (t + n) * c.cols);
          const std::vector<float> part = run(isa, c, x, n, c.bias.data());
          pieces.insert(pieces.end(), part.begin(), part.end());
        }
        INFO("batch " << batch);
        CHECK(std::memcmp(at_once.data(), pieces.data(), at_once.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("with the rest of their rounding, activations have 16 bits", "[cpu_matmul]") {
  for (const DType dtype : formats()) {
    if (activation_form(dtype) != ActivationForm::int8) continue;
    for (const Isa isa : isas()) {
      INFO(name_of(dtype) << " " << to_string(isa));
      const Case c(dtype, 50, 768, 21);
      const auto multiply = [&](int64_t token_begin, int64_t n, std::vector<float>& out) {
        const size_t bytes = activation_bytes(ActivationForm::int8, n, c.cols);
        Guarded acts(bytes), rest(bytes), scratch(matmul_scratch_bytes());
        const float* x = c.x.data() + token_begin * c.cols;
        prepare_activations(isa, ActivationForm::int8, x, c.cols, c.cols, 0, n, acts.data());
        prepare_activations(isa, ActivationForm::int8_rest, x, c.cols, c.cols, 0, n, rest.data());
        matmul(isa, c.weight(), acts.data(), n, out.data() + token_begin * c.rows, c.rows, c.bias.data(), 0,
               tile_count(c.rows), scratch.data(), rest.data());
      };
      std::vector<float> at_once(static_cast<size_t>(c.rows * c.m), kPoison), one_by_one = at_once;
      multiply(0, c.m, at_once);
      for (int64_t t = 0; t < c.m; ++t) multiply(t, 1, one_by_one);
      CHECK(error_of(c, at_once, reference(c, c.x, true)) < 1e-8);
      CHECK(std::memcmp(at_once.data(), one_by_one.data(), at_once.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("all instruction sets agree with the scalar code", "[cpu_matmul]") {
  for (const DType dtype : formats()) {
    for (const int64_t m : {1, 6, 40}) {
      const Case c(dtype, 70, 512, m);
      const std::vector<float> scalar = run(Isa::scalar, c, c.x, m, nullptr);
      const std::vector<double> want(scalar.begin(), scalar.end());
      for (const Isa isa : isas()) {
        INFO(name_of(dtype) << " m " << m << " " << to_string(isa));
        CHECK(error_of(c, run(isa, c, c.x, m, nullptr), want) < 1e-10);
      }
    }
  }
}

TEST_CASE("activations are prepared to the same bits by every instruction set", "[cpu_matmul]") {
  std::mt19937 random(7);
  for (const int64_t k : {32, 96, 1024}) {
    std::vector<float> x = random_activations(3, k, random);
    x[5] = std::numeric_limits<float>::quiet_NaN();
    for (size_t i = 32; i < x.size(); i += 9) x[i] *= i % 2 ? 1e30f : 1e-42f;
    for (const ActivationForm form : {ActivationForm::f32, ActivationForm::int8, ActivationForm::int8_rest}) {
      Guarded want(activation_bytes(form, 3, k));
      std::memset(want.data(), 0, activation_bytes(form, 3, k));
      prepare_activations(Isa::scalar, form, x.data(), k, k, 0, 3, want.data());
      for (const Isa isa : isas()) {
        Guarded got(activation_bytes(form, 3, k));
        std::memset(got.data(), 0, activation_bytes(form, 3, k));
        prepare_activations(isa, form, x.data(), k, k, 0, 3, got.data());
        CHECK(std::memcmp(got.data(), want.data(), activation_bytes(form, 3, k)) == 0);
        CHECK(got.intact());
      }
    }
  }
}

TEST_CASE("activations of the extremes stay what they are", "[cpu_matmul]") {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const DType dtype : formats()) {
    for (const Isa isa : isas()) {
      for (const int64_t m : {1, 3, 20}) {
        INFO(name_of(dtype) << " m " << m << " " << to_string(isa));
        Case c(dtype, 40, 256, m);
        const auto last = static_cast<size_t>((m - 1) * c.cols);

        for (float& v : c.x) v *= 1e5f;
        CHECK(error_of(c, run(isa, c, c.x, m, nullptr), reference(c, c.x, false)) < 2 * bar(dtype));

        std::fill(c.x.begin() + static_cast<ptrdiff_t>(last), c.x.end(), 0.0f);
        std::vector<float> out = run(isa, c, c.x, m, c.bias.data());
        for (int64_t n = 0; n < c.rows; ++n) {
          CHECK(out[static_cast<size_t>((m - 1) * c.rows + n)] == c.bias[static_cast<size_t>(n)]);
        }

        for (const float bad : {nan, infinity, -infinity}) {
          c.x[last + 77] = bad;
          out = run(isa, c, c.x, m, nullptr);
          for (int64_t n = 0; n < c.rows; ++n) {
            const bool finite = std::isfinite(out[static_cast<size_t>((m - 1) * c.rows + n)]);
            if (finite) CHECK(c.w[static_cast<size_t>(n * c.cols + 77)] == 0.0f);
            if (m > 1) CHECK(std::isfinite(out[static_cast<size_t>(n)]));
          }
        }

        std::fill(c.x.begin() + static_cast<ptrdiff_t>(last), c.x.end(), 1e-38f);
        out = run(isa, c, c.x, m, nullptr);
        for (const float v : out) CHECK(std::isfinite(v));
      }
    }
  }
}

TEST_CASE("the largest codes times the largest activations fit the integers of every kernel", "[cpu_matmul]") {
  for (const DType dtype : formats()) {
    for (const int fill : {0x00, 0xff, 0x80, 0x7f, 0x88, 0x77}) {
      for (const float sign : {1.0f, -1.0f}) {
        Case c(dtype, 16, 256, 9, fill);
        c.x.assign(c.x.size(), 127 * sign);
        for (const Isa isa : isas()) {
          for (const int64_t m : {1, 9}) {
            INFO(name_of(dtype) << " bytes " << fill << " m " << m << " " << to_string(isa));
            c.m = m;
            CHECK(error_of(c, run(isa, c, c.x, m, nullptr), reference(c, c.x, false)) < 1e-9);
          }
        }
      }
    }
  }
}

TEST_CASE("packed weights take hardly more bytes than the file's", "[cpu_matmul]") {
  for (const DType dtype : formats()) {
    CHECK(packed_bytes(dtype, 4096, 4096) == static_cast<size_t>(tensor_bytes(dtype, 4096, 4096)));
    CHECK(packed_bytes(dtype, 1, 256) <= static_cast<size_t>(16 * tensor_bytes(dtype, 1, 256)) + 63);
  }
}

TEST_CASE("shapes that a format does not allow are refused", "[cpu_matmul]") {
  CHECK_THROWS_AS(packed_bytes(DType::Q4_0, 16, 33), Error);
  CHECK_THROWS_AS(packed_bytes(DType::Q4_K, 16, 128), Error);
  CHECK_THROWS_AS(packed_bytes(DType::F32, 0, 16), Error);
  CHECK_THROWS_AS(packed_bytes(DType::F32, 16, -1), Error);
  CHECK_THROWS_AS(packed_bytes(DType::F32, int64_t{1} << 40, int64_t{1} << 40), Error);
  CHECK_THROWS_AS(packed_bytes(DType::I32, 16, 16), Error);
  CHECK_THROWS_AS(activation_form(DType::I32), Error);
  CHECK_FALSE(matmul_supported(DType::I32));
  CHECK(matmul_supported(DType::Q6_K));
}

TEST_CASE("instruction sets have names", "[cpu_matmul]") {
  CHECK(parse_isa("scalar") == Isa::scalar);
  CHECK(parse_isa(to_string(best_isa())) == best_isa());
  CHECK_THROWS_AS(parse_isa("avx1024"), Error);
}
