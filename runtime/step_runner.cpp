// The buffers of a step and the forward pass over them.
#include "runtime/step_runner.h"

#include <algorithm>

#include "quant/formats.h"
#include "runtime/sampler.h"

namespace infer {
namespace {

constexpr int64_t kRopeRows = 256;  // rows of rotation tables made at a time

int64_t pages_of(int64_t n_positions) { return (n_positions + kPageTokens - 1) / kPageTokens; }

}  // namespace

StepRunner::StepRunner(const Config& config, const Weights& weights, Backend& backend, const StepLimits& limits,
                       int64_t n_valid)
    : config_(config),
      weights_(weights),
      backend_(backend),
      limits_(limits),
      max_pages_(pages_of(limits.n_ctx)),
      activations_(backend, config, limits.max_tokens, limits.max_outputs),
      n_valid_(n_valid) {
  allocate_kv();
  allocate_batch();
  if (backend.samples(SampleRow{})) allocate_sampling();
  size_t row_floats = 0;
  for (const RopeConfig& rope : config.ropes) {
    const int64_t n = (limits.n_ctx + kRopeRows - 1) / kRopeRows * kRopeRows;
    buffers_.push_back(backend.allocate(static_cast<size_t>(n * rope.dim) * sizeof(float)));
    ropes_.emplace_back(buffers_.back().get(), DType::F32, std::initializer_list<int64_t>{n, rope.dim / 2, 2});
    rope_rows_.push_back(0);
    row_floats = std::max(row_floats, static_cast<size_t>(kRopeRows * rope.dim));
  }
  staging_.resize(row_floats);
}

size_t StepRunner::scratch_bytes(const Config& config, const StepLimits& limits) {
  const int64_t integers = limits.max_tokens * 3 + limits.max_seqs * (pages_of(limits.n_ctx) + 2) + limits.max_outputs;
  return Activations::bytes(config, limits.max_tokens, limits.max_outputs) +
         static_cast<size_t>(integers) * sizeof(int32_t);
}

void StepRunner::allocate_kv() {
  const int64_t rows = config_.n_kv_heads * kPageTokens;  // of a page
  for (int64_t layer = 0; layer < config_.n_layers; ++layer)
    for (DType type : {limits_.k_type, limits_.v_type}) {
      const size_t page_bytes = static_cast<size_t>(row_bytes(type, config_.head_dim) * rows);
      buffers_.push_back(backend_.allocate(page_bytes * static_cast<size_t>(limits_.n_pages)));
      kv_bytes_ += page_bytes * static_cast<size_t>(limits_.n_pages);
      planes_.push_back({static_cast<char*>(buffers_.back().get()), page_bytes});
      const Tensor cache(buffers_.back().get(), type,
                         {limits_.n_pages, config_.n_kv_heads, kPageTokens, config_.head_dim});
      (kv_.k.size() == kv_.v.size() ? kv_.k : kv_.v).push_back(cache);
    }
}

void StepRunner::allocate_batch() {
  auto integers = [&](std::initializer_list<int64_t> shape) {
    Tensor t(nullptr, DType::I32, shape);
    buffers_.push_back(backend_.allocate(static_cast<size_t>(t.n_elements()) * sizeof(int32_t)));
    t.data = buffers_.back().get();
    return t;
  };
  full_.ids = integers({limits_.max_tokens});
  full_.positions = integers({limits_.max_tokens});
  full_.slots = integers({limits_.max_tokens});
  full_.page_table = integers({limits_.max_seqs, max_pages_});
  full_.q_start = integers({limits_.max_seqs + 1});
  full_.kv_len = integers({limits_.max_seqs});
  full_.outputs = integers({limits_.max_outputs});
  for (auto* list : {&ids_, &positions_, &slots_}) list->reserve(static_cast<size_t>(limits_.max_tokens));
  for (auto* list : {&q_start_, &kv_len_}) list->reserve(static_cast<size_t>(limits_.max_seqs) + 1);
  outputs_.reserve(static_cast<size_t>(limits_.max_outputs));
}

void StepRunner::run(std::span<const StepSequence> sequences, const StageObserver& observer) {
  continuable_ = false;
  upload_batch(sequences);
  const auto start = Clock::now();
  compute(observer);
  backend_.wait();
  seconds_ = std::chrono::duration<double>(Clock::now() - start).count();
}

void StepRunner::upload_batch(std::span<const StepSequence> sequences) {
  for (auto* list : {&ids_, &positions_, &slots_, &q_start_, &kv_len_, &outputs_}) list->clear();
  q_start_.push_back(0);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const StepSequence& sequence = sequences[s];
    for (size_t i = 0; i < sequence.ids.size(); ++i) {
      const int64_t position = sequence.position + static_cast<int64_t>(i);
      const int64_t page = sequence.pages[static_cast<size_t>(position / kPageTokens)];
      ids_.push_back(sequence.ids[i]);
      positions_.push_back(static_cast<int32_t>(position));
      slots_.push_back(static_cast<int32_t>(page * kPageTokens + position % kPageTokens));
    }
    const auto end = static_cast<int32_t>(ids_.size());
    const int64_t kv_len = sequence.position + static_cast<int64_t>(sequence.ids.size());
    for (int64_t i = end - sequence.n_outputs; i < end; ++i) outputs_.push_back(static_cast<int32_t>(i));
    q_start_.push_back(end);
    kv_len_.push_back(static_cast<int32_t>(kv_len));
    backend_.upload(full_.page_table.as<int32_t>() + static_cast<int64_t>(s) * max_pages_, sequence.pages.data(),
                    static_cast<size_t>(pages_of(kv_len)) * sizeof(PageId));
    fill_ropes(kv_len);
  }
  put(batch_.ids, full_.ids, ids_);
  put(batch_.positions, full_.positions, positions_);
  put(batch_.slots, full_.slots, slots_);
  put(batch_.q_start, full_.q_start, q_start_);
  put(batch_.kv_len, full_.kv_len, kv_len_);
  put(batch_.outputs, full_.outputs, outputs_);
  batch_.n_tokens = static_cast<int64_t>(ids_.size());
  batch_.n_seqs = static_cast<int64_t>(sequences.size());
  batch_.n_outputs = static_cast<int64_t>(outputs_.size());
  batch_.page_table = full_.page_table;
  batch_.page_table.dims[0] = batch_.n_seqs;
}

void StepRunner::put(Tensor& target, const Tensor& room, const std::vector<int32_t>& values) {
  target = room;
  target.dims[0] = static_cast<int64_t>(values.size());
  backend_.upload(target.data, values.data(), values.size() * sizeof(int32_t));
}

void StepRunner::fill_ropes(int64_t n_positions) {
  for (size_t i = 0; i < ropes_.size(); ++i) {
    const RopeConfig& rope = config_.ropes[i];
    for (; rope_rows_[i] < n_positions; rope_rows_[i] += kRopeRows) {
      fill_rope_table(rope, limits_.n_ctx, rope_rows_[i], rope_rows_[i] + kRopeRows, staging_.data());
      backend_.upload(ropes_[i].as<float>() + rope_rows_[i] * rope.dim, staging_.data(),
                      static_cast<size_t>(kRopeRows * rope.dim) * sizeof(float));
    }
  }
}

void StepRunner::compute(const StageObserver& observer) {
  // The sizes of a step are what decides which kernels run.
  const uint64_t shape = static_cast<uint64_t>(batch_.n_tokens) | static_cast<uint64_t>(batch_.n_seqs) << 20 |
                         static_cast<uint64_t>(batch_.n_outputs) << 40;
  const uint64_t key = observer ? 0 : shape;
  backend_.run(
      key, [this, &observer] { forward(backend_, config_, weights_, ropes_, kv_, batch_, activations_, observer); });
}

void StepRunner::logits(int64_t output, std::span<float> row) {
  backend_.download(row.data(), activations_.logits.as<float>() + output * activations_.logits.dims[1],
                    row.size() * sizeof(float));
}

std::string StepRunner::find_non_finite(const StepSequence& sequence) {
  continuable_ = false;
  upload_batch(std::span(&sequence, 1));
  std::string found;
  compute([&](int layer, const char* stage, const Tensor& result) {
    if (!found.empty()) return;
    const bool head = layer == config_.n_layers;
    if (finite_rows(result, 0, head ? batch_.n_outputs : batch_.n_tokens)) return;
    if (head)
      found = "the output head";
    else
      found = layer < 0 ? "the token embedding" : "layer " + std::to_string(layer) + ", stage " + stage;
  });
  return found.empty() ? "an unknown place" : found;
}

bool StepRunner::finite_rows(const Tensor& result, int64_t from, int64_t to) {
  const int64_t cols = result.n_elements() / result.dims[0];
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = from; r < to; ++r) {
    backend_.download(row.data(), result.as<float>() + r * cols, row.size() * sizeof(float));
    if (!all_finite(row)) return false;
  }
  return true;
}

void StepRunner::copy_page(PageId from, PageId to) {
  std::vector<char> page;
  for (const KvPlane& plane : planes_) {
    page.resize(plane.page_bytes);
    backend_.download(page.data(), plane.data + static_cast<size_t>(from) * plane.page_bytes, plane.page_bytes);
    backend_.upload(plane.data + static_cast<size_t>(to) * plane.page_bytes, page.data(), plane.page_bytes);
  }
}

void StepRunner::clear_page(PageId page) {
  for (const KvPlane& plane : planes_) {
    const std::vector<char> zeros(plane.page_bytes);
    backend_.upload(plane.data + static_cast<size_t>(page) * plane.page_bytes, zeros.data(), plane.page_bytes);
  }
}

}  // namespace infer
