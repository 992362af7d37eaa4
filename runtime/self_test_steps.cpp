// What self_test() compares beyond single ops: whole steps of the extract, and draws.
#include <algorithm>
#include <bit>
#include <random>
#include <set>

#include "kernels/sample.h"
#include "models/arch.h"
#include "quant/formats.h"
#include "runtime/plan.h"
#include "runtime/self_test.h"
#include "runtime/step_runner.h"

namespace infer::self_testing {
namespace {

constexpr size_t kMostKinds = 6;
constexpr int64_t kPagesOfSequence = 2;

/// A text that names everything that makes layers differ.
std::vector<std::string> kinds(const Config& config, const std::vector<BoundTensor>& bound, const Weights& weights) {
  std::vector<std::string> out;
  for (const LayerConfig& layer : config.layers)
    out.push_back(std::to_string(layer.window) + ' ' + std::to_string(layer.rope));
  const auto begin = reinterpret_cast<uintptr_t>(weights.layers.data());
  for (const BoundTensor& t : bound) {
    const auto at = reinterpret_cast<uintptr_t>(t.target) - begin;  // wraps for what lies before
    const size_t layer = at / sizeof(LayerWeights);
    if (layer < out.size())
      out[layer] += ' ' + std::to_string(at % sizeof(LayerWeights)) + ' ' + format_name(t.host.dtype);
  }
  return out;
}

std::vector<int32_t> ids_of(int sequence, int64_t n, int64_t vocab) {
  std::vector<int32_t> ids;
  std::mt19937 random(static_cast<uint32_t>(100 + sequence));
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
  return ids;
}

}  // namespace

Extract extract(const Checkpoint& checkpoint, const std::string& device, const std::string& k_type,
                const std::string& v_type) {
  Extract out;
  const Config whole = read_config(checkpoint);
  Weights weights;
  const std::vector<BoundTensor> bound = bind_weights(checkpoint, whole, weights);
  out.config = whole;
  out.config.layers.clear();
  std::set<std::string> seen;
  const std::vector<std::string> all = kinds(whole, bound, weights);
  for (size_t i = 0; i < all.size(); ++i) {
    if (!seen.insert(all[i]).second || out.layers.size() == kMostKinds) continue;
    out.layers.push_back(static_cast<int64_t>(i));
    out.config.layers.push_back(whole.layers[i]);
  }
  out.n_kinds = static_cast<int64_t>(seen.size());
  out.config.n_layers = static_cast<int64_t>(out.layers.size());
  const char* const usual = device == "ref" ? "f32" : "f16";
  out.k_type = kv_type("k_type", k_type.empty() ? usual : k_type);
  out.v_type = kv_type("v_type", v_type.empty() ? usual : v_type);
  out.needs = model_needs(whole, bound);
  out.needs.k_type = out.k_type, out.needs.v_type = out.v_type;
  out.needs.max_tokens = out.needs.max_seqs = kMostTokens;
  out.needs.max_context = 8192;
  const Config& c = whole;
  const int64_t q = c.n_heads * c.head_dim, kv = c.n_kv_heads * c.head_dim;
  for (const LayerConfig& layer : out.config.layers) {
    const int64_t hidden = layer.experts ? c.experts.n_active * c.experts.expert_dim + c.experts.shared_dim : c.ffn_dim;
    out.layer_params += static_cast<double>(c.dim * (2 * q + 2 * kv + 3 * hidden));
  }
  out.head_params = static_cast<double>(c.vocab * c.dim);
  return out;
}

std::vector<Floats> whole_steps(const Subject& subject, const Extract& extract, Backend& backend,
                                std::span<const int> which) {
  const Config& c = extract.config;
  StepLimits limits;
  limits.max_tokens = 32;
  limits.max_seqs = limits.max_outputs = 3;
  limits.n_ctx = kPagesOfSequence * kPageTokens;
  limits.n_pages = 3 * kPagesOfSequence;
  limits.k_type = extract.k_type, limits.v_type = extract.v_type;
  StepRunner runner(c, subject.weights(), backend, limits, c.vocab);
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<PageId>> pages;
  for (const int s : which) {
    ids.push_back(ids_of(s, kPromptLengths[s] + kDecodedTokens, c.vocab));
    pages.push_back({static_cast<PageId>(2 * s + 1), static_cast<PageId>(2 * s)});
  }
  std::vector<Floats> out;
  for (int64_t step = 0; step <= kDecodedTokens; ++step) {
    std::vector<StepSequence> sequences;
    for (size_t i = 0; i < which.size(); ++i) {
      const int64_t prompt = kPromptLengths[which[i]], from = step == 0 ? 0 : prompt + step - 1;
      sequences.push_back(
          {std::span(ids[i]).subspan(static_cast<size_t>(from), static_cast<size_t>(step == 0 ? prompt : 1)), from,
           pages[i], 1});
    }
    runner.run(sequences);
    for (size_t i = 0; i < which.size(); ++i) {
      out.emplace_back(static_cast<size_t>(c.vocab));
      runner.logits(static_cast<int64_t>(i), out.back());
    }
  }
  return out;
}

int64_t wrong_draws(Backend& backend, int64_t vocab, int64_t n_rows) {
  if (!backend.samples(SampleRow{})) return -1;
  const auto n = static_cast<size_t>(n_rows);
  Floats logits(n * static_cast<size_t>(vocab));
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 3);
  for (float& x : logits) x = normal(random);
  std::vector<SampleRow> rows(n);
  std::vector<int32_t> history(n * kSampleHistory);
  for (int32_t& id : history) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
  for (size_t i = 0; i < n; ++i) {
    SampleRow& row = rows[i];
    row.enabled = 1, row.seed = i, row.n_drawn = i;
    if (i % 3 > 0) row.temperature = 0.8f, row.top_k = 40, row.top_p = 0.95f, row.min_p = 0.05f;
    if (i % 3 == 2) row.repeat_penalty = 1.1f, row.repeat_last_n = 64, row.n_history = 100;
  }
  std::vector<Buffer> kept;
  const auto put = [&](const void* data, size_t bytes) {
    kept.push_back(backend.allocate(bytes));
    backend.upload(kept.back().get(), data, bytes);
    return kept.back().get();
  };
  const int64_t row_ints = sizeof(SampleRow) / sizeof(int32_t), groups = (vocab + kSampleGroup - 1) / kSampleGroup;
  const std::vector<int32_t> zeros(n * static_cast<size_t>(groups));
  const Buffer drawn = backend.allocate_pinned(n * sizeof(Drawn));
  SampleArgs device;
  device.logits = Tensor(put(logits.data(), logits.size() * sizeof(float)), DType::F32, {n_rows, vocab});
  device.n_valid = vocab;
  device.rows = Tensor(put(rows.data(), rows.size() * sizeof(SampleRow)), DType::I32, {n_rows, row_ints});
  device.history = Tensor(put(history.data(), history.size() * sizeof(int32_t)), DType::I32, {n_rows, kSampleHistory});
  device.group_max = Tensor(put(zeros.data(), zeros.size() * sizeof(int32_t)), DType::I32, {n_rows, groups});
  device.out = Tensor(put(zeros.data(), n * sizeof(int32_t)), DType::I32, {n_rows});
  device.host_out = Tensor(drawn.get(), DType::I32, {n_rows, 2});
  backend.sample(device);
  backend.wait();
  std::vector<Drawn> wanted(n);
  std::vector<int32_t> ids(n);
  SampleArgs host = device;
  host.logits.data = logits.data(), host.rows.data = rows.data(), host.history.data = history.data();
  host.out.data = ids.data(), host.host_out.data = wanted.data();
  sample_on_host(host);
  int64_t wrong = 0;
  for (size_t i = 0; i < n; ++i) wrong += static_cast<const Drawn*>(drawn.get())[i].id != wanted[i].id;
  return wrong;
}

}  // namespace infer::self_testing
