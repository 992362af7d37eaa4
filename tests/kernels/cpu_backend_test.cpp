// The cpu backend: its primitives against the oracle, its memory, and what it refuses and says.
#include "tests/kernels/cpu_side.h"

namespace cpu_backend_test {
using namespace infer;
using namespace infer::cpu_test;
using cpu::Isa;

TEST_CASE("primitives on the cpu agree with the oracle") {
  const auto ref = make_backend("ref");
  for (const BackendOptions& options : all_options()) {
    const auto cpu = make_backend("cpu", options);
    for (int64_t rows : {1, 2, 33}) {
      for (int64_t cols : {1, 7, 16, 31, 33, 64, 257, 1000}) {
        INFO(text(options) << " rows " << rows << " cols " << cols);
        Floats x = random_floats(rows * cols, 1, 30), y = random_floats(rows * cols, 2, 3), w = random_floats(cols, 3);
        auto both = [&](auto op, double limit) {
          Floats results[2];
          Backend* backends[] = {ref.get(), cpu.get()};
          for (int i = 0; i < 2; ++i) {
            Floats in = x, branch = y, out = poison(rows * cols);
            op(*backends[i], in, branch, out);
            results[i] = out;
            results[i].insert(results[i].end(), in.begin(), in.end());
          }
          CHECK(nmse(results[1], results[0]) < limit);
        };
        both(
            [&](Backend& b, Floats& in, Floats&, Floats& out) {
              b.norm({view(in, {rows, cols}), view(w, {cols}), 1e-6f, view(out, {rows, cols})});
            },
            1e-12);
        for (Activation activation : {Activation::silu, Activation::gelu_tanh}) {
          both(
              [&](Backend& b, Floats& in, Floats& up, Floats& out) {
                b.activate({view(in, {rows, cols}), view(up, {rows, cols}), activation, view(out, {rows, cols})});
              },
              1e-12);
        }
        for (bool normed : {false, true}) {
          both(
              [&](Backend& b, Floats& in, Floats& branch, Floats& out) {
                AddArgs a{view(in, {rows, cols}), view(branch, {rows, cols}), {}, 1e-5f, 0.7f};
                if (normed) a.norm = view(w, {cols});
                b.add(a);
                out.assign(out.size(), 0);
              },
              1e-12);
        }
        for (float softcap : {0.0f, 0.5f, 30.0f}) {
          both(
              [&](Backend& b, Floats& in, Floats&, Floats& out) {
                b.scale_softcap(view(in, {rows, cols}), 0.3f, softcap);
                out.assign(out.size(), 0);
              },
              1e-12);
        }
        std::vector<int32_t> from = {static_cast<int32_t>(rows - 1), 0};
        both(
            [&](Backend& b, Floats& in, Floats&, Floats& out) {
              out.assign(static_cast<size_t>(2 * cols), NAN);
              b.gather(view(in, {rows, cols}), view(from, {2}), view(out, {2, cols}));
            },
            1e-30);
      }
    }
  }
}

TEST_CASE("activations survive extreme numbers as the oracle does") {
  const auto ref = make_backend("ref");
  Floats gate = {0.0f, -0.0f, 1e-30f, -1e-30f, 20,     -20,      87,  -87,       90,   -90,   104,
                 -104, 1e5f,  -1e5f,  1e20f,   -1e20f, INFINITY, NAN, -INFINITY, 0.6f, 0.63f, -0.6f};
  Floats up(gate.size(), 1.0f);
  const auto n = static_cast<int64_t>(gate.size());
  for (const BackendOptions& options : all_options()) {
    const auto cpu = make_backend("cpu", options);
    for (Activation activation : {Activation::silu, Activation::gelu_tanh}) {
      Floats want = poison(n), got = poison(n);
      ref->activate({view(gate, {1, n}), view(up, {1, n}), activation, view(want, {1, n})});
      cpu->activate({view(gate, {1, n}), view(up, {1, n}), activation, view(got, {1, n})});
      for (size_t i = 0; i < gate.size(); ++i) {
        INFO(text(options) << " gate " << gate[i] << " wants " << want[i] << " got " << got[i]);
        CHECK(std::isnan(got[i]) == std::isnan(want[i]));
        if (std::isfinite(want[i])) CHECK(got[i] == Approx(want[i]).epsilon(2e-6).margin(1e-37));
        if (std::isinf(want[i])) CHECK(got[i] == want[i]);
      }
    }
    Floats a = gate, b = gate;
    ref->scale_softcap(view(a, {1, n}), 1, 30);
    cpu->scale_softcap(view(b, {1, n}), 1, 30);
    for (size_t i = 0; i < a.size(); ++i) {
      CHECK(std::isnan(a[i]) == std::isnan(b[i]));
      if (!std::isnan(a[i])) CHECK(b[i] == Approx(a[i]).epsilon(1e-6).margin(1e-37));
    }
  }
}

TEST_CASE("embedding rows come from any format, unpacked") {
  const auto ref = make_backend("ref");
  for (DType type : {DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::Q6_K}) {
    Weight table(type, 50, 256, 9);
    std::vector<int32_t> ids = {49, 0, 7, 7, 3};
    for (const BackendOptions& options : all_options()) {
      const auto cpu = make_backend("cpu", options);
      CHECK(cpu->packed_bytes(table.host, WeightRole::embedding) == 0);
      Floats want = poison(5 * 256), got = want;
      ref->embed({table.host, view(ids, {5}), 16, view(want, {5, 256})});
      cpu->embed({cpu->pack(table.host, WeightRole::embedding, nullptr), view(ids, {5}), 16, view(got, {5, 256})});
      CHECK(same_bits(got, want));
    }
    std::vector<int32_t> wrong = {50};
    Floats out = poison(256);
    CHECK_THROWS_AS(make_backend("cpu")->embed({table.host, view(wrong, {1}), 1, view(out, {1, 256})}), Error);
  }
}

TEST_CASE("attention on the threads of the backend is attention on one") {
  const auto ref = make_backend("ref");
  const int64_t heads = 6, kv_heads = 2, head_dim = 32, tokens = 12, pages = 60;
  Floats q = random_floats(tokens * heads * head_dim, 1),
         k = random_floats(pages * kv_heads * kPageTokens * head_dim, 2);
  Floats v = random_floats(pages * kv_heads * kPageTokens * head_dim, 3);
  std::vector<int32_t> table(3 * 40), starts = {0, 1, 11, 12}, lengths = {1200, 10, 530};
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>((i * 7) % static_cast<size_t>(pages));
  auto run = [&](Backend& b) {
    Floats out = poison(tokens * heads * head_dim);
    AttentionArgs a;
    a.q = view(q, {tokens, heads, head_dim}), a.out = view(out, {tokens, heads, head_dim});
    a.k_cache = view(k, {pages, kv_heads, kPageTokens, head_dim});
    a.v_cache = view(v, {pages, kv_heads, kPageTokens, head_dim});
    a.page_table = view(table, {3, 40}), a.q_start = view(starts, {4}), a.kv_len = view(lengths, {3});
    a.scale = 0.2f;
    b.attention(a);
    return out;
  };
  const Floats want = run(*ref);
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (!cpu::isa_available(isa)) continue;
    Floats first;
    for (int threads : {1, 2, 3, 8}) {
      const auto cpu = make_backend("cpu", {threads, cpu::to_string(isa)});
      Needs needs;
      needs.head_dim = head_dim, needs.max_seqs = 3, needs.max_context = 1280, needs.n_heads = heads;
      needs.max_tokens = tokens, needs.max_width = heads * head_dim;
      cpu->prepare(needs);
      const Floats got = run(*cpu);
      CHECK(nmse(got, want) < 1e-11);
      if (first.empty()) first = got;
      CHECK(same_bits(got, first));
    }
  }
}

TEST_CASE("the backend's memory is zeroed, aligned, counted, and may outlive it") {
  auto backend = make_backend("cpu", {1, ""});
  const int64_t before = backend->stats().bytes;
  Buffer nothing = backend->allocate(0), small = backend->allocate(100), large = backend->allocate(size_t{9} << 20);
  for (const Buffer& b : {small, large}) CHECK(reinterpret_cast<uintptr_t>(b.get()) % 64 == 0);
  CHECK(static_cast<char*>(small.get())[99] == 0);
  CHECK(static_cast<char*>(large.get())[(size_t{9} << 20) - 1] == 0);
  CHECK(backend->stats().bytes == before + 100 + (int64_t{9} << 20));
  small.reset();
  CHECK(backend->stats().bytes == before + (int64_t{9} << 20));
  CHECK_THROWS_AS(backend->allocate(SIZE_MAX), Error);
  CHECK_THROWS_AS(backend->allocate(SIZE_MAX / 2), Error);
  backend.reset();
  static_cast<char*>(large.get())[5] = 1;
  CHECK(static_cast<char*>(large.get())[5] == 1);
}

TEST_CASE("prepare refuses by name what has no kernel") {
  const auto backend = make_backend("cpu", {1, ""});
  auto kind_and_text = [&](const Needs& needs) {
    try {
      backend->prepare(needs);
    } catch (const Error& e) {
      return std::to_string(static_cast<int>(e.kind())) + " " + e.what();
    }
    return std::string("no error");
  };
  Needs needs;
  needs.head_dim = 64, needs.max_tokens = 8, needs.max_width = 64;
  CHECK(kind_and_text(needs) == "no error");
  needs.head_dim = 80, needs.v_type = DType::Q8_0;
  CHECK(kind_and_text(needs).find("2 KV cache") == 0);
  CHECK(kind_and_text(needs).find("Q8_0 at 80") != std::string::npos);
  needs.v_type = DType::Q4_0, needs.head_dim = 64;
  CHECK(kind_and_text(needs) == "no error");
  needs.v_type = DType::Q5_0;
  CHECK(kind_and_text(needs).find("Q5_0") != std::string::npos);
  needs.v_type = DType::F16, needs.head_dim = 4096;
  CHECK(kind_and_text(needs).find("3 attention") == 0);
  needs.head_dim = 64, needs.matrix_formats = {DType::I32};
  CHECK(kind_and_text(needs).find("3 weights") == 0);
  needs.matrix_formats = {}, needs.embedding_formats = {static_cast<DType>(21)};
  CHECK(kind_and_text(needs).find("IQ3_S") != std::string::npos);
}

TEST_CASE("vectors become floats, without a copy where they are") {
  const auto backend = make_backend("cpu", {1, ""});
  Floats values = random_floats(40, 1);
  const Tensor plain = view(values, {40});
  CHECK(backend->packed_bytes(plain, WeightRole::vector) == 0);
  CHECK(backend->pack(plain, WeightRole::vector, nullptr).data == values.data());
  std::vector<uint16_t> halves(40);
  REQUIRE(encode_row(DType::F16, values.data(), halves.data(), 40));
  const Tensor half(halves.data(), DType::F16, {40});
  REQUIRE(backend->packed_bytes(half, WeightRole::vector) == 160);
  Floats copy = poison(40);
  const Tensor packed = backend->pack(half, WeightRole::vector, copy.data());
  CHECK(packed.dtype == DType::F32);
  CHECK(packed.n_elements() == 40);
  CHECK(nmse(copy, values) < 1e-6);
}

TEST_CASE("the backend says what it computes with") {
  CHECK(make_backend("cpu", {1, "scalar"})->describe() == "cpu (scalar, 1 thread)");
  CHECK(make_backend("cpu", {2, "scalar"})->describe() == "cpu (scalar, 2 threads)");
  CHECK(make_backend("cpu", {2, ""})->n_threads() == 2);
  CHECK_THROWS_AS(make_backend("cpu", {1, "sse9"}), Error);
  int calls = 0;
  const auto backend = make_backend("cpu", {1, ""});
  backend->run(7, [&] { ++calls; });
  CHECK(calls == 1);
  CHECK(backend->stats().runs == 1);
}

}  // namespace cpu_backend_test
