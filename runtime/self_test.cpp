// self_test(): which ops a model uses, with what limits, and the comparison of a device with the reference. The
// reference computes its few tokens of all ops at once, an op to a thread; then the device computes everything.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <new>
#include <numeric>
#include <thread>

#include "models/arch.h"
#include "models/parallel.h"
#include "quant/formats.h"
#include "runtime/loader.h"
#include "runtime/self_test.h"

namespace infer {
namespace {

using namespace self_testing;

using Clock = std::chrono::steady_clock;
using Tokens = std::span<const int>;

constexpr double kMostOverRms = 8;      // the worst number of thousands, in units of the limit on their mean square
constexpr double kMostStepMacs = 3e10;  // of one sequence on the reference: about half a minute
constexpr int kAlone[] = {0}, kTogether[] = {0, 1, 2};

/// An op on one shape. `device` and `reference` compute the same numbers for a token.
struct Op {
  SelfTestRow row;
  std::function<Parts(const Subject&, Tokens)> device, reference;
  double macs = 1;  ///< per token
  Parts wanted;     ///< of kChecked
};

/// `fp8`: quantised weights and their activations are rounded to three bits of fraction, 2.6 % of each. A product has
/// 3.7 % of its own then, an ffn twice that from gate to down.
double relative_limit(const std::vector<DType>& formats, bool fp8 = false) {
  double limit = 1e-4;
  for (const DType format : formats) {
    const FormatInfo* info = find_format(format);
    const double quantised = fp8 ? 1e-1 : 3.2e-2;
    limit = std::max(limit, format == DType::F32 ? 1e-4 : info && info->block == 1 ? 1e-2 : quantised);
  }
  return limit;
}

/// What the cache's own rounding may cost where it falls the other way.
double cache_limit(DType type) {
  if (type == DType::Q4_0) return 4e-2;
  return type == DType::F32 ? 1e-5 : type == DType::F16 ? 3e-4 : type == DType::BF16 ? 3e-3 : 1e-2;
}

std::string names(const std::vector<DType>& formats) {
  std::string out;
  std::vector<DType> seen;
  for (const DType format : formats) {
    if (std::find(seen.begin(), seen.end(), format) != seen.end()) continue;
    seen.push_back(format);
    out += (out.empty() ? "" : "/") + format_name(format);
  }
  return out;
}

void limit(SelfTestRow& row, double rms) { row.rms_limit = rms, row.max_limit = kMostOverRms * rms; }

std::string sizes(std::initializer_list<int64_t> values) {
  std::string out;
  for (const int64_t v : values) out += (out.empty() ? "" : "x") + std::to_string(v);
  return out;
}

struct Errors {
  double max = 0, rms = 0;
};

/// Errors of the rows `found_at[i]` of `found` against the rows `wanted_at[i]` of `wanted`.
Errors compare(const Part& found, const std::vector<size_t>& found_at, const Part& wanted,
               const std::vector<size_t>& wanted_at) {
  const auto width = static_cast<size_t>(wanted.width);
  double power = 0, error = 0, most = 0;
  for (size_t i = 0; i < found_at.size(); ++i) {
    const float* f = found.values.data() + found_at[i] * width;
    const float* w = wanted.values.data() + wanted_at[i] * width;
    for (size_t c = 0; c < width; ++c) {
      const double d = static_cast<double>(f[c]) - w[c];
      if (!std::isfinite(d)) return {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
      power += static_cast<double>(w[c]) * w[c];
      error += d * d;
      most = std::max(most, std::abs(d));
    }
  }
  const double n = static_cast<double>(found_at.size() * width), scale = power > 0 ? std::sqrt(power / n) : 1;
  return {most / scale, std::sqrt(error / n) / scale};
}

void judge(SelfTestRow& row, const Errors& error) {
  row.max_error = std::max(row.max_error, error.max);
  row.rms_error = std::max(row.rms_error, error.rms);
  row.passed = row.max_error <= row.max_limit && row.rms_error <= row.rms_limit;
}

class Tester {
 public:
  Tester(const Checkpoint& checkpoint, const LoadOptions& options, const Extract& extract,
         const std::function<void(const std::string&)>& progress)
      : checkpoint_(checkpoint), options_(options), extract_(extract), progress_(progress) {}

  void list_ops(const Weights& bound);
  void compute_reference(int n_threads);
  void compare_ops(const Subject& subject, SelfTest& out);
  void compare_steps(const Subject& subject, const DeviceName& device, SelfTest& out);

 private:
  void say(const std::string& text) const {
    if (progress_) progress_(text);
  }
  Op& add(const char* op, const std::vector<DType>& formats, std::string shape, double macs);
  void list_layer(size_t layer, const LayerWeights& w);
  void list_experts(size_t layer, const LayerWeights& w, const std::string& at);
  bool has_steps() const { return !steps_[0].empty(); }
  void compare_mode(const std::vector<Floats>& alone, const std::vector<Floats>& together, SelfTestRow row,
                    SelfTest& out) const;

  const Checkpoint& checkpoint_;
  const LoadOptions& options_;
  const Extract& extract_;
  const std::function<void(const std::string&)>& progress_;
  std::vector<Op> ops_;
  std::vector<Floats> steps_[3];  ///< the reference's, of each sequence alone; empty where that takes too long
};

Op& Tester::add(const char* op, const std::vector<DType>& formats, std::string shape, double macs) {
  Op& out = ops_.emplace_back();
  out.row.op = op;
  out.row.format = names(formats);
  out.row.shape = std::move(shape);
  out.macs = macs;
  limit(out.row, relative_limit(formats, options_.act == "fp8"));
  return out;
}

void Tester::list_layer(size_t layer, const LayerWeights& w) {
  const Config& c = extract_.config;
  const int64_t q = c.n_heads * c.head_dim, kv = c.n_kv_heads * c.head_dim;
  const std::string at = ", layer " + std::to_string(extract_.layers[layer]);
  const auto of = [](int64_t n) { return static_cast<double>(n); };
  Op& attn_in =
      add("attn_in", {w.wq.dtype, w.wk.dtype, w.wv.dtype}, sizes({c.dim, q + 2 * kv}) + at, of(c.dim * (q + 2 * kv)));
  limit(attn_in.row, std::max({attn_in.row.rms_limit, cache_limit(extract_.k_type), cache_limit(extract_.v_type)}));
  attn_in.device = attn_in.reference = [layer](const Subject& s, Tokens t) { return s.attn_in(layer, t); };
  const int64_t window = c.layers[layer].window;
  const std::string heads = sizes({c.n_heads, c.n_kv_heads, c.head_dim}) +
                            (window > 0 ? ", window " + std::to_string(window) : std::string()) + at;
  // Without weights, attention differs by its window alone.
  const auto before = c.layers.begin() + static_cast<std::ptrdiff_t>(layer);
  const bool again = std::any_of(c.layers.begin(), before, [&](const LayerConfig& l) { return l.window == window; });
  for (const bool prompt : {true, false}) {
    if (again) break;
    Op& op = add(prompt ? "attention of a prompt" : "attention of sequences", {extract_.k_type, extract_.v_type}, heads,
                 of(q * 512));
    limit(op.row, 1.5e-2);  // 16-bit queries and weights on tensor cores
    op.device = [=](const Subject& s, Tokens t) { return s.attention(layer, t, prompt, !prompt); };
    op.reference = [=](const Subject& s, Tokens t) { return s.attention(layer, t, false, !prompt); };
  }
  add("attn_out", {w.wo.dtype}, sizes({q, c.dim}) + at, of(c.dim * q));
  ops_.back().device = ops_.back().reference = [layer](const Subject& s, Tokens t) { return s.attn_out(layer, t); };
  if (c.layers[layer].experts) return list_experts(layer, w, at);
  add("ffn", {w.w_gate.dtype, w.w_up.dtype, w.w_down.dtype}, sizes({c.dim, c.ffn_dim}) + at, of(3 * c.dim * c.ffn_dim));
  ops_.back().device = ops_.back().reference = [layer](const Subject& s, Tokens t) { return s.ffn(layer, t); };
}

void Tester::list_experts(size_t layer, const LayerWeights& w, const std::string& at) {
  const Config& c = extract_.config;
  const ExpertsConfig& e = c.experts;
  const std::string shape = sizes({e.n_experts, c.dim, e.expert_dim}) + ", " + std::to_string(e.n_active) + " active" +
                            (e.shared_dim > 0 ? ", shared " + std::to_string(e.shared_dim) : "") + at;
  // The reference decodes the weights of every expert that any of its tokens chose.
  add("moe_ffn", {w.w_gate.dtype, w.w_up.dtype, w.w_down.dtype}, shape,
      static_cast<double>(3 * c.dim * (e.n_active * e.expert_dim + e.shared_dim)));
  ops_.back().device = ops_.back().reference = [layer](const Subject& s, Tokens t) { return s.moe_ffn(layer, t); };
}

/// `weights`: of the reference, whose tensors still have the file's formats.
void Tester::list_ops(const Weights& weights) {
  const Config& c = extract_.config;
  add("embed", {weights.embed.dtype}, sizes({c.vocab, c.dim}), 1);
  limit(ops_.back().row, 1e-6);
  ops_.back().device = ops_.back().reference = [](const Subject& s, Tokens t) { return s.embed(t); };
  for (size_t i = 0; i < weights.layers.size(); ++i) list_layer(i, weights.layers[i]);
  add("logits", {weights.head.dtype}, sizes({c.dim, c.vocab}), static_cast<double>(c.dim * c.vocab));
  limit(ops_.back().row, relative_limit({weights.head.dtype}));  // the head is never in fp8
  ops_.back().device = ops_.back().reference = [](const Subject& s, Tokens t) { return s.logits(t); };
}

void Tester::compute_reference(int n_threads) {
  const auto backend = make_backend("ref");
  const Subject subject(checkpoint_, extract_, *backend);
  list_ops(subject.weights());
  std::vector<std::function<void()>> tasks;
  std::vector<double> work;
  const auto step_macs = [&](int64_t n) {
    return static_cast<double>(n + kDecodedTokens) * extract_.layer_params +
           (1 + kDecodedTokens) * extract_.head_params;
  };
  if (step_macs(kPromptLengths[0]) <= kMostStepMacs) {
    for (int s = 0; s < 3; ++s) {
      tasks.push_back([this, &subject, s] {
        const auto own = make_backend("ref");
        steps_[s] = whole_steps(subject, extract_, *own, std::span(&s, 1));
      });
      work.push_back(step_macs(kPromptLengths[s]));
    }
  }
  for (Op& op : ops_) {
    tasks.push_back([&subject, &op] { op.wanted = op.reference(subject, kChecked); });
    work.push_back(op.macs * std::size(kChecked));
  }
  int told = 0;
  run_parallel(
      work, n_threads, [&](size_t i) { tasks[i](); },
      [&](double share) {
        const int quarter = static_cast<int>(share * 4);
        if (quarter > told) say("reference " + std::to_string(25 * quarter) + " %");
        told = std::max(told, quarter);
        return true;
      });
}

void Tester::compare_ops(const Subject& subject, SelfTest& out) {
  std::vector<int> tokens(kMostTokens);
  std::iota(tokens.begin(), tokens.end(), 0);
  for (const Op& op : ops_) {
    for (const int64_t n : kTokenCounts) {
      SelfTestRow row = op.row;
      row.n_tokens = n;
      const Parts found = op.device(subject, Tokens(tokens).first(static_cast<size_t>(n)));
      std::vector<size_t> found_at, wanted_at;
      for (size_t i = 0; i < std::size(kChecked); ++i) {
        if (kChecked[i] >= n) continue;
        found_at.push_back(static_cast<size_t>(kChecked[i]));
        wanted_at.push_back(i);
      }
      for (size_t p = 0; p < op.wanted.size(); ++p) judge(row, compare(found[p], found_at, op.wanted[p], wanted_at));
      out.rows.push_back(std::move(row));
    }
  }
  for (const int64_t n : {1, 4, 33}) {
    const int64_t wrong = wrong_draws(subject.backend(), extract_.config.vocab, n);
    if (wrong < 0) break;
    SelfTestRow row{"sample (wrong ids)", "F32", std::to_string(extract_.config.vocab), n};
    judge(row, {static_cast<double>(wrong), static_cast<double>(wrong)});
    out.rows.push_back(std::move(row));
  }
}

/// Steps of one sequence and of three, against the sequences that the reference has computed one by one.
void Tester::compare_mode(const std::vector<Floats>& alone, const std::vector<Floats>& together, SelfTestRow row,
                          SelfTest& out) const {
  const auto part = [&](const Floats& values) { return Part{extract_.config.vocab, values}; };
  const std::string mode = row.op;
  for (const bool single : {true, false}) {
    SelfTestRow r = row;
    const size_t n_seqs = single ? 1 : 3;
    r.op = mode + (single ? ", one sequence" : ", three sequences");
    const std::vector<Floats>& found = single ? alone : together;
    // All rows together: where a model sits on the edge between two answers, rounding alone moves a single row far.
    Floats all, wanted;
    std::vector<size_t> rows;
    for (size_t i = 0; i < found.size(); ++i) {
      const Floats& reference = steps_[i % n_seqs][i / n_seqs];
      all.insert(all.end(), found[i].begin(), found[i].end());
      wanted.insert(wanted.end(), reference.begin(), reference.end());
      rows.push_back(i);
    }
    judge(r, compare(part(all), rows, part(wanted), rows));
    r.n_tokens = single ? kPromptLengths[0] : std::accumulate(std::begin(kPromptLengths), std::end(kPromptLengths), 0);
    out.rows.push_back(std::move(r));
  }
}

void Tester::compare_steps(const Subject& subject, const DeviceName& device, SelfTest& out) {
  const bool gpu = find_backend(device.name).devices != nullptr;
  const std::vector<std::string> modes =
      gpu ? std::vector<std::string>{"eager", "graph", "auto"} : std::vector<std::string>{""};
  SelfTestRow row;
  std::vector<DType> formats = extract_.needs.all_matrix_formats();
  row.format = names(formats);
  row.shape = std::to_string(extract_.layers.size()) + " of the file's layers";
  if (!has_steps()) out.notes.push_back("whole steps were not compared with the reference, which would take minutes");
  std::map<std::string, std::vector<Floats>> all;
  for (const std::string& mode : modes) {
    say("whole steps" + (mode.empty() ? "" : ", mode " + mode));
    BackendOptions own = backend_options(options_, device.index);
    own.mode = mode;
    const auto backend = make_backend(device.name, own);
    backend->prepare(extract_.needs);
    const std::vector<Floats> alone = whole_steps(subject, extract_, *backend, kAlone);
    const std::vector<Floats> together = whole_steps(subject, extract_, *backend, kTogether);
    row.op = mode.empty() ? "steps" : "steps, " + mode;
    // Errors of layers add up, and a cache and 8- or 16-bit activations lie between them.
    limit(row, std::max(relative_limit(formats) < 3e-2 ? 5 * relative_limit(formats) : 2 * relative_limit(formats),
                        std::max(cache_limit(extract_.k_type), cache_limit(extract_.v_type))));
    row.max_limit = std::max(row.max_limit, 2.0);
    // A token that stands between two experts goes to the other one where activations were rounded.
    if (extract_.config.experts.n_experts > 0 && relative_limit(extract_.needs.expert_formats) > 3e-2)
      row.rms_limit *= 4;
    if (has_steps()) compare_mode(alone, together, row, out);
    all[mode] = alone;
    all[mode].insert(all[mode].end(), together.begin(), together.end());
  }
  if (!gpu) return;
  SelfTestRow same = row;  // bit for bit
  same.op = "steps, graph = eager";
  limit(same, 0);
  SelfTestRow close = row;
  close.op = "steps, auto = eager";
  for (size_t i = 0; i < all["eager"].size(); ++i) {
    const Part eager{extract_.config.vocab, all["eager"][i]};
    judge(same, compare({eager.width, all["graph"][i]}, {0}, eager, {0}));
    judge(close, compare({eager.width, all["auto"][i]}, {0}, eager, {0}));
  }
  out.rows.push_back(std::move(same));
  out.rows.push_back(std::move(close));
}

SelfTest test(const std::string& path, const LoadOptions& options, const std::string& k_type, const std::string& v_type,
              const std::function<void(const std::string&)>& progress) {
  const auto start = Clock::now();
  SelfTest out;
  const Checkpoint checkpoint = open_checkpoint(path, options);
  const Config config = read_config(checkpoint);
  Weights unpacked;
  DeviceChoice choice = choose_device(options, config, bind_weights(checkpoint, config, unpacked));
  const Extract sample = extract(checkpoint, choice.device.name, k_type, v_type);
  if (sample.n_kinds > static_cast<int64_t>(sample.layers.size()))
    out.notes.push_back("the file has " + std::to_string(sample.n_kinds) + " kinds of layers, and the first " +
                        std::to_string(sample.layers.size()) + " were tested");
  choice.backend->prepare(sample.needs);
  out.device = choice.backend->describe();
  Tester tester(checkpoint, options, sample, progress);
  const int n_threads =
      options.n_threads > 0 ? options.n_threads : static_cast<int>(std::thread::hardware_concurrency());
  tester.compute_reference(std::clamp(n_threads, 1, 64));
  if (progress) progress("ops on " + out.device);
  const Subject subject(checkpoint, sample, *choice.backend);
  tester.compare_ops(subject, out);
  tester.compare_steps(subject, choice.device, out);
  out.passed = std::all_of(out.rows.begin(), out.rows.end(), [](const SelfTestRow& row) { return row.passed; });
  out.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return out;
}

}  // namespace

SelfTest self_test(const std::string& path, const LoadOptions& options, const std::string& k_type,
                   const std::string& v_type, const std::function<void(const std::string&)>& progress) {
  try {
    LoadOptions whole = options;
    whole.vocab_only = false;
    return test(path, whole, k_type, v_type, progress);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::does_not_fit, escaped(path), "out of memory in the self-test");
  }
}

}  // namespace infer
