// What tests of the cuda backend share: tensors that live on either backend, with guard bytes behind each and NaN in
// every output, random weights of any format, and the comparison with the oracle. Everything goes through the backend
// seam, so the tests compile without CUDA; without a usable GPU each says SKIPPED instead of passing quietly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <iostream>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/cuda_row.h"
#include "kernels/cuda/head_sizes.h"
#include "quant/formats.h"
#include "tests/catch.h"
#include "tests/kernels/views.h"

namespace infer::cuda_test {

using Floats = std::vector<float>;
using Ints = std::vector<int32_t>;
using Bytes = std::vector<char>;
using Dims = std::initializer_list<int64_t>;

inline constexpr int64_t kMostTokens = 160, kMostWidth = 2304;

/// Whether to skip a test, having said so.
inline bool skipped() {
  static const std::string reason = cuda_unusable_reason(0);
  if (reason.empty()) return false;
  std::cout << "SKIPPED: no CUDA device: " << reason << std::endl;
  static bool warned = false;
  if (!warned) WARN("SKIPPED: no CUDA device: " << reason << "; nothing of kernels/cuda was tested");
  warned = true;
  return true;
}

template <class... F>
std::vector<DType> ids(FormatList<F...>) {
  return {F::id...};
}
inline const std::vector<DType> kFormats = ids(Formats{});
/// Of matrices.
inline const std::vector<DType> kWeightFormats = ids(GpuFormats{});

inline bool is_plain(DType type) { return type == DType::F32 || type == DType::F16 || type == DType::BF16; }

inline Needs needs_of_these_tests() {
  Needs needs;
  needs.matrix_formats = kWeightFormats, needs.embedding_formats = kFormats;
  needs.head_dim = 256, needs.n_heads = 64;
  needs.max_tokens = kMostTokens, needs.max_seqs = 48, needs.max_context = 4096, needs.max_width = kMostWidth;
  return needs;
}

inline Backend& ref() {
  static Backend* backend = make_backend("ref").release();
  return *backend;
}
/// Never freed: the driver may be gone when statics are destroyed.
inline Backend& gpu() {
  static Backend* backend = [] {
    auto made = make_backend("cuda");
    made->prepare(needs_of_these_tests());
    return made.release();
  }();
  return *backend;
}

inline Floats poison(int64_t n) { return Floats(static_cast<size_t>(n), std::numeric_limits<float>::quiet_NaN()); }

/// Noise over signal; infinite when what is not a number lies elsewhere.
inline double nmse(const Floats& found, const Floats& wanted) {
  if (found.size() != wanted.size()) return INFINITY;
  double error = 0, power = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    if (std::isnan(found[i]) != std::isnan(wanted[i])) return INFINITY;
    if (std::isnan(wanted[i]) || found[i] == wanted[i]) continue;
    error += (static_cast<double>(found[i]) - wanted[i]) * (static_cast<double>(found[i]) - wanted[i]);
  }
  for (const float w : wanted)
    if (std::isfinite(w)) power += static_cast<double>(w) * w;
  return power > 0 ? error / power : error;
}

/// A random weight in a format's blocks: any bits are codes, the scales are ordinary numbers.
struct Weight {
  Bytes bytes;
  Tensor host;

  Weight(DType type, int64_t rows, int64_t cols, uint32_t seed) {
    bytes.resize(static_cast<size_t>(tensor_bytes(type, rows, cols)));
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, 0.1f);
    std::uniform_real_distribution<float> scale(0.005f, 0.02f);
    for (size_t i = 0; i + 4 <= bytes.size(); i += 4) {
      const auto word = static_cast<uint32_t>(random());
      std::memcpy(&bytes[i], &word, 4);
    }
    visit_gpu_format(type, [&]<class F>() {
      for (size_t at = 0; at < bytes.size(); at += sizeof(typename F::Block)) {
        typename F::Block block;
        std::memcpy(&block, &bytes[at], sizeof(block));
        if constexpr (F::block == 1) {
          block = F::encode(normal(random));
        } else if constexpr (FloatFormat<F>) {
          for (float& d : block.d) d = scale(random) * (random() % 2 ? 0.05f : -0.05f);
          for (uint8_t& code : block.code) code = (code & 0x7f) == 0x7f ? 0x12 : code;  // a NaN
        } else if constexpr (F::id == DType::W4G128) {
          for (uint16_t& d : block.d) d = f32_to_f16(scale(random) * (random() % 2 ? 1.0f : -1.0f));
          for (uint16_t& zero : block.zero) zero = f32_to_f16(static_cast<float>(random() % 17));
        } else {
          if constexpr (requires { block.d; }) block.d = f32_to_f16(scale(random) * (random() % 2 ? 1.0f : -1.0f));
          if constexpr (requires { block.dmin; }) block.dmin = f32_to_f16(4 * scale(random));
          if constexpr (requires { block.m; }) block.m = f32_to_f16(-8 * scale(random));
          if constexpr (requires { block.zero; }) block.zero = f32_to_f16(static_cast<float>(random() % 17));
          if constexpr (requires { block.e; }) block.e = static_cast<uint8_t>(random() % 8 + 118);
        }
        std::memcpy(&bytes[at], &block, sizeof(block));
      }
    });
    host = Tensor(bytes.data(), type, {rows, cols});
  }
  /// Some of its rows, as the oracle sees them.
  Tensor rows(int64_t begin, int64_t count) const {
    return Tensor(host.as<char>() + begin * row_bytes(host.dtype, host.cols()), host.dtype, {count, host.cols()});
  }
};

struct CacheShape {
  DType type;
  int64_t pages, heads, head_dim;
  Tensor tensor(void* data) const { return Tensor(data, type, {pages, heads, kPageTokens, head_dim}); }
};

/// Tensors on one backend. What out() gave is read back by fetch(), which also looks at the guard bytes.
class Side {
 public:
  explicit Side(Backend& b) : backend(b) {}
  Backend& backend;

  Tensor in(const Floats& values, Dims shape) {
    return Tensor(put(values.data(), values.size() * 4), DType::F32, shape);
  }
  Tensor in(const Ints& values, Dims shape) { return Tensor(put(values.data(), values.size() * 4), DType::I32, shape); }
  /// A cache in the format's blocks, as the oracle keeps it.
  Tensor in(const Bytes& blocks, const CacheShape& shape) {
    const Bytes bytes = reordered(blocks, shape, true);
    return shape.tensor(put(bytes.data(), bytes.size()));
  }
  Tensor maybe(bool wanted, const Floats& values) {
    return wanted ? in(values, {static_cast<int64_t>(values.size())}) : Tensor();
  }
  Tensor out(Floats& values, Dims shape) {
    char* at = put(values.data(), values.size() * 4);
    returned_.push_back({at, values.size() * 4,
                         [to = values.data()](const Bytes& from) { std::memcpy(to, from.data(), from.size()); }});
    return Tensor(at, DType::F32, shape);
  }
  Tensor out(Bytes& blocks, const CacheShape& shape) {
    const Tensor cache = in(blocks, shape);
    returned_.push_back({cache.as<char>(), blocks.size(),
                         [this, &blocks, shape](const Bytes& from) { blocks = reordered(from, shape, false); }});
    return cache;
  }
  Tensor weight(const Weight& w, WeightRole role = WeightRole::matrix) {
    const size_t bytes = backend.packed_bytes(w.host, role);
    kept_.push_back(bytes > 0 ? backend.allocate(bytes) : nullptr);
    return backend.pack(w.host, role, kept_.back().get());
  }

  /// Several, each beginning where the one before ends.
  std::vector<Tensor> weights_side_by_side(std::initializer_list<const Weight*> list) {
    size_t total = 0;
    for (const Weight* w : list) total += backend.packed_bytes(w->host, WeightRole::matrix);
    kept_.push_back(total > 0 ? backend.allocate(total) : nullptr);
    auto* at = static_cast<char*>(kept_.back().get());
    std::vector<Tensor> out;
    for (const Weight* w : list) {
      out.push_back(backend.pack(w->host, WeightRole::matrix, at));
      if (total > 0) at += backend.packed_bytes(w->host, WeightRole::matrix);
    }
    return out;
  }

  void fetch() {
    for (const Returned& r : returned_) {
      Bytes bytes(r.bytes + kGuardBytes);
      backend.download(bytes.data(), r.device, bytes.size());
      CHECK(std::all_of(bytes.end() - kGuardBytes, bytes.end(), [](char c) { return c == kGuard; }));
      bytes.resize(r.bytes);
      r.take(bytes);
    }
    returned_.clear();
  }

 private:
  struct Returned {
    char* device;
    size_t bytes;
    std::function<void(const Bytes&)> take;
  };
  static constexpr size_t kGuardBytes = 256;
  static constexpr char kGuard = 0x5a;

  char* put(const void* data, size_t bytes) {
    kept_.push_back(backend.allocate(bytes + kGuardBytes));
    auto* at = static_cast<char*>(kept_.back().get());
    const Bytes guard(kGuardBytes, kGuard);
    backend.upload(at, data, bytes);
    backend.upload(at + bytes, guard.data(), kGuardBytes);
    return at;
  }
  /// The device keeps q8_0 with the codes of a head's page before its scales (kv_cache.cuh); `out` is that order.
  Bytes reordered(const Bytes& from, const CacheShape& shape, bool out) const {
    if (backend.name() != std::string("cuda")) return from;
    if (shape.type == DType::Q4_0) return reordered_nibbles(from, shape, out);
    if (shape.type != DType::Q8_0) return from;
    Bytes to(from.size());
    const int64_t blocks = kPageTokens * shape.head_dim / 32, page_bytes = blocks * 34;
    for (int64_t page = 0; page < shape.pages * shape.heads; ++page) {
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t block = page * page_bytes + i * 34;
        const int64_t codes = page * page_bytes + i * 32, scale = page * page_bytes + blocks * 32 + i * 2;
        std::memcpy(&to[static_cast<size_t>(out ? scale : block)], &from[static_cast<size_t>(out ? block : scale)], 2);
        std::memcpy(&to[static_cast<size_t>(out ? codes : block + 2)],
                    &from[static_cast<size_t>(out ? block + 2 : codes)], 32);
      }
    }
    return to;
  }

  /// Of q4_0: number i of a block, unsigned in byte i % 16 of the file's form, is signed in byte i / 8 * 4 + i % 4.
  static Bytes reordered_nibbles(const Bytes& from, const CacheShape& shape, bool out) {
    Bytes to(from.size());
    const int64_t blocks = kPageTokens * shape.head_dim / 32, page_bytes = blocks * 18;
    const auto nibble = [](const Bytes& bytes, int64_t at, bool upper) {
      return static_cast<unsigned>(bytes[static_cast<size_t>(at)]) >> (upper ? 4 : 0) & 15;
    };
    for (int64_t page = 0; page < shape.pages * shape.heads; ++page) {
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t block = page * page_bytes + b * 18;
        const int64_t codes = page * page_bytes + b * 16, scale = page * page_bytes + blocks * 16 + b * 2;
        std::memcpy(&to[static_cast<size_t>(out ? scale : block)], &from[static_cast<size_t>(out ? block : scale)], 2);
        for (int i = 0; i < 32; ++i) {
          const int64_t of_file = block + 2 + i % 16, of_device = codes + i / 8 * 4 + i % 4;
          const bool upper_of_file = i >= 16, upper_of_device = i % 8 >= 4;
          const unsigned code = out ? nibble(from, of_file, upper_of_file) : nibble(from, of_device, upper_of_device);
          auto& byte = to[static_cast<size_t>(out ? of_device : of_file)];
          byte = static_cast<std::decay_t<decltype(byte)>>(
              static_cast<unsigned>(byte) | (code ^ 8) << ((out ? upper_of_device : upper_of_file) ? 4 : 0));
        }
      }
    }
    return to;
  }

  std::vector<Buffer> kept_;
  std::vector<Returned> returned_;
};

/// Runs `op`, which makes its tensors on a Side, on both backends; `op` returns all its results when called back.
template <class Op>
void compare(double bar, const std::string& what, Op op) {
  const Floats wanted = op(ref()), found = op(gpu());
  const double error = nmse(found, wanted);
  INFO(what << ": error " << error << ", at most " << bar);
  CHECK(error <= bar);
}

inline void append(Floats& all, const Floats& more) { all.insert(all.end(), more.begin(), more.end()); }

inline Floats decoded(const Bytes& cache, DType type, int64_t head_dim) {
  Floats out(cache.size() / static_cast<size_t>(row_bytes(type, head_dim)) * static_cast<size_t>(head_dim));
  REQUIRE(decode_row(type, cache.data(), out.data(), static_cast<int64_t>(out.size())));
  return out;
}

/// A cache of [pages, heads, kPageTokens, head_dim] of random numbers.
inline Bytes random_cache(DType type, int64_t rows, int64_t head_dim, uint32_t seed) {
  Bytes bytes(static_cast<size_t>(tensor_bytes(type, rows, head_dim)));
  const Floats values = random_floats(rows * head_dim, seed);
  REQUIRE(encode_row(type, values.data(), bytes.data(), rows * head_dim));
  return bytes;
}

/// What a value that is rounded the other way for its last bit may cost.
inline double cache_bar(DType type) {
  return type == DType::F32    ? 1e-11
         : type == DType::F16  ? 1e-8
         : type == DType::BF16 ? 1e-6
         : type == DType::Q8_0 ? 1e-5
                               : 1e-4;
}

/// The product of the first m rows of x with a weight.
inline Floats product(Backend& b, const Weight& w, const Floats& x, int64_t m) {
  const int64_t n = w.host.rows(), k = w.host.cols();
  Side side(b);
  Floats out = poison(m * n);
  b.matmul({side.in(Floats(x.begin(), x.begin() + m * k), {m, k}), side.weight(w), {}, side.out(out, {m, n})});
  side.fetch();
  return out;
}

inline constexpr DType kCacheTypes[] = {DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0};
template <int... kSizes>
std::vector<int64_t> numbers(std::integer_sequence<int, kSizes...>) {
  return {kSizes...};
}
inline const std::vector<int64_t> kHeadDims = numbers(cuda::HeadSizes{});
inline bool fits(DType type, int64_t head_dim) { return row_bytes(type, head_dim) >= 0; }

}  // namespace infer::cuda_test
