// Which tensors a Config calls for (one table of rules), whether the checkpoint has them in the right shape and format
// (bind_weights, before anything is allocated), and their way into a backend's memory (load_weights, in parallel).
#include "models/weights.h"

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <type_traits>

#include "models/parallel.h"
#include "models/stack.h"
#include "quant/formats.h"

namespace infer {
namespace {

/// Sizes that shapes are made of.
enum class Size {
  one,
  dim,
  q_width,
  kv_width,
  q_norm,
  k_norm,
  n_heads,
  ffn_dim,
  vocab,
  n_experts,
  expert_dim,
  shared_dim
};

int64_t size_of(const Config& c, Size size) {
  switch (size) {
    case Size::one:
      return 1;
    case Size::dim:
      return c.dim;
    case Size::q_width:
      return c.n_heads * c.head_dim;
    case Size::kv_width:
      return c.n_kv_heads * c.head_dim;
    case Size::q_norm:
      return c.qk_norm_whole ? c.n_heads * c.head_dim : c.head_dim;
    case Size::k_norm:
      return c.qk_norm_whole ? c.n_kv_heads * c.head_dim : c.head_dim;
    case Size::n_heads:
      return c.n_heads;
    case Size::ffn_dim:
      return c.ffn_dim;
    case Size::vocab:
      return c.vocab;
    case Size::n_experts:
      return c.experts.n_experts;
    case Size::expert_dim:
      return c.experts.expert_dim;
    case Size::shared_dim:
      return c.experts.shared_dim;
  }
  return 0;
}

enum class When {
  always,
  present,          ///< optional: used when the file has it
  qk_norm,          ///< exactly when Config::qk_norm
  post_norms,       ///< exactly when Config::post_norms
  sinks,            ///< exactly when Config::attn_sinks
  own_name,         ///< unless Config::ffn_norm_is_post_attention_norm
  other_name,       ///< exactly then
  dense,            ///< in layers without experts
  dense_present,    ///< there, when the file has it
  experts,          ///< in layers with experts
  experts_present,  ///< there, when the file has it
  shared,           ///< there, when Config::experts has a shared one
};

/// Matrices are [rows, cols]; vectors have rows only; stacks of either have a number of experts before that.
template <class Owner>
struct TensorRule {
  const char* name;  ///< in GGUF; for layers after "blk.<i>."
  Tensor Owner::*member;
  Size rows, cols;
  WeightRole role;
  When when;
  Size stack = Size::one;
};

constexpr WeightRole kMatrix = WeightRole::matrix, kVector = WeightRole::vector;

constexpr TensorRule<Weights> kModelRules[] = {
    {"token_embd.weight", &Weights::embed, Size::vocab, Size::dim, WeightRole::embedding, When::always},
    {"output_norm.weight", &Weights::output_norm, Size::dim, Size::one, kVector, When::always},
    {"output.weight", &Weights::head, Size::vocab, Size::dim, kMatrix, When::present},
    {"output.bias", &Weights::head_bias, Size::vocab, Size::one, kVector, When::present},
};

// load_weights() packs in this order, without gaps where sizes allow it: q, k, v and gate, up stay together, so that a
// backend can take each of these as one matrix.
using L = LayerWeights;
constexpr TensorRule<LayerWeights> kLayerRules[] = {
    {"attn_norm.weight", &L::attn_norm, Size::dim, Size::one, kVector, When::always},
    {"attn_q.weight", &L::wq, Size::q_width, Size::dim, kMatrix, When::always},
    {"attn_k.weight", &L::wk, Size::kv_width, Size::dim, kMatrix, When::always},
    {"attn_v.weight", &L::wv, Size::kv_width, Size::dim, kMatrix, When::always},
    {"attn_q.bias", &L::bq, Size::q_width, Size::one, kVector, When::present},
    {"attn_k.bias", &L::bk, Size::kv_width, Size::one, kVector, When::present},
    {"attn_v.bias", &L::bv, Size::kv_width, Size::one, kVector, When::present},
    {"attn_q_norm.weight", &L::q_norm, Size::q_norm, Size::one, kVector, When::qk_norm},
    {"attn_k_norm.weight", &L::k_norm, Size::k_norm, Size::one, kVector, When::qk_norm},
    {"attn_sinks.weight", &L::attn_sinks, Size::n_heads, Size::one, kVector, When::sinks},
    {"attn_output.weight", &L::wo, Size::dim, Size::q_width, kMatrix, When::always},
    {"attn_output.bias", &L::bo, Size::dim, Size::one, kVector, When::present},
    {"post_attention_norm.weight", &L::attn_post_norm, Size::dim, Size::one, kVector, When::post_norms},
    {"ffn_norm.weight", &L::ffn_norm, Size::dim, Size::one, kVector, When::own_name},
    {"post_attention_norm.weight", &L::ffn_norm, Size::dim, Size::one, kVector, When::other_name},
    {"ffn_gate.weight", &L::w_gate, Size::ffn_dim, Size::dim, kMatrix, When::dense},
    {"ffn_up.weight", &L::w_up, Size::ffn_dim, Size::dim, kMatrix, When::dense},
    {"ffn_down.weight", &L::w_down, Size::dim, Size::ffn_dim, kMatrix, When::dense},
    {"ffn_gate.bias", &L::b_gate, Size::ffn_dim, Size::one, kVector, When::dense_present},
    {"ffn_up.bias", &L::b_up, Size::ffn_dim, Size::one, kVector, When::dense_present},
    {"ffn_down.bias", &L::b_down, Size::dim, Size::one, kVector, When::dense_present},
    {"ffn_gate_inp.weight", &L::w_router, Size::n_experts, Size::dim, kMatrix, When::experts},
    {"ffn_gate_inp.bias", &L::b_router, Size::n_experts, Size::one, kVector, When::experts_present},
    {"ffn_gate_exps.weight", &L::w_gate, Size::expert_dim, Size::dim, kMatrix, When::experts, Size::n_experts},
    {"ffn_up_exps.weight", &L::w_up, Size::expert_dim, Size::dim, kMatrix, When::experts, Size::n_experts},
    {"ffn_down_exps.weight", &L::w_down, Size::dim, Size::expert_dim, kMatrix, When::experts, Size::n_experts},
    {"ffn_gate_exps.bias", &L::b_gate, Size::expert_dim, Size::one, kVector, When::experts_present, Size::n_experts},
    {"ffn_up_exps.bias", &L::b_up, Size::expert_dim, Size::one, kVector, When::experts_present, Size::n_experts},
    {"ffn_down_exps.bias", &L::b_down, Size::dim, Size::one, kVector, When::experts_present, Size::n_experts},
    {"ffn_gate_inp_shexp.weight", &L::shared_mix, Size::dim, Size::one, kVector, When::shared},
    {"ffn_gate_shexp.weight", &L::w_shared_gate, Size::shared_dim, Size::dim, kMatrix, When::shared},
    {"ffn_up_shexp.weight", &L::w_shared_up, Size::shared_dim, Size::dim, kMatrix, When::shared},
    {"ffn_down_shexp.weight", &L::w_shared_down, Size::dim, Size::shared_dim, kMatrix, When::shared},
    {"post_ffw_norm.weight", &L::ffn_post_norm, Size::dim, Size::one, kVector, When::post_norms},
};

/// A tensor that some files have instead of its parts, whose rows it holds one part after the other.
struct FusedRule {
  std::string_view name;
  std::array<std::string_view, 3> parts;
};
constexpr FusedRule kFusedRules[] = {
    {"attn_qkv.weight", {"attn_q.weight", "attn_k.weight", "attn_v.weight"}},
    {"attn_qkv.bias", {"attn_q.bias", "attn_k.bias", "attn_v.bias"}},
    {"ffn_up.weight", {"ffn_gate.weight", "ffn_up.weight"}},
    {"ffn_up.bias", {"ffn_gate.bias", "ffn_up.bias"}},
};

/// The rule for a layer's tensor of this name.
const TensorRule<LayerWeights>& layer_rule(std::string_view name) {
  return *std::find_if(std::begin(kLayerRules), std::end(kLayerRules),
                       [&](const auto& rule) { return rule.name == name; });
}

/// Tensors that no rule binds: divisors, which rope_config.cpp has read, and tables of angles that old converters left
/// behind.
bool known_extra(std::string_view name) {
  return name == "rope_freqs.weight" || name == "rope_factors_long.weight" || name == "rope_factors_short.weight" ||
         name.ends_with(".attn_rot_embd.weight");
}

std::string dims_text(const std::vector<int64_t>& dims) {
  std::string out;
  for (int64_t n : dims) out.append(out.empty() ? "[" : ", ").append(std::to_string(n));
  return out + "]";
}

/// Names of all formats that can be decoded.
template <class... F>
std::string names(FormatList<F...>) {
  std::string out;
  ((out += (out.empty() ? "" : ", ") + std::string(F::name)), ...);
  return out;
}

bool allowed_format(DType dtype, WeightRole role) {
  if (role != WeightRole::embedding && role != WeightRole::vector) return gpu_decodable(dtype);
  if (role != WeightRole::vector) return decodable(dtype);
  return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16;
}

class Binder {
 public:
  Binder(const Checkpoint& checkpoint, const Config& config) : checkpoint_(checkpoint), config_(config) {}

  /// `experts`: the layer has them.
  template <class Owner>
  void apply(const TensorRule<Owner>& rule, const std::string& prefix, Owner& owner, bool experts) {
    const std::string name = prefix + rule.name;
    if (!called_for(rule.when, experts)) return;
    if constexpr (std::is_same_v<Owner, LayerWeights>) {
      if (apply_fused(rule, prefix, owner)) return;
    }
    const HostTensor* source = checkpoint_.find_tensor(name);
    if (!source) {
      if (optional(rule.when)) return;
      checkpoint_.refuse(name, "required tensor is missing", reason(prefix),
                         dims_text(shape_of(rule.rows, rule.cols, rule.stack)));
    }
    const bool one_row = rule.when == When::shared;  // converters keep the matrix of one row that the original has
    bind(*source, shape_of(rule.rows, rule.cols, rule.stack), rule.role, &(owner.*rule.member), one_row);
  }

  /// `one_row`: a vector may come as a matrix of one row.
  void bind(const HostTensor& source, const std::vector<int64_t>& shape, WeightRole role, Tensor* target,
            bool one_row = false) {
    check(source, shape, role, one_row);
    bind_rows(source, shape, 0, role, target);
  }

  void refuse_extras() const {
    for (const HostTensor& tensor : checkpoint_.tensors) {
      if (!used_.contains(&tensor) && !known_extra(tensor.name)) {
        checkpoint_.refuse(tensor.name, "unexpected tensor: " + config_.arch + " with " +
                                            std::to_string(config_.n_layers) + " layers has no use for it");
      }
    }
  }

  std::vector<int64_t> shape_of(Size rows, Size cols, Size stack = Size::one) const {
    std::vector<int64_t> shape;
    if (stack != Size::one) shape.push_back(size_of(config_, stack));
    shape.push_back(size_of(config_, rows));
    if (cols != Size::one) shape.push_back(size_of(config_, cols));
    return shape;
  }

  std::vector<BoundTensor> take() { return std::move(bound_); }

 private:
  /// Binds the rows of this rule of a tensor that holds those of several; false when the file does not have it so.
  bool apply_fused(const TensorRule<LayerWeights>& rule, const std::string& prefix, LayerWeights& owner) {
    for (const FusedRule& fused : kFusedRules) {
      const auto part = std::find(fused.parts.begin(), fused.parts.end(), rule.name);
      if (part == fused.parts.end() || checkpoint_.find_tensor(prefix + std::string(fused.parts[0]))) continue;
      const HostTensor* source = checkpoint_.find_tensor(prefix + std::string(fused.name));
      if (!source) continue;
      const std::vector<int64_t> shape = shape_of(rule.rows, rule.cols);
      std::vector<int64_t> whole = shape;
      whole[0] = 0;
      int64_t before = 0;
      for (auto p = fused.parts.begin(); p != fused.parts.end() && !p->empty(); ++p) {
        if (p == part) before = whole[0];
        whole[0] += size_of(config_, layer_rule(*p).rows);
      }
      // One name means the last part alone as well as the whole: a file that has neither shape is told of the part.
      if (fused.name == fused.parts[1] && source->dims != whole) continue;
      check(*source, whole, rule.role);
      bind_rows(*source, shape, before, rule.role, &(owner.*rule.member));
      return true;
    }
    return false;
  }

  void check(const HostTensor& source, const std::vector<int64_t>& shape, WeightRole role, bool one_row = false) const {
    const bool as_matrix = one_row && shape.size() == 1 && source.dims == std::vector{int64_t{1}, shape[0]};
    if (source.dims != shape && !as_matrix) {
      checkpoint_.refuse(source.name, "wrong shape", dims_text(source.dims), dims_text(shape));
    }
    if (!allowed_format(source.dtype, role)) {
      checkpoint_.refuse(source.name, "unsupported format for this tensor", format_name(source.dtype),
                         role == WeightRole::vector ? "F32, F16, BF16" : names(Formats{}));
    }
    const int64_t bytes = bytes_of(source.dtype, shape);
    if (bytes < 0 || static_cast<size_t>(bytes) != source.bytes ||
        (!source.data && source.parts.empty() && !source.make)) {
      checkpoint_.refuse(source.name, "wrong size", std::to_string(source.bytes) + " bytes",
                         bytes < 0 ? "rows of whole blocks" : std::to_string(bytes) + " bytes");
    }
  }

  /// `before`: rows of a checked tensor that lie in front of those of `shape`.
  void bind_rows(const HostTensor& source, const std::vector<int64_t>& shape, int64_t before, WeightRole role,
                 Tensor* target) {
    std::vector<int64_t> skipped = shape;
    skipped[0] = before;
    Tensor host;
    // A view; nobody writes through it. Of a tensor in parts it is that of the first one, of one that is yet to be made
    // null, see stack.h.
    const std::byte* data = source.parts.empty() ? source.data : source.parts[0];
    if (data) host.data = const_cast<std::byte*>(data) + bytes_of(source.dtype, skipped);
    host.dtype = source.dtype;
    for (int64_t n : shape) host.dims[host.n_dims++] = n;
    used_.insert(&source);
    const bool chooses = config_.experts.n_experts > 0 && (source.dtype == DType::BF16 || source.dtype == DType::MXFP4);
    const bool fine = role == WeightRole::matrix && (source.fine || chooses);
    bound_.push_back({&source, host, fine ? WeightRole::fine_matrix : role, target, before});
  }

  static int64_t bytes_of(DType dtype, const std::vector<int64_t>& shape) {
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
    return tensor_bytes(dtype, rows, shape.back());
  }

  static bool optional(When when) {
    return when == When::present || when == When::dense_present || when == When::experts_present;
  }
  bool called_for(When when, bool experts) const {
    switch (when) {
      case When::always:
      case When::present:
        return true;
      case When::qk_norm:
        return config_.qk_norm;
      case When::post_norms:
        return config_.post_norms;
      case When::sinks:
        return config_.attn_sinks;
      case When::own_name:
        return !config_.ffn_norm_is_post_attention_norm;
      case When::other_name:
        return config_.ffn_norm_is_post_attention_norm;
      case When::dense:
      case When::dense_present:
        return !experts;
      case When::experts:
      case When::experts_present:
        return experts;
      case When::shared:
        return experts && config_.experts.shared_dim > 0;
    }
    return false;
  }
  /// Why a tensor was expected: layers exist because the file says how many there are.
  std::string reason(const std::string& prefix) const {
    const std::string count =
        prefix.empty() ? "" : " and " + config_.arch + ".block_count " + std::to_string(config_.n_layers);
    return "nothing, although the architecture is " + config_.arch + count;
  }

  const Checkpoint& checkpoint_;
  const Config& config_;
  std::vector<BoundTensor> bound_;
  std::set<const HostTensor*> used_;
};

constexpr size_t kAlignment = 256;  // of whole lines of every cache, and of bulk copies
size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// Refuses NaN and infinity by tensor name and index.
void check_finite(const Checkpoint& checkpoint, const BoundTensor& tensor) {
  constexpr int64_t kRows = 64;  // at a time, of those that do not lie in one piece
  const Tensor& t = tensor.host;
  const int64_t cols = t.cols(), rows = t.n_elements() / cols, stride = row_bytes(t.dtype, cols);
  const int64_t before = t.n_dims == 1 ? tensor.first_row : tensor.first_row * cols;  // in the tensor of the file
  const bool lies = in_one_piece(*tensor.source);
  std::vector<std::byte> some(static_cast<size_t>(lies ? 0 : kRows * stride));
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    if (!lies && r % kRows == 0) tensor.source->copy_rows(tensor.first_row + r, std::min(kRows, rows - r), some.data());
    const std::byte* from = lies ? t.as<std::byte>() + r * stride : some.data() + r % kRows * stride;
    decode_row(t.dtype, from, row.data(), cols);
    for (int64_t i = 0; i < cols; ++i) {
      // Exponent bits all set: NaN or infinity, whatever the floating-point flags of this build.
      if ((float_bits(row[static_cast<size_t>(i)]) & 0x7f800000) != 0x7f800000) continue;
      checkpoint.refuse(tensor.source->name, "not a finite number at index " + std::to_string(before + r * cols + i),
                        std::to_string(row[static_cast<size_t>(i)]), "finite weights");
    }
  }
}

void add_names(const std::vector<BoundTensor>& bound, Weights& weights) {
  std::set<const HostTensor*> named;
  for (const BoundTensor& t : bound)
    if (is_matrix(t.role) && named.insert(t.source).second) weights.matrices.push_back({t.source->name, *t.target});
}

/// A weight that only the chosen experts read.
bool is_stack(const BoundTensor& t) { return is_matrix(t.role) && t.host.n_dims == 3; }
/// The same, biases included: the one vector that has a row for each expert.
bool is_of_experts(const BoundTensor& t) { return is_stack(t) || (t.role == WeightRole::vector && t.host.n_dims == 2); }

void add_sizes(const std::vector<BoundTensor>& bound, const std::vector<size_t>& packed, const ExpertsConfig& experts,
               Weights& weights) {
  std::set<const HostTensor*> counted, in_place;
  for (size_t i = 0; i < bound.size(); ++i) {
    const BoundTensor& t = bound[i];
    if (counted.insert(t.source).second) weights.n_params += static_cast<size_t>(t.source->n_elements());
    weights.packed_bytes += packed[i];
    if (packed[i] == 0 && in_place.insert(t.source).second) weights.file_bytes += t.source->bytes;
    weights.stream_bytes += stream_bytes(t, packed[i], experts);
  }
}

}  // namespace

std::vector<BoundTensor> bind_weights(const Checkpoint& checkpoint, const Config& config, Weights& weights) {
  validate(config, checkpoint.path);
  weights.layers.assign(static_cast<size_t>(config.n_layers), {});
  Binder binder(checkpoint, config);
  for (const auto& rule : kModelRules) binder.apply(rule, "", weights, false);
  if (!checkpoint.find_tensor("output.weight")) {
    binder.bind(*checkpoint.find_tensor("token_embd.weight"), binder.shape_of(Size::vocab, Size::dim), kMatrix,
                &weights.head);
  }
  for (int64_t i = 0; i < config.n_layers; ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    const bool experts = config.layers[static_cast<size_t>(i)].experts;
    for (const auto& rule : kLayerRules) binder.apply(rule, prefix, weights.layers[static_cast<size_t>(i)], experts);
  }
  binder.refuse_extras();
  return binder.take();
}

Needs model_needs(const Config& config, const std::vector<BoundTensor>& bound) {
  Needs needs;
  const auto note = [](std::vector<DType>& list, DType dtype) {
    if (std::find(list.begin(), list.end(), dtype) == list.end()) list.push_back(dtype);
  };
  for (const BoundTensor& t : bound) {
    if (t.role == WeightRole::matrix) note(needs.matrix_formats, t.host.dtype);
    if (t.role == WeightRole::fine_matrix) note(needs.fine_formats, t.host.dtype);
    if (t.role == WeightRole::embedding) note(needs.embedding_formats, t.host.dtype);
    if (is_stack(t)) note(needs.expert_formats, t.host.dtype);
  }
  needs.head_dim = config.head_dim;
  needs.n_heads = config.n_heads;
  const ExpertsConfig& experts = config.experts;
  needs.max_width = std::max({config.dim, config.ffn_dim, config.n_heads * config.head_dim, experts.shared_dim});
  needs.n_experts = experts.n_experts, needs.n_active = experts.n_active;
  needs.expert_width = experts.n_experts > 0 ? std::max(config.dim, experts.expert_dim) : 0;
  needs.whole_qk_norm = config.qk_norm_whole;
  needs.silu_clamped = config.activation == Activation::silu_clamped;
  return needs;
}

size_t planned_packed_bytes(const std::vector<BoundTensor>& bound, const Backend& backend) {
  size_t total = 0;
  for (const BoundTensor& t : bound) total += aligned(packed_bytes(t, backend));
  return total;
}

size_t stream_bytes(const BoundTensor& t, size_t packed, const ExpertsConfig& experts) {
  const size_t held = packed != 0 ? packed : host_bytes(t.host);
  if (t.role == WeightRole::embedding) return held / static_cast<size_t>(t.host.rows());
  if (!is_of_experts(t)) return held;
  return held / static_cast<size_t>(experts.n_experts) * static_cast<size_t>(experts.n_active);
}

Weights load_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, int n_threads,
                     bool check_tensors, const std::function<bool(double)>& progress) {
  Weights weights;
  const std::vector<BoundTensor> bound = bind_weights(checkpoint, config, weights);
  std::vector<size_t> packed;
  size_t total = 0;
  for (const BoundTensor& t : bound) {
    packed.push_back(packed_bytes(t, backend));
    total += aligned(packed.back());
  }
  char* arena = nullptr;
  if (total > 0) {
    weights.buffers.push_back(backend.allocate(total));
    arena = static_cast<char*>(weights.buffers.back().get());
  }
  struct Task {
    const BoundTensor* tensor;
    WeightPart part;
    char* to;
  };
  constexpr size_t kTaskBytes = size_t{16} << 20;  // of the file
  std::vector<Task> tasks;
  std::vector<double> work;
  for (size_t i = 0; i < bound.size(); ++i) {
    for (const WeightPart& part : parts_of(bound[i], backend, kTaskBytes)) {
      tasks.push_back({&bound[i], part, packed[i] ? arena + part.begin : nullptr});
      work.push_back(static_cast<double>(host_bytes(part_of(bound[i], part.first, part.n).host)));
    }
    if (packed[i]) arena += aligned(packed[i]);
  }
  // A device takes each byte once. What stays in host memory may stay where the file is mapped.
  const ReadBytes read = backend.memory_left() ? checkpoint.read : ReadBytes();
  const auto load = [&](size_t i) {
    const auto& [tensor, part, to] = tasks[i];
    if (part.first == 0 && check_tensors) check_finite(checkpoint, *tensor);
    Tensor whole = pack_tensor(part_of(*tensor, part.first, part.n), backend, to, read);
    if (part.first > 0) return;
    whole.dims[0] = tensor->host.dims[0];
    *tensor->target = whole;
  };
  if (!run_parallel(work, n_threads, load, progress)) {
    throw Error(ErrorKind::run, escaped(checkpoint.path, 8192), "loading was cancelled");
  }
  backend.wait();
  add_sizes(bound, packed, config.experts, weights);
  add_names(bound, weights);
  return weights;
}

}  // namespace infer
