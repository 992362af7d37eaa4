// See runner.h.
#include "tests/models/runner.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "quant/formats.h"

namespace infer {
namespace {

constexpr int64_t kPages = 97;  // prime, so that pages can be handed out in strides
constexpr int64_t kPositions = 1024;

Tensor upload(Backend& backend, const std::vector<int32_t>& values, std::initializer_list<int64_t> shape,
              std::vector<Buffer>& keep) {
  keep.push_back(backend.allocate(values.size() * sizeof(int32_t) + 1));
  backend.upload(keep.back().get(), values.data(), values.size() * sizeof(int32_t));
  return Tensor(keep.back().get(), DType::I32, shape);
}

}  // namespace

Runner::Runner(Checkpoint checkpoint, const std::string& backend, DType kv_type, const BackendOptions& options)
    : checkpoint_(std::move(checkpoint)), backend_(make_backend(backend, options)), config_(read_config(checkpoint_)) {
  Weights scratch;
  Needs needs = model_needs(config_, bind_weights(checkpoint_, config_, scratch));
  needs.k_type = needs.v_type = kv_type;
  needs.max_tokens = needs.max_context = kPositions;
  needs.max_seqs = 16;
  backend_->prepare(needs);
  weights_ = load_weights(checkpoint_, config_, *backend_, 2, true, nullptr);
  for (int64_t i = 0; i < config_.n_layers; ++i) {
    for (auto* side : {&kv_.k, &kv_.v}) {
      const int64_t rows = kPages * config_.n_kv_heads * kPageTokens;
      buffers_.push_back(backend_->allocate(static_cast<size_t>(tensor_bytes(kv_type, rows, config_.head_dim))));
      side->push_back(
          Tensor(buffers_.back().get(), kv_type, {kPages, config_.n_kv_heads, kPageTokens, config_.head_dim}));
    }
  }
  for (const RopeConfig& rope : config_.ropes) {
    std::vector<float> table(static_cast<size_t>(kPositions * rope.dim));
    fill_rope_table(rope, kPositions, 0, kPositions, table.data());
    buffers_.push_back(backend_->allocate(table.size() * sizeof(float)));
    backend_->upload(buffers_.back().get(), table.data(), table.size() * sizeof(float));
    ropes_.push_back(Tensor(buffers_.back().get(), DType::F32, {kPositions, rope.dim / 2, 2}));
  }
}

int32_t Runner::take_page() { return static_cast<int32_t>(next_page_++ * 29 % kPages); }

std::vector<float> Runner::step(const std::vector<Chunk>& chunks, const StageObserver& observer) {
  std::vector<int32_t> ids, positions, slots, q_start = {0}, kv_len, table, outputs;
  size_t max_pages = 1;
  for (const Chunk& chunk : chunks) {
    Sequence& s = sequences_[chunk.sequence];
    for (int32_t id : chunk.ids) {
      if (s.length % kPageTokens == 0) s.pages.push_back(take_page());
      ids.push_back(id);
      positions.push_back(s.length);
      slots.push_back(static_cast<int32_t>(s.pages.back() * kPageTokens + s.length % kPageTokens));
      ++s.length;
    }
    const int64_t n = static_cast<int64_t>(chunk.ids.size()), wanted = chunk.n_outputs < 0 ? n : chunk.n_outputs;
    for (int64_t i = n - wanted; i < n; ++i) outputs.push_back(static_cast<int32_t>(q_start.back() + i));
    q_start.push_back(static_cast<int32_t>(ids.size()));
    kv_len.push_back(s.length);
    max_pages = std::max(max_pages, s.pages.size());
  }
  for (const Chunk& chunk : chunks) {
    std::vector<int32_t> pages = sequences_[chunk.sequence].pages;
    pages.resize(max_pages, -1);  // entries past the end must not be read
    table.insert(table.end(), pages.begin(), pages.end());
  }
  const int64_t n_tokens = static_cast<int64_t>(ids.size()), n_seqs = static_cast<int64_t>(chunks.size()),
                n_outputs = static_cast<int64_t>(outputs.size());
  std::vector<Buffer> keep;
  Batch batch;
  batch.n_tokens = n_tokens;
  batch.n_outputs = n_outputs;
  batch.n_seqs = n_seqs;
  batch.ids = upload(*backend_, ids, {n_tokens}, keep);
  batch.positions = upload(*backend_, positions, {n_tokens}, keep);
  batch.slots = upload(*backend_, slots, {n_tokens}, keep);
  batch.page_table = upload(*backend_, table, {n_seqs, static_cast<int64_t>(max_pages)}, keep);
  batch.q_start = upload(*backend_, q_start, {n_seqs + 1}, keep);
  batch.kv_len = upload(*backend_, kv_len, {n_seqs}, keep);
  batch.outputs = upload(*backend_, outputs, {n_outputs}, keep);

  Activations activations(*backend_, config_, n_tokens, n_outputs);
  backend_->run(0, [&] { forward(*backend_, config_, weights_, ropes_, kv_, batch, activations, observer); });
  std::vector<float> logits(static_cast<size_t>(n_outputs * config_.vocab));
  backend_->download(logits.data(), activations.logits.data, logits.size() * sizeof(float));
  return logits;
}

double nmse(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, power = 0;
  for (size_t i = 0; i < want.size() && i < got.size(); ++i) {
    const double d = static_cast<double>(got[i]) - want[i];
    error += d * d;
    power += static_cast<double>(want[i]) * want[i];
  }
  const double result = error / power;
  return got.size() == want.size() && std::isfinite(result) ? result : std::numeric_limits<double>::infinity();
}

int32_t argmax(const float* logits, int64_t n) {
  return static_cast<int32_t>(std::max_element(logits, logits + n) - logits);
}

}  // namespace infer
