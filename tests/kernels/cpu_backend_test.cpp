// The cpu backend: every op and stage against the oracle, every fused stage against the primitives it is made of (bit
// for bit), and a step of many tokens against steps of one (bit for bit).
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul.h"
#include "quant/formats.h"
#include "tests/catch.h"
#include "tests/kernels/views.h"

using namespace infer;
using cpu::Isa;

namespace {

using Floats = std::vector<float>;

std::vector<BackendOptions> all_options() {
  std::vector<BackendOptions> list;
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (!cpu::isa_available(isa)) continue;
    for (int threads : {1, 2, 3}) list.push_back({threads, cpu::to_string(isa)});
  }
  return list;
}

std::string text(const BackendOptions& o) { return o.isa + " " + std::to_string(o.n_threads); }

/// Positions of what is not finite must agree; the rest is compared as noise over signal.
double nmse(const Floats& found, const Floats& wanted) {
  REQUIRE(found.size() == wanted.size());
  double error = 0, power = 0;
  int64_t misplaced = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    misplaced += std::isnan(found[i]) != std::isnan(wanted[i]);
    if (!std::isfinite(wanted[i])) continue;
    error += (static_cast<double>(found[i]) - wanted[i]) * (static_cast<double>(found[i]) - wanted[i]);
    power += static_cast<double>(wanted[i]) * wanted[i];
  }
  REQUIRE(misplaced == 0);
  return power > 0 ? error / power : error;
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

Floats poison(int64_t n) { return Floats(static_cast<size_t>(n), std::numeric_limits<float>::quiet_NaN()); }

/// A random weight [rows, cols] in a format's blocks, and the same packed for a backend.
struct Weight {
  std::vector<char> bytes;
  Tensor host, packed;
  Buffer buffer;

  Weight(DType type, int64_t rows, int64_t cols, uint32_t seed) {
    bytes = encoded_once(type, rows, cols, seed, [&] {
      std::vector<char> made(static_cast<size_t>(tensor_bytes(type, rows, cols)));
      const Floats values = random_floats(rows * cols, seed, 0.1f);
      if (!encode_row(type, values.data(), made.data(), rows * cols)) random_blocks(type, seed, made);
      return made;
    });
    host = Tensor(bytes.data(), type, {rows, cols});
  }
  // Formats that have no encoder here: any bits are codes, only the scales must be sensible.
  static void random_blocks(DType type, uint32_t seed, std::vector<char>& to) {
    std::mt19937 rng(seed);
    for (char& c : to) c = static_cast<char>(rng());
    const auto block = static_cast<size_t>(find_format(type)->block_bytes);
    const uint16_t small = f32_to_f16(0.002f);
    const size_t at = type == DType::Q6_K ? block - 2 : 0;
    for (size_t i = 0; i < to.size(); i += block) {
      std::memcpy(&to[i + at], &small, 2);
      if (type == DType::Q4_K || type == DType::Q5_K) std::memcpy(&to[i + 2], &small, 2);
    }
  }
  const Tensor& on(Backend& backend) {
    const size_t n = backend.packed_bytes(host, WeightRole::matrix);
    buffer = n > 0 ? backend.allocate(n) : nullptr;
    packed = backend.pack(host, WeightRole::matrix, buffer.get());
    return packed;
  }
};

struct Shape {
  int64_t dim = 64, n_heads = 4, n_kv_heads = 2, head_dim = 16, ffn_dim = 96, vocab = 100;
  DType wq = DType::Q8_0, wv = DType::Q8_0, wo = DType::Q8_0, gate = DType::Q8_0, down = DType::Q8_0;
  DType cache = DType::F16;
  bool biases = false, head_norms = false, post_norms = false, adjacent = false;
  Activation activation = Activation::silu;
  float softcap = 0, residual_scale = 1;
};

enum class Way { fused, composed };

/// One layer's buffers for n tokens, on one backend. Each method runs a stage and returns all that it wrote.
struct Layer {
  Backend& backend;
  Shape s;
  int64_t n;
  Weight wq, wk, wv, wo, gate, up, down, head;
  Floats norm, bq, bk, bv, bo, b_gate, b_up, b_down, q_norm, k_norm, post, head_bias, cos_sin;
  std::vector<int32_t> positions, slots, rows;
  Floats x, attn;
  Floats q, k, v, normed, branch, gated, upped, logits_out;
  std::vector<char> k_cache, v_cache;

  Layer(Backend& b, const Shape& shape, int64_t n_tokens)
      : backend(b),
        s(shape),
        n(n_tokens),
        wq(s.wq, s.n_heads * s.head_dim, s.dim, 1),
        wk(s.wq, s.n_kv_heads * s.head_dim, s.dim, 2),
        wv(s.wv, s.n_kv_heads * s.head_dim, s.dim, 3),
        wo(s.wo, s.dim, s.n_heads * s.head_dim, 4),
        gate(s.gate, s.ffn_dim, s.dim, 5),
        up(s.wv, s.ffn_dim, s.dim, 6),
        down(s.down, s.dim, s.ffn_dim, 7),
        head(s.wq, s.vocab, s.dim, 8) {
    norm = random_floats(s.dim, 10), post = random_floats(s.dim, 11);
    bq = random_floats(s.n_heads * s.head_dim, 12), bk = random_floats(s.n_kv_heads * s.head_dim, 13);
    bv = random_floats(s.n_kv_heads * s.head_dim, 14), bo = random_floats(s.dim, 15);
    b_gate = random_floats(s.ffn_dim, 16), b_up = random_floats(s.ffn_dim, 17), b_down = random_floats(s.dim, 18);
    q_norm = random_floats(s.head_dim, 19), k_norm = random_floats(s.head_dim, 20);
    head_bias = random_floats(s.vocab, 21);
    cos_sin = random_floats(1000 * (s.head_dim / 2), 22);
    x = random_floats(n * s.dim, 23), attn = random_floats(n * s.n_heads * s.head_dim, 24);
    for (int64_t t = 0; t < n; ++t) {
      positions.push_back(static_cast<int32_t>(t + 3));
      slots.push_back(static_cast<int32_t>((t * 7) % (n_pages() * kPageTokens)));  // 7 and 32 have no common factor
      rows.push_back(static_cast<int32_t>(n - 1 - t));
    }
    const int64_t cache_rows = n_pages() * s.n_kv_heads * kPageTokens;
    k_cache.assign(static_cast<size_t>(tensor_bytes(s.cache, cache_rows, s.head_dim)), 0);
    v_cache = k_cache;
    q = poison(n * s.n_heads * s.head_dim), k = poison(n * s.n_kv_heads * s.head_dim), v = k;
    normed = poison(n * s.dim), branch = poison(n * s.dim), gated = poison(n * s.ffn_dim), upped = gated;
    logits_out = poison(n * s.vocab);
  }
  /// Keeps the tokens [from, from + count) of a layer of more.
  Layer slice(int64_t from, int64_t count) const {
    Layer part(backend, s, count);
    auto cut = [&](const Floats& all, int64_t width) {
      return Floats(all.begin() + from * width, all.begin() + (from + count) * width);
    };
    part.x = cut(x, s.dim), part.attn = cut(attn, s.n_heads * s.head_dim);
    part.positions.assign(positions.begin() + from, positions.begin() + from + count);
    part.k_cache.assign(k_cache.size(), 0), part.v_cache = part.k_cache;
    part.slots.assign(slots.begin() + from, slots.begin() + from + count);
    return part;
  }
  int64_t n_pages() const { return 1 + 200 / kPageTokens * 2; }
  Tensor maybe(bool wanted, Floats& values) {
    return wanted ? view(values, {static_cast<int64_t>(values.size())}) : Tensor();
  }
  Tensor cache(std::vector<char>& bytes) {
    const auto row = static_cast<int64_t>(row_bytes(s.cache, s.head_dim));
    const int64_t pages = static_cast<int64_t>(bytes.size()) / (row * s.n_kv_heads * kPageTokens);
    return Tensor(bytes.data(), s.cache, {pages, s.n_kv_heads, kPageTokens, s.head_dim});
  }
  AddArgs add_args() {
    AddArgs a;
    a.x = view(x, {n, s.dim}), a.branch = view(branch, {n, s.dim});
    a.norm = maybe(s.post_norms, post), a.scale = s.residual_scale;
    return a;
  }
  RopeStoreArgs rope_args() {
    RopeStoreArgs r;
    r.q = view(q, {n, s.n_heads, s.head_dim});
    r.k = view(k, {n, s.n_kv_heads, s.head_dim}), r.v = view(v, {n, s.n_kv_heads, s.head_dim});
    r.q_norm = maybe(s.head_norms, q_norm), r.k_norm = maybe(s.head_norms, k_norm);
    r.rope = {view(cos_sin, {500, s.head_dim / 4, 2}), s.adjacent};  // the rest of the head stays as it is
    r.positions = view(positions, {n}), r.slots = view(slots, {n});
    r.k_cache = cache(k_cache), r.v_cache = cache(v_cache);
    return r;
  }
  Floats cache_values(const std::vector<char>& bytes) const {
    Floats out(bytes.size() / static_cast<size_t>(row_bytes(s.cache, s.head_dim)) * static_cast<size_t>(s.head_dim));
    REQUIRE(decode_row(s.cache, bytes.data(), out.data(), static_cast<int64_t>(out.size())));
    return out;
  }

  Floats attn_in(Way way = Way::fused) {
    AttnInArgs a;
    a.x = view(x, {n, s.dim}), a.norm = view(norm, {s.dim}), a.normed = view(normed, {n, s.dim});
    a.wq = wq.on(backend), a.wk = wk.on(backend), a.wv = wv.on(backend);
    a.bq = maybe(s.biases, bq), a.bk = maybe(s.biases, bk), a.bv = maybe(s.biases, bv);
    a.rope_store = rope_args();
    way == Way::fused ? backend.attn_in(a) : backend.Backend::attn_in(a);
    Floats out = q;
    for (const auto* c : {&k_cache, &v_cache}) {
      const Floats values = cache_values(*c);
      out.insert(out.end(), values.begin(), values.end());
    }
    return out;
  }
  Floats attn_out(Way way = Way::fused) {
    AttnOutArgs a{view(attn, {n, s.n_heads * s.head_dim}), wo.on(backend), maybe(s.biases, bo), add_args()};
    way == Way::fused ? backend.attn_out(a) : backend.Backend::attn_out(a);
    return x;
  }
  Floats ffn(Way way = Way::fused) {
    FfnArgs a;
    a.norm = view(norm, {s.dim}), a.activation = s.activation, a.add = add_args();
    a.w_gate = gate.on(backend), a.w_up = up.on(backend), a.w_down = down.on(backend);
    a.b_gate = maybe(s.biases, b_gate), a.b_up = maybe(s.biases, b_up), a.b_down = maybe(s.biases, b_down);
    a.normed = view(normed, {n, s.dim}), a.gate = view(gated, {n, s.ffn_dim}), a.up = view(upped, {n, s.ffn_dim});
    way == Way::fused ? backend.ffn(a) : backend.Backend::ffn(a);
    return x;
  }
  Floats logits(Way way = Way::fused) {
    LogitsArgs a;
    a.x = view(x, {n, s.dim}), a.rows = view(rows, {n}), a.norm = view(norm, {s.dim});
    a.head = head.on(backend), a.bias = maybe(s.biases, head_bias);
    a.scale = s.residual_scale, a.softcap = s.softcap;
    a.normed = view(normed, {n, s.dim}), a.out = view(logits_out, {n, s.vocab});
    way == Way::fused ? backend.logits(a) : backend.Backend::logits(a);
    return logits_out;
  }
};

using StageFn = Floats (Layer::*)(Way);
constexpr const char* kStageNames[] = {"attn_in", "attn_out", "ffn", "logits"};
constexpr StageFn kStages[] = {&Layer::attn_in, &Layer::attn_out, &Layer::ffn, &Layer::logits};

Shape plain_shape(DType type) {
  Shape s;
  s.wq = s.wv = s.wo = s.gate = s.down = type;
  return s;
}

std::vector<Shape> shapes() {
  std::vector<Shape> list = {plain_shape(DType::F32), plain_shape(DType::F16), Shape{}};
  Shape odd = plain_shape(DType::F32);  // nothing is a multiple of anything
  odd.dim = 34, odd.head_dim = 20, odd.ffn_dim = 77, odd.vocab = 51, odd.n_heads = 3, odd.n_kv_heads = 1;
  odd.biases = odd.head_norms = odd.adjacent = true;
  list.push_back(odd);
  Shape gemma;  // every option
  gemma.biases = gemma.head_norms = gemma.post_norms = true;
  gemma.activation = Activation::gelu_tanh, gemma.softcap = 5, gemma.residual_scale = 0.5f;
  gemma.cache = DType::Q8_0, gemma.head_dim = 32;
  list.push_back(gemma);
  Shape four_bits = plain_shape(DType::F32);
  four_bits.cache = DType::Q4_0, four_bits.head_dim = 32, four_bits.head_norms = true;
  list.push_back(four_bits);
  Shape mixed;  // formats of different forms side by side, as in files of mixed quantisation
  mixed.dim = 256, mixed.ffn_dim = 512, mixed.vocab = 300, mixed.head_dim = 64;
  mixed.wq = DType::Q4_K, mixed.wv = DType::Q6_K, mixed.wo = DType::Q4_0, mixed.gate = DType::Q4_K;
  mixed.down = DType::Q6_K, mixed.cache = DType::BF16;
  list.push_back(mixed);
  mixed.wv = DType::BF16, mixed.gate = DType::F32, mixed.down = DType::BF16, mixed.cache = DType::F32;
  list.push_back(mixed);
  return list;
}

bool is_float(DType type) { return type == DType::F32 || type == DType::F16 || type == DType::BF16; }

/// What rounding the operands may cost (int8 activations: 5e-4 a product, and ffn has two in a row). Random bits as
/// weights are far from zero mean, which costs more.
double bar(const Shape& s) {
  double worst = 1e-8;
  for (DType type : {s.wq, s.wv, s.wo, s.gate, s.down, s.cache}) {
    double bar = 1e-3;
    if (type == DType::F32 || type == DType::F16) bar = 1e-8;
    if (type == DType::BF16) bar = 2e-5;
    if (type == DType::Q4_K || type == DType::Q6_K) bar = 3e-3;
    worst = std::max(worst, bar);
  }
  return worst;
}

}  // namespace

TEST_CASE("a fused stage gives the oracle's numbers, and the bits of its primitives where it rounds like them") {
  const auto ref = make_backend("ref");
  int at = 0;
  for (const Shape& shape : shapes()) {
    for (int64_t n : {1, 2, 3, 9, 130}) {
      for (size_t i = 0; i < std::size(kStages); ++i) {
        const StageFn stage = kStages[i];
        const Floats wanted = (Layer(*ref, shape, n).*stage)(Way::fused);
        for (const BackendOptions& options : all_options()) {
          if (++at % 4 != 0 && n > 2) continue;  // enough of the larger ones
          const auto backend = make_backend("cpu", options);
          INFO("stage " << i << " tokens " << n << " dim " << shape.dim << " " << text(options));
          const Floats fused = (Layer(*backend, shape, n).*stage)(Way::fused);
          REQUIRE(nmse(fused, wanted) < bar(shape));
          const Floats composed = (Layer(*backend, shape, n).*stage)(Way::composed);
          // q, k, v and the head take int8 activations in two terms, the primitive matmul in one.
          const bool quantised = !is_float(shape.wq) || (i == 0 && !is_float(shape.wv));
          if ((i == 0 || i == 3) && quantised) {
            REQUIRE(nmse(fused, wanted) <= nmse(composed, wanted));
          } else {
            REQUIRE(same_bits(fused, composed));
          }
        }
      }
    }
  }
}

TEST_CASE("without fusion a stage has the bits of its primitives") {
  for (const Shape& shape : shapes()) {
    for (const int64_t n : {1, 9}) {
      for (size_t i = 0; i < std::size(kStages); ++i) {
        BackendOptions options;
        options.n_threads = 2;
        const auto fused = make_backend("cpu", options);
        options.fusion = false;
        const auto plain = make_backend("cpu", options);
        const Floats composed = (Layer(*fused, shape, n).*kStages[i])(Way::composed);
        CHECK(same_bits((Layer(*plain, shape, n).*kStages[i])(Way::fused), composed));
        options.fusion = true, options.unfused = {kStageNames[i]};  // this one alone
        const auto some = make_backend("cpu", options);
        for (size_t j = 0; j < std::size(kStages); ++j) {
          const Floats wanted = i == j ? composed : (Layer(*fused, shape, n).*kStages[j])(Way::fused);
          CHECK(same_bits((Layer(*some, shape, n).*kStages[j])(Way::fused), wanted));
        }
      }
    }
  }
}

TEST_CASE("a token gets the same bits alone and in any company") {
  for (const Shape& shape : shapes()) {
    for (const BackendOptions& options : all_options()) {
      if (options.n_threads == 3) continue;
      const auto backend = make_backend("cpu", options);
      const int64_t n = 67;
      Layer all(*backend, shape, n);
      std::vector<Layer> parts;
      const int64_t sizes[] = {1, 2, 8, 9, 47};
      int64_t from = 0;
      for (int64_t count : sizes) {
        parts.push_back(all.slice(from, count));
        from += count;
      }
      REQUIRE(from == n);
      const Floats whole_out = all.attn_out();
      all.x = random_floats(n * shape.dim, 23);
      const Floats whole_ffn = all.ffn();
      all.attn_in();
      Floats out, ffn, q;
      for (Layer& part : parts) {
        const Floats x = part.x;
        const Floats a = part.attn_out();
        out.insert(out.end(), a.begin(), a.end());
        part.x = x;
        const Floats b = part.ffn();
        ffn.insert(ffn.end(), b.begin(), b.end());
        part.attn_in();
        q.insert(q.end(), part.q.begin(), part.q.end());
      }
      INFO(text(options) << " dim " << shape.dim);
      CHECK(same_bits(out, whole_out));
      CHECK(same_bits(ffn, whole_ffn));
      CHECK(same_bits(q, all.q));
    }
  }
}

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

TEST_CASE("nothing is allocated after prepare") {
  Shape shape = shapes().back();
  for (int threads : {1, 3}) {
    const auto backend = make_backend("cpu", {threads, ""});
    Needs needs;
    needs.matrix_formats = {shape.wq, shape.wv, shape.wo, shape.gate, shape.down};
    needs.head_dim = shape.head_dim, needs.k_type = needs.v_type = shape.cache;
    needs.max_tokens = 64, needs.max_seqs = 2, needs.max_context = 4096;
    needs.max_width = std::max(shape.ffn_dim, shape.dim), needs.n_heads = shape.n_heads;
    backend->prepare(needs);
    const int64_t held = backend->stats().bytes;
    CHECK(held > 0);
    for (int64_t n : {1, 64, 5}) {
      Layer layer(*backend, shape, n);
      for (Weight* w : {&layer.wq, &layer.wk, &layer.wv, &layer.wo, &layer.gate, &layer.up, &layer.down, &layer.head}) {
        w->on(*backend);
      }
      const int64_t before = backend->stats().allocations;
      layer.attn_in(), layer.attn_out(), layer.ffn(), layer.logits();
      CHECK(backend->stats().allocations == before + 8);  // on() packs each of the eight weights again
    }
    CHECK(backend->stats().bytes == held);
    CHECK(backend->stats().stages == 12);
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
