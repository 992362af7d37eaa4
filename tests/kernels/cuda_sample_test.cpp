// Draws on the device against the same op in plain C++: ids, status and what is left for the next step. Skipped, and
// said so, where there is no device.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "kernels/backend.h"
#include "kernels/sample.h"
#include "tests/catch.h"

using namespace infer;

namespace {

/// The op's tensors in one backend's memory.
struct Draws {
  Backend& backend;
  SampleArgs args;
  std::vector<Buffer> buffers;

  template <class T>
  Tensor put(const std::vector<T>& values, DType type, std::initializer_list<int64_t> shape) {
    buffers.push_back(backend.allocate(values.size() * sizeof(T)));
    backend.upload(buffers.back().get(), values.data(), values.size() * sizeof(T));
    return Tensor(buffers.back().get(), type, shape);
  }
  template <class T>
  std::vector<T> get(const Tensor& t, size_t n) {
    std::vector<T> out(n);
    backend.download(out.data(), t.data, n * sizeof(T));
    return out;
  }
};

struct Case {
  int64_t vocab, n_valid;
  std::vector<float> logits;
  std::vector<SampleRow> rows;
  std::vector<int32_t> history;
};

void fill(Draws& d, const Case& c) {
  const auto n = static_cast<int64_t>(c.rows.size());
  const std::vector<int32_t> counting(static_cast<size_t>(n), 5);
  d.args.logits = d.put(c.logits, DType::F32, {n, c.vocab});
  d.args.n_valid = c.n_valid;
  d.args.rows = d.put(c.rows, DType::I32, {n, 16});
  d.args.history = d.put(c.history, DType::I32, {n, kSampleHistory});
  const int64_t n_groups = (c.vocab + kSampleGroup - 1) / kSampleGroup;
  d.args.group_max = d.put(std::vector<int32_t>(static_cast<size_t>(n * n_groups), -1), DType::I32, {n, n_groups});
  d.args.out = d.put(counting, DType::I32, {n});
  d.args.positions = d.put(counting, DType::I32, {n});
  d.args.slots = d.put(counting, DType::I32, {n});
  d.args.kv_len = d.put(counting, DType::I32, {n});
  d.buffers.push_back(d.backend.allocate_pinned(static_cast<size_t>(n) * sizeof(Drawn)));
  d.args.host_out = Tensor(d.buffers.back().get(), DType::I32, {n, 2});
}

/// Three draws in a row by both; everything must agree.
void compare(Backend& device, Backend& host, const Case& c) {
  Draws want{host, {}, {}}, got{device, {}, {}};
  fill(want, c);
  fill(got, c);
  const size_t n = c.rows.size();
  for (int step = 0; step < 3; ++step) {
    sample_on_host(want.args);
    device.sample(got.args);
    device.wait_for(device.mark());
    for (size_t i = 0; i < n; ++i) {
      INFO("vocab " << c.vocab << ", row " << i << " of " << n << ", step " << step);
      REQUIRE(got.args.host_out.as<Drawn>()[i].finite == want.args.host_out.as<Drawn>()[i].finite);
      REQUIRE(got.args.host_out.as<Drawn>()[i].id == want.args.host_out.as<Drawn>()[i].id);
    }
    for (Tensor SampleArgs::*t : {&SampleArgs::out, &SampleArgs::positions, &SampleArgs::slots, &SampleArgs::kv_len})
      CHECK(got.get<int32_t>(got.args.*t, n) == want.get<int32_t>(want.args.*t, n));
    CHECK(got.get<int32_t>(got.args.rows, n * 16) == want.get<int32_t>(want.args.rows, n * 16));
    CHECK(got.get<int32_t>(got.args.history, n * kSampleHistory) ==
          want.get<int32_t>(want.args.history, n * kSampleHistory));
  }
}

Case random_case(int64_t vocab, int64_t n_valid, size_t n, uint32_t seed, float spread) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  Case c{vocab, n_valid, {}, {}, std::vector<int32_t>(n * kSampleHistory)};
  c.logits.resize(n * static_cast<size_t>(vocab));
  // Rounded, so that there are ties.
  for (float& x : c.logits) x = std::round(normal(random) * 64) / 64;
  for (int32_t& id : c.history) id = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab));
  for (size_t i = 0; i < n; ++i) {
    SampleRow row;
    row.enabled = i % 7 != 6;
    row.seed = seed + i;
    row.n_drawn = i;
    row.temperature = i % 3 == 0 ? 0.0f : 0.3f * static_cast<float>(i % 5 + 1);
    row.top_k = static_cast<int32_t>(i % 4 == 0 ? kMaxSampleTopK : 1 + random() % kMaxSampleTopK);
    row.top_p = i % 2 ? 0.95f : 1.0f;
    row.min_p = i % 5 == 1 ? 0.05f : 0.0f;
    if (i % 3 == 1) {
      row.repeat_penalty = 1.3f;
      row.frequency_penalty = 0.25f;
      row.presence_penalty = 0.5f;
      row.repeat_last_n = i % 2 ? 64 : static_cast<int32_t>(kSampleHistory);
      row.n_history = static_cast<int32_t>(random() % 3000);
    }
    c.rows.push_back(row);
  }
  return c;
}

}  // namespace

TEST_CASE("cuda: draws are those of the plain op, for any vocabulary, alone and together") {
  std::unique_ptr<Backend> device;
  try {
    device = make_backend("cuda");
  } catch (const Error& error) {
    WARN("skipped: " << error.what());
    return;
  }
  const std::unique_ptr<Backend> host = make_backend("ref");
  for (int64_t vocab : {1, 2, 31, 32, 33, 64, 65, 1000, 2048, 2049, 32000, 49152, 128256, 151936, 262144, 300001})
    for (size_t n : {1, 3, 10}) {
      compare(*device, *host, random_case(vocab, vocab, n, static_cast<uint32_t>(vocab + static_cast<int64_t>(n)), 3));
      compare(*device, *host, random_case(vocab, (vocab + 1) / 2, n, static_cast<uint32_t>(n), 0.05f));  // many ties
    }
  compare(*device, *host, random_case(32000, 31999, 64, 5, 2));
  // All alike, and far apart.
  Case c = random_case(50000, 50000, 8, 1, 1);
  std::fill(c.logits.begin(), c.logits.end(), -7.5f);
  compare(*device, *host, c);
  for (size_t i = 0; i < c.logits.size(); ++i)
    c.logits[i] = std::ldexp(i % 2 ? 1.0f : -1.0f, static_cast<int>(i % 250) - 124);
  compare(*device, *host, c);
}

TEST_CASE("cuda: what is not finite is found wherever it is, in padding too, and is no token") {
  std::unique_ptr<Backend> device;
  try {
    device = make_backend("cuda");
  } catch (const Error& error) {
    WARN("skipped: " << error.what());
    return;
  }
  const std::unique_ptr<Backend> host = make_backend("ref");
  const float infinity = std::numeric_limits<float>::infinity();
  for (float bad : {infinity, -infinity, std::nanf("")})
    for (size_t at : {0, 31, 2047, 2048, 9999}) {
      Case c = random_case(10000, 9990, 6, 3, 2);
      c.logits[20000 + at] = bad;  // of the third row
      c.logits[10000 + at] = bad;
      compare(*device, *host, c);
    }
}
