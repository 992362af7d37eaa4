// Stamps around ops and steps, and what they add up to.
#include "kernels/timed_backend.h"

#include <time.h>

#include <algorithm>

namespace infer {
namespace {

constexpr int kEmptyOps = 64;  // of which the mean is what a launch costs

/// Of a weight as `backend` holds it. A view takes what the file has.
double held_bytes(const Backend& backend, const Tensor& weight, WeightRole role) {
  const size_t packed = backend.packed_bytes(weight, role);
  return static_cast<double>(packed != 0 ? packed : static_cast<size_t>(tensor_file_bytes(weight)));
}

}  // namespace

double thread_cpu_seconds() {
  timespec t = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

TimedBackend::TimedBackend(std::unique_ptr<Backend> backend) : inner_(std::move(backend)) {
  const Backend& inner = *inner_;
  sizes_.matrix = [&inner](const Tensor& w) { return held_bytes(inner, w, WeightRole::matrix); };
  sizes_.table = [&inner](const Tensor& w) { return held_bytes(inner, w, WeightRole::embedding); };
}

void TimedBackend::look_at(Look look) {
  inner_->wait();
  look_ = look;
}

void TimedBackend::reset() {
  timed_.clear(), timed_steps_.clear(), ops_.clear();
  for (StepTally& tally : steps_) tally = {};
  inner_->forget_stamps();
}

void TimedBackend::collect() {
  last_ops_.clear();
  for (const Timed& t : timed_) {
    last_ops_.push_back({ops_[t.op].name, inner_->seconds_between(t.begin, t.end)});
    ops_[t.op].seconds += last_ops_.back().seconds;
  }
  for (size_t i = 0; i < timed_steps_.size(); ++i) {
    last_seconds_ = inner_->seconds_between(timed_steps_[i].begin, timed_steps_[i].end);
    now().seconds += last_seconds_;
    if (i > 0) now().gap_seconds += inner_->seconds_between(timed_steps_[i - 1].end, timed_steps_[i].begin);
  }
  now().n_steps += static_cast<int64_t>(timed_steps_.size());
  timed_.clear(), timed_steps_.clear();
  inner_->forget_stamps();
}

double TimedBackend::launch_seconds() {
  const int64_t rows = 8 * inner_->n_threads();  // work for all threads, next to none for each
  const Buffer memory = inner_->allocate(static_cast<size_t>(rows) * sizeof(float));
  const Tensor x(memory.get(), DType::F32, {rows, 1});
  double least = 0;
  for (int repetition = 0; repetition < 4; ++repetition) {  // the first wakes the threads or loads the kernel
    const uint64_t begin = inner_->stamp();
    for (int i = 0; i < kEmptyOps; ++i) inner_->scale_softcap(x, 2, 0);
    const double seconds = inner_->seconds_between(begin, inner_->stamp()) / kEmptyOps;
    if (repetition > 0) least = repetition == 1 ? seconds : std::min(least, seconds);
    inner_->forget_stamps();
  }
  return least;
}

int64_t TimedBackend::launches() const {
  const BackendStats stats = inner_->stats();
  return stats.launches + stats.stages;  // a backend counts one of them
}

size_t TimedBackend::tally(const char* name) {
  const auto found = std::find_if(ops_.begin(), ops_.end(), [&](const OpTally& t) { return t.name == name; });
  if (found != ops_.end()) return static_cast<size_t>(found - ops_.begin());
  ops_.emplace_back().name = name;
  return ops_.size() - 1;
}

void TimedBackend::note_kernels(const char* name, const std::function<void()>& fn) {
  auto op = std::find_if(kernels_.begin(), kernels_.end(), [&](const OpKernels& o) { return o.name == name; });
  if (op == kernels_.end()) op = kernels_.insert(op, {name, n_ops_steps_, {}});
  if (op->step != n_ops_steps_) return;
  for (const KernelUse& use : inner_->kernels_of(fn)) {
    const auto same = std::find_if(op->kernels.begin(), op->kernels.end(), [&](const KernelUse& other) {
      return other.name == use.name && other.n_blocks == use.n_blocks && other.n_threads == use.n_threads &&
             other.shared_bytes == use.shared_bytes;
    });
    if (same == op->kernels.end())
      op->kernels.push_back(use);
    else
      same->n_launches += use.n_launches;
  }
}

std::vector<KernelUse> TimedBackend::kernels(const std::string& name) const {
  for (const OpKernels& op : kernels_)
    if (op.name == name) return op.kernels;
  return {};
}

template <class Fn>
void TimedBackend::op(const char* name, const OpCost& cost, Fn fn) {
  if (look_ == Look::prefixes && left_-- <= 0) return;
  if (look_ != Look::ops || !in_step_) return fn();
  const size_t index = tally(name);
  const int64_t launches_before = launches();
  const uint64_t begin = inner_->stamp();
  fn();
  timed_.push_back({index, begin, inner_->stamp()});
  OpTally& t = ops_[index];
  ++t.n_calls;
  t.n_launches += launches() - launches_before;
  t.cost += cost;
  t.call_bytes = std::max(t.call_bytes, cost.weight_bytes + cost.activation_bytes);
  note_kernels(name, fn);  // after it has run once: nothing has to be loaded while its launches are captured
}

void TimedBackend::run(uint64_t key, const std::function<void()>& fn) {
  if (look_ == Look::nothing) return inner_->run(key, fn);
  launches_begin_ = launches();
  cpu_begin_ = thread_cpu_seconds();
  in_step_ = true;
  if (look_ == Look::ops) ++n_ops_steps_;
  timed_steps_.push_back({inner_->stamp(), 0});
  left_ = kWhole;
  if (look_ == Look::prefixes && cut_ != kWhole) {
    const auto prefix = [&] { left_ = cut_, fn(); };
    if (cut_ > 0) inner_->run_prefix(key, cut_, prefix);
    left_ = 0;  // for the draw, and where the prefix was replayed
  } else {
    inner_->run(look_ == Look::ops ? 0 : key, fn);
  }
  if (look_ == Look::steps && step_kernels_.empty()) step_kernels_ = inner_->kernels_of_step(key);
}

uint64_t TimedBackend::mark() {
  if (in_step_) {
    timed_steps_.back().end = inner_->stamp();
    now().n_launches += launches() - launches_begin_;
    now().cpu_seconds += thread_cpu_seconds() - cpu_begin_;
    in_step_ = false;
  }
  return inner_->mark();
}

void TimedBackend::embed(const EmbedArgs& a) {
  op("embed", cost(a, sizes_), [&] { inner_->embed(a); });
}
void TimedBackend::norm(const NormArgs& a) {
  op("norm", cost(a), [&] { inner_->norm(a); });
}
void TimedBackend::matmul(const MatmulArgs& a) {
  op("matmul", cost(a, sizes_), [&] { inner_->matmul(a); });
}
void TimedBackend::activate(const ActivateArgs& a) {
  op("activate", cost(a), [&] { inner_->activate(a); });
}
void TimedBackend::add(const AddArgs& a) {
  op("add", cost(a), [&] { inner_->add(a); });
}
void TimedBackend::rope_store(const RopeStoreArgs& a) {
  op("rope_store", cost(a), [&] { inner_->rope_store(a); });
}
void TimedBackend::attention(const AttentionArgs& a) {
  double seen = 0, read = 0;
  for (const Share& s : shares_) {
    seen += seen_positions(s.position, s.n, a.window);
    const int64_t before = a.window > 0 ? std::min(s.position, a.window - 1) : s.position;
    read += static_cast<double>(before + s.n);
  }
  op("attention", cost(a, seen, read), [&] { inner_->attention(a); });
}
void TimedBackend::gather(const Tensor& x, const Tensor& rows, const Tensor& out) {
  op("gather", cost_of_gather(rows, out), [&] { inner_->gather(x, rows, out); });
}
void TimedBackend::scale_softcap(const Tensor& x, float scale, float softcap) {
  op("scale_softcap", cost_of_scale_softcap(x), [&] { inner_->scale_softcap(x, scale, softcap); });
}
void TimedBackend::route(const RouteArgs& a) {
  op("route", cost(a), [&] { inner_->route(a); });
}
void TimedBackend::expert_matmul(const ExpertMatmulArgs& a) {
  op("expert_matmul", cost(a, sizes_), [&] { inner_->expert_matmul(a); });
}
void TimedBackend::combine(const CombineArgs& a) {
  op("combine", cost(a), [&] { inner_->combine(a); });
}
void TimedBackend::sample(const SampleArgs& a) {
  op("sample", cost(a), [&] { inner_->sample(a); });
}
void TimedBackend::attn_in(const AttnInArgs& a) {
  op("attn_in", cost(a, sizes_), [&] { inner_->attn_in(a); });
}
void TimedBackend::attn_out(const AttnOutArgs& a) {
  op("attn_out", cost(a, sizes_), [&] { inner_->attn_out(a); });
}
void TimedBackend::ffn(const FfnArgs& a) {
  op("ffn", cost(a, sizes_), [&] { inner_->ffn(a); });
}
void TimedBackend::moe_ffn(const MoeFfnArgs& a) {
  op("moe_ffn", cost(a, sizes_), [&] { inner_->moe_ffn(a); });
}
void TimedBackend::logits(const LogitsArgs& a) {
  op("logits", cost(a, sizes_), [&] { inner_->logits(a); });
}

}  // namespace infer
