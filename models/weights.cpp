// Which tensors a Config calls for (one table of rules), whether the checkpoint has them in the right shape and format
// (bind_weights, before anything is allocated), and their way into a backend's memory (load_weights, in parallel).
#include "models/weights.h"

#include <algorithm>
#include <set>

#include "models/parallel.h"
#include "models/stack.h"
#include "quant/formats.h"

namespace infer {
namespace {

/// Sizes that shapes are made of.
enum class Size { one, dim, q_width, kv_width, head_dim, ffn_dim, vocab };

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
    case Size::head_dim:
      return c.head_dim;
    case Size::ffn_dim:
      return c.ffn_dim;
    case Size::vocab:
      return c.vocab;
  }
  return 0;
}

enum class When {
  always,
  present,     ///< optional: used when the file has it
  qk_norm,     ///< exactly when Config::qk_norm
  post_norms,  ///< exactly when Config::post_norms
};

/// Matrices are [rows, cols]; vectors have rows only.
template <class Owner>
struct TensorRule {
  const char* name;  ///< in GGUF; for layers after "blk.<i>."
  Tensor Owner::*member;
  Size rows, cols;
  WeightRole role;
  When when;
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
    {"attn_q_norm.weight", &L::q_norm, Size::head_dim, Size::one, kVector, When::qk_norm},
    {"attn_k_norm.weight", &L::k_norm, Size::head_dim, Size::one, kVector, When::qk_norm},
    {"attn_output.weight", &L::wo, Size::dim, Size::q_width, kMatrix, When::always},
    {"attn_output.bias", &L::bo, Size::dim, Size::one, kVector, When::present},
    {"post_attention_norm.weight", &L::attn_post_norm, Size::dim, Size::one, kVector, When::post_norms},
    {"ffn_norm.weight", &L::ffn_norm, Size::dim, Size::one, kVector, When::always},
    {"ffn_gate.weight", &L::w_gate, Size::ffn_dim, Size::dim, kMatrix, When::always},
    {"ffn_up.weight", &L::w_up, Size::ffn_dim, Size::dim, kMatrix, When::always},
    {"ffn_down.weight", &L::w_down, Size::dim, Size::ffn_dim, kMatrix, When::always},
    {"ffn_gate.bias", &L::b_gate, Size::ffn_dim, Size::one, kVector, When::present},
    {"ffn_up.bias", &L::b_up, Size::ffn_dim, Size::one, kVector, When::present},
    {"ffn_down.bias", &L::b_down, Size::dim, Size::one, kVector, When::present},
    {"post_ffw_norm.weight", &L::ffn_post_norm, Size::dim, Size::one, kVector, When::post_norms},
};

/// Tensors that no rule binds: divisors, which config.cpp has read, and tables of angles that old converters left
/// behind.
bool known_extra(std::string_view name) {
  return name == "rope_freqs.weight" || name.ends_with(".attn_rot_embd.weight");
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
  if (role != WeightRole::vector) return decodable(dtype);
  return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16;
}

class Binder {
 public:
  Binder(const Checkpoint& checkpoint, const Config& config) : checkpoint_(checkpoint), config_(config) {}

  template <class Owner>
  void apply(const TensorRule<Owner>& rule, const std::string& prefix, Owner& owner) {
    const std::string name = prefix + rule.name;
    if (rule.when == When::qk_norm && !config_.qk_norm) return;
    if (rule.when == When::post_norms && !config_.post_norms) return;
    const HostTensor* source = checkpoint_.find_tensor(name);
    if (!source) {
      if (rule.when == When::present) return;
      checkpoint_.refuse(name, "required tensor is missing", reason(prefix), dims_text(shape_of(rule.rows, rule.cols)));
    }
    bind(*source, rule.rows, rule.cols, rule.role, &(owner.*rule.member));
  }

  void bind(const HostTensor& source, Size rows, Size cols, WeightRole role, Tensor* target) {
    const std::vector<int64_t> shape = shape_of(rows, cols);
    if (source.dims != shape) {
      checkpoint_.refuse(source.name, "wrong shape", dims_text(source.dims), dims_text(shape));
    }
    if (!allowed_format(source.dtype, role)) {
      checkpoint_.refuse(source.name, "unsupported format for this tensor", format_name(source.dtype),
                         role == WeightRole::vector ? "F32, F16, BF16" : names(Formats{}));
    }
    Tensor host;
    // A view; nobody writes through it. Of a tensor in parts it is that of the first one, see stack.h.
    host.data = const_cast<std::byte*>(source.parts.empty() ? source.data : source.parts[0]);
    host.dtype = source.dtype;
    for (int64_t n : shape) host.dims[host.n_dims++] = n;
    const int64_t bytes = tensor_bytes(source.dtype, shape.size() == 2 ? shape[0] : 1, shape.back());
    if (bytes < 0 || static_cast<size_t>(bytes) != source.bytes || !host.data) {
      checkpoint_.refuse(source.name, "wrong size", std::to_string(source.bytes) + " bytes",
                         bytes < 0 ? "rows of whole blocks" : std::to_string(bytes) + " bytes");
    }
    used_.insert(&source);
    bound_.push_back({&source, host, role, target});
  }

  void refuse_extras() const {
    for (const HostTensor& tensor : checkpoint_.tensors) {
      if (!used_.contains(&tensor) && !known_extra(tensor.name)) {
        checkpoint_.refuse(tensor.name, "unexpected tensor: " + config_.arch + " with " +
                                            std::to_string(config_.n_layers) + " layers has no use for it");
      }
    }
  }

  std::vector<BoundTensor> take() { return std::move(bound_); }

 private:
  std::vector<int64_t> shape_of(Size rows, Size cols) const {
    std::vector<int64_t> shape = {size_of(config_, rows)};
    if (cols != Size::one) shape.push_back(size_of(config_, cols));
    return shape;
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
  const Tensor& t = tensor.host;
  const int64_t cols = t.cols(), rows = t.n_elements() / cols, stride = row_bytes(t.dtype, cols);
  const std::vector<const std::byte*>& parts = tensor.source->parts;
  const int64_t rows_to_part = parts.empty() ? rows : rows / static_cast<int64_t>(parts.size());
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    const std::byte* part = parts.empty() ? t.as<std::byte>() : parts[static_cast<size_t>(r / rows_to_part)];
    decode_row(t.dtype, part + r % rows_to_part * stride, row.data(), cols);
    for (int64_t i = 0; i < cols; ++i) {
      // Exponent bits all set: NaN or infinity, whatever the floating-point flags of this build.
      if ((float_bits(row[static_cast<size_t>(i)]) & 0x7f800000) != 0x7f800000) continue;
      checkpoint.refuse(tensor.source->name, "not a finite number at index " + std::to_string(r * cols + i),
                        std::to_string(row[static_cast<size_t>(i)]), "finite weights");
    }
  }
}

void add_names(const std::vector<BoundTensor>& bound, Weights& weights) {
  std::set<const HostTensor*> named;
  for (const BoundTensor& t : bound)
    if (t.role == WeightRole::matrix && named.insert(t.source).second)
      weights.matrices.push_back({t.source->name, *t.target});
}

void add_sizes(const std::vector<BoundTensor>& bound, const std::vector<size_t>& packed, Weights& weights) {
  std::set<const HostTensor*> counted, in_place;
  for (size_t i = 0; i < bound.size(); ++i) {
    const BoundTensor& t = bound[i];
    if (counted.insert(t.source).second) weights.n_params += static_cast<size_t>(t.source->n_elements());
    weights.packed_bytes += packed[i];
    if (packed[i] == 0 && in_place.insert(t.source).second) weights.file_bytes += t.source->bytes;
    const size_t held = packed[i] != 0 ? packed[i] : t.source->bytes;
    weights.stream_bytes += t.role == WeightRole::embedding ? held / static_cast<size_t>(t.host.rows()) : held;
  }
}

}  // namespace

std::vector<BoundTensor> bind_weights(const Checkpoint& checkpoint, const Config& config, Weights& weights) {
  validate(config, checkpoint.path);
  weights.layers.assign(static_cast<size_t>(config.n_layers), {});
  Binder binder(checkpoint, config);
  for (const auto& rule : kModelRules) binder.apply(rule, "", weights);
  if (!checkpoint.find_tensor("output.weight")) {
    binder.bind(*checkpoint.find_tensor("token_embd.weight"), Size::vocab, Size::dim, kMatrix, &weights.head);
  }
  for (int64_t i = 0; i < config.n_layers; ++i) {
    const std::string prefix = "blk." + std::to_string(i) + ".";
    for (const auto& rule : kLayerRules) binder.apply(rule, prefix, weights.layers[static_cast<size_t>(i)]);
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
    if (t.role == WeightRole::embedding) note(needs.embedding_formats, t.host.dtype);
  }
  needs.head_dim = config.head_dim;
  needs.n_heads = config.n_heads;
  needs.max_width = std::max({config.dim, config.ffn_dim, config.n_heads * config.head_dim});
  return needs;
}

size_t planned_packed_bytes(const std::vector<BoundTensor>& bound, const Backend& backend) {
  size_t total = 0;
  for (const BoundTensor& t : bound) total += aligned(packed_bytes(t, backend));
  return total;
}

Weights load_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, int n_threads,
                     bool check_tensors, const std::function<bool(double)>& progress) {
  Weights weights;
  const std::vector<BoundTensor> bound = bind_weights(checkpoint, config, weights);
  std::vector<size_t> packed, offsets;
  std::vector<double> work;
  size_t total = 0;
  for (const BoundTensor& t : bound) {
    packed.push_back(packed_bytes(t, backend));
    offsets.push_back(total);
    total += aligned(packed.back());
    work.push_back(static_cast<double>(t.source->bytes));
  }
  char* arena = nullptr;
  if (total > 0) {
    weights.buffers.push_back(backend.allocate(total));
    arena = static_cast<char*>(weights.buffers.back().get());
  }
  const auto load = [&](size_t i) {
    const BoundTensor& t = bound[i];
    if (check_tensors) check_finite(checkpoint, t);
    *t.target = pack_tensor(t, backend, packed[i] ? arena + offsets[i] : nullptr);
  };
  if (!run_parallel(work, n_threads, load, progress)) {
    throw Error(ErrorKind::run, escaped(checkpoint.path, 8192), "loading was cancelled");
  }
  backend.wait();
  add_sizes(bound, packed, weights);
  add_names(bound, weights);
  return weights;
}

}  // namespace infer
