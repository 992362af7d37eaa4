// The rotation of heads in a four-bit cache: what is rotated together, the transform against its matrix, and what it
// gains: attention over a rotated q4_0 cache against attention over one that rounds nothing.
#include <bit>
#include <cmath>
#include <functional>

#include "kernels/backend.h"
#include "kernels/cpu/pointwise.h"
#include "kernels/kv_format.h"
#include "tests/catch.h"
#include "tests/kernels/views.h"

using namespace infer;
using Floats = std::vector<float>;

namespace {

std::vector<cpu::Isa> available() {
  std::vector<cpu::Isa> list;
  for (const cpu::Isa isa : {cpu::Isa::scalar, cpu::Isa::avx2, cpu::Isa::avx512})
    if (cpu::isa_available(isa)) list.push_back(isa);
  return list;
}

double nmse(const Floats& found, const Floats& wanted) {
  REQUIRE(found.size() == wanted.size());
  double error = 0, power = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double d = static_cast<double>(found[i]) - wanted[i];
    error += d * d, power += static_cast<double>(wanted[i]) * wanted[i];
  }
  return error / power;
}

/// One sequence whose last token asks, through rope_store() and attention() of a backend.
struct Past {
  int64_t n_tokens = 97, n_heads = 4, n_kv_heads = 2, head_dim = 64;
  Floats q, k, v;

  /// Keys have a few channels that are `outlier` times as large, as those of real models; queries are small there.
  Past(int64_t dim, float outlier) : head_dim(dim) {
    q = random_floats(n_tokens * n_heads * dim, 1), k = random_floats(n_tokens * n_kv_heads * dim, 2);
    v = random_floats(n_tokens * n_kv_heads * dim, 3);
    for (size_t i = 0; i < k.size(); ++i)
      if (i % 32 == 5) k[i] *= outlier;
    for (size_t i = 0; i < q.size(); ++i)
      if (i % 32 == 5) q[i] /= outlier;
  }

  Floats attend(Backend& backend, DType k_type, DType v_type) const {
    const int64_t n_pages = (n_tokens + kPageTokens - 1) / kPageTokens, rows = n_pages * n_kv_heads * kPageTokens;
    Floats rotated = q, keys = k, values = v, out(q.size(), NAN);
    std::vector<int32_t> numbers, pages, q_start = {0, static_cast<int32_t>(n_tokens)},
                                         kv_len = {static_cast<int32_t>(n_tokens)};
    for (int32_t t = 0; t < n_tokens; ++t) numbers.push_back(t);
    for (int32_t p = 0; p < n_pages; ++p) pages.push_back(p);
    std::vector<char> k_cache(static_cast<size_t>(tensor_bytes(k_type, rows, head_dim)), '\xff');
    std::vector<char> v_cache(static_cast<size_t>(tensor_bytes(v_type, rows, head_dim)), '\xff');
    RopeStoreArgs store;
    store.q = view(rotated, {n_tokens, n_heads, head_dim});
    store.k = view(keys, {n_tokens, n_kv_heads, head_dim}), store.v = view(values, {n_tokens, n_kv_heads, head_dim});
    store.positions = store.slots = view(numbers, {n_tokens});
    store.k_cache = Tensor(k_cache.data(), k_type, {n_pages, n_kv_heads, kPageTokens, head_dim});
    store.v_cache = Tensor(v_cache.data(), v_type, {n_pages, n_kv_heads, kPageTokens, head_dim});
    backend.rope_store(store);
    AttentionArgs a;
    a.q = store.q, a.k_cache = store.k_cache, a.v_cache = store.v_cache,
    a.out = view(out, {n_tokens, n_heads, head_dim});
    a.page_table = view(pages, {1, n_pages}), a.q_start = view(q_start, {2}), a.kv_len = view(kv_len, {1});
    a.scale = 1 / std::sqrt(static_cast<float>(head_dim));
    backend.attention(a);
    return out;
  }

  /// The same heads after a q4_0 cache that nothing was rotated for.
  Past rounded() const {
    Past out = *this;
    for (Floats* heads : {&out.k, &out.v}) {
      const auto n = static_cast<int64_t>(heads->size());
      std::vector<char> bytes(static_cast<size_t>(row_bytes(DType::Q4_0, n)));
      REQUIRE(encode_row(DType::Q4_0, heads->data(), bytes.data(), n));
      REQUIRE(decode_row(DType::Q4_0, bytes.data(), heads->data(), n));
    }
    return out;
  }
};

}  // namespace

TEST_CASE("kv rotation: the largest power of two in the head size, of four-bit caches only") {
  const std::pair<int64_t, int64_t> sizes[] = {{64, 64},   {80, 16}, {96, 32}, {128, 128},
                                               {256, 256}, {32, 32}, {48, 16}};
  for (const auto& [head_dim, block] : sizes) {
    CHECK(kv_rotation(DType::Q4_0, head_dim) == block);
    for (const DType type : {DType::F32, DType::F16, DType::BF16, DType::Q8_0}) CHECK(kv_rotation(type, head_dim) == 1);
  }
  CHECK(is_kv_format(DType::Q4_0));
  CHECK_FALSE(is_kv_format(DType::Q4_1));
}

TEST_CASE("kv rotation: the transform is its matrix, orthonormal and its own inverse, on every instruction set") {
  for (const cpu::Isa isa : available())
    for (const auto& [n, block] :
         {std::pair<int64_t, int64_t>{64, 64}, {80, 16}, {96, 32}, {128, 128}, {256, 256}, {6, 2}, {12, 4}, {8, 8}}) {
      INFO(cpu::to_string(isa) << " " << n << " by " << block);
      const cpu::PointwiseTable& table = cpu::pointwise(isa);
      for (int64_t at = 0; at < n; at += 7) {
        Floats unit(static_cast<size_t>(n), 0.0f);
        unit[static_cast<size_t>(at)] = 1;
        table.hadamard(unit.data(), n, block);
        for (int64_t i = 0; i < n; ++i) {
          const bool odd = std::popcount(static_cast<uint64_t>(i % block) & static_cast<uint64_t>(at % block)) % 2;
          const double size = i / block == at / block ? 1 / std::sqrt(static_cast<double>(block)) : 0;
          REQUIRE(unit[static_cast<size_t>(i)] == Approx(odd ? -size : size).margin(1e-12));
        }
      }
      const Floats before = random_floats(n, 5);
      Floats x = before;
      table.hadamard(x.data(), n, block);
      double length = 0, length_before = 0;
      for (size_t i = 0; i < x.size(); ++i) length += x[i] * x[i], length_before += before[i] * before[i];
      CHECK(length == Approx(length_before));
      CHECK(nmse(x, before) > 0.1);
      table.hadamard(x.data(), n, block);
      CHECK(nmse(x, before) < 1e-12);
      table.hadamard(x.data(), n, 1);
      CHECK(nmse(x, before) < 1e-12);
    }
}

TEST_CASE("kv rotation: a q4_0 cache costs little where keys are even and where they are not") {
  const auto ref = make_backend("ref"), cpu = make_backend("cpu");
  for (const int64_t head_dim : {64, 96, 128, 256}) {
    INFO("heads of " << head_dim);
    const Past even(head_dim, 1), uneven(head_dim, 30);
    for (Backend* backend : {ref.get(), cpu.get()}) {
      INFO(backend->name());
      const Floats exact = even.attend(*ref, DType::F32, DType::F32),
                   hard = uneven.attend(*ref, DType::F32, DType::F32);
      CHECK(nmse(even.attend(*backend, DType::F16, DType::F16), exact) < 1e-6);
      const double rotated = nmse(even.attend(*backend, DType::Q4_0, DType::Q4_0), exact);
      CHECK(rotated < 1.5e-2);
      CHECK(rotated > 1e-3);  // four bits were there
      const double keys = nmse(uneven.attend(*backend, DType::Q4_0, DType::F32), hard);
      const double unrotated_keys = nmse(uneven.rounded().attend(*backend, DType::F32, DType::F32), hard);
      CHECK(keys < 0.3 * unrotated_keys);
    }
  }
}

TEST_CASE("kv rotation: keys and values may be of different types, and the CPU agrees with the oracle") {
  const auto ref = make_backend("ref");
  for (const int64_t head_dim : {32, 64, 96, 128, 256})
    for (const auto& [k_type, v_type] : {std::pair{DType::Q4_0, DType::Q4_0},
                                         {DType::Q4_0, DType::F16},
                                         {DType::F16, DType::Q4_0},
                                         {DType::Q8_0, DType::Q4_0}}) {
      const Past past(head_dim, 4);
      const Floats wanted = past.attend(*ref, k_type, v_type);
      for (const cpu::Isa isa : available()) {
        INFO(cpu::to_string(isa) << " heads of " << head_dim << " " << format_name(k_type) << " "
                                 << format_name(v_type));
        BackendOptions options;
        options.isa = cpu::to_string(isa);
        // Where rounding falls the other way a code is one off: seldom.
        CHECK(nmse(past.attend(*make_backend("cpu", options), k_type, v_type), wanted) < 1e-5);
      }
    }
}
