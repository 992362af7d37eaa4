// From calls of the backend seam to a program of stages: shapes are checked, units dealt to CTAs, exchange buffers laid
// out (shared memory: program_plan.cpp). No CUDA call is made here.
#include "kernels/cuda/program.h"

#include <algorithm>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/cache_pairs.h"
#include "kernels/cuda/integers.h"
#include "kernels/cuda/packed.h"
#include "kernels/kv_format.h"

namespace infer::cuda {
namespace {

/// A matrix of one expert to that of several, whose columns lie side by side. Pieces of chunks are all alike, so a
/// chunk may begin with those of one expert and end with those of another; n_chunks is 0 where a row ends within one.
void join_columns(MatrixArg& m, DType dtype, int32_t n) {
  m.cols *= n;
  if (m.is_plain) return;  // plan_shared() settles their chunks
  visit_gpu_format(dtype, [&]<class F>() {
    if constexpr (F::block > 1) {
      constexpr int kChunk = Packed<F>::chunk_groups;
      const int64_t groups = m.cols / kGroup, bytes = m.tile_bytes * n;
      const bool whole = groups % kChunk == 0;
      m.kernel = m.kernel / 2 * 2 + whole;
      m.n_chunks = groups / n % Chunk<F>::kPiece == 0 ? narrow((groups + kChunk - 1) / kChunk) : 0;
      m.chunk_bytes = Chunk<F>{narrow(std::min<int64_t>(groups, kChunk))}.bytes();
      m.last_bytes = narrow(bytes - static_cast<int64_t>(m.n_chunks - 1) * m.chunk_bytes);
    }
  });
}

template <class... F>
int format_index(FormatList<F...>, DType dtype) {
  int at = -1, i = 0;
  ((F::id == dtype ? at = i : 0, ++i), ...);
  return at;
}

}  // namespace

ActForm act_form(DType weight) {
  return weight == DType::F32    ? ActForm::f32
         : weight == DType::F16  ? ActForm::f16
         : weight == DType::BF16 ? ActForm::bf16
         : meets_f16(weight)     ? ActForm::f16
                                 : ActForm::int8;
}

int64_t act_bytes(ActForm form, int64_t cols) {
  if (form == ActForm::int8) return (cols + 31) / 32 * 48;
  return align(cols * (form == ActForm::f32 ? 4 : 2), 16);
}

std::optional<MatrixArg> matrix_arg(const Tensor& w, const Tensor& bias) {
  if (!w || w.n_dims != 2 || w.dims[0] < 1 || w.dims[1] < 1 || w.layout != packed_layout(w.dtype)) return std::nullopt;
  MatrixArg m;
  m.data = w.as<uint8_t>();
  m.bias = bias ? bias.as<float>() : nullptr;
  m.dtype = static_cast<int32_t>(w.dtype);
  m.rows = narrow(w.rows()), m.cols = narrow(w.cols());
  m.n_tiles = narrow((w.rows() + kTileRows - 1) / kTileRows);
  bool known = false;
  m.kernel = 2 * format_index(GpuFormats{}, w.dtype) + 1;
  visit_gpu_format(w.dtype, [&]<class F>() {
    known = true;
    if constexpr (F::block == 1) {
      m.is_plain = 1;
      m.tile_bytes = row_major_stride(sizeof(typename F::Block), w.cols());
    } else {
      constexpr int kChunk = Packed<F>::chunk_groups;
      const int64_t groups = w.cols() / kGroup;
      if (groups % kChunk != 0) --m.kernel;
      m.tile_bytes = tile_bytes<F>(w.cols());
      m.n_chunks = narrow((groups + kChunk - 1) / kChunk);
      m.chunk_bytes = Chunk<F>{narrow(std::min<int64_t>(groups, kChunk))}.bytes();
      m.last_bytes = narrow(m.tile_bytes - static_cast<int64_t>(m.n_chunks - 1) * m.chunk_bytes);
    }
  });
  if (!known) return std::nullopt;
  return m;
}

namespace {
/// Independent parts of attention: KV heads times groups of up to kUnitRows query heads.
int parts_of_token(const AttentionArg& a) { return a.n_kv_heads * a.n_head_groups; }

/// Of one copy of what the splits of an attention stage leave each other.
size_t meet_floats(const DecodeStage& s) {
  return static_cast<size_t>(s.n_units) * kUnitRows * static_cast<size_t>(s.attention.head_dim + 2);
}

/// Where runs of tiles of one kernel end, in a stage whose matrices come one after the other.
void find_ends(DecodeStage& s) {
  int32_t tiles = 0;
  for (int i = 0; i < s.n_matrices; ++i) s.w[i].end = tiles += s.w[i].n_tiles;
  for (int i = s.n_matrices; i-- > 0;) {
    const bool goes_on = i + 1 < s.n_matrices && s.w[i + 1].kernel == s.w[i].kernel;
    s.w[i].run_end = goes_on ? s.w[i + 1].run_end : s.w[i].end;
  }
}
}  // namespace

std::optional<DecodeStage> product_stage(const MatmulArgs& args, bool accumulate) {
  const auto w = matrix_arg(args.w, args.bias);
  if (!w || args.x.rows() > kMaxDecodeRows) return std::nullopt;
  DecodeStage s;
  s.form = act_form(args.w.dtype);
  s.n_matrices = 1;
  s.w[0] = *w;
  s.n_units = w->n_tiles;
  find_ends(s);
  s.cols = w->cols;
  s.in = args.x.as<float>(), s.out = args.out.as<float>();
  s.in_width = narrow(args.x.cols()), s.out_width = narrow(args.out.cols());
  s.accumulate = accumulate;
  return s;
}

std::vector<DecodeStage> Program::placed(uint8_t* base, uint32_t parity) const {
  std::vector<DecodeStage> all = stages;
  const auto copy = [base](auto*& p, int64_t size, uint32_t which) {
    p = reinterpret_cast<std::remove_reference_t<decltype(p)>>(base + reinterpret_cast<uintptr_t>(p)) + size * which;
  };
  const auto both = [&](auto*& now, auto*& other, int64_t size, uint32_t which) {
    other = now;
    copy(now, size, which), copy(other, size, which ^ 1);
  };
  for (DecodeStage& s : all) {
    const uint32_t in = (parity + static_cast<uint32_t>(s.in_layer)) & 1,
                   out = (parity + static_cast<uint32_t>(s.out_layer)) & 1;
    const bool hidden_in = s.input == StageInput::hidden, hidden_out = s.output == StageOutput::hidden;
    const bool exchanged_in = s.kind == StageKind::attention || s.input == StageInput::vector || hidden_in ||
                              (s.input == StageInput::residual && s.x_source != XSource::embedding);
    if (exchanged_in) copy(s.in, int64_t{n_rows} * s.in_width, in);
    if (hidden_in && s.form == ActForm::int8) copy(s.in_codes, int64_t{n_rows} * s.cols, in);
    if (s.output != StageOutput::logits && s.output != StageOutput::plain)
      both(s.out, s.other, int64_t{n_rows} * s.out_width, out);
    if (hidden_out && s.hidden_form == ActForm::int8)
      both(s.out_codes, s.other_codes, int64_t{n_rows} * s.w[0].rows, out);
    if (s.n_active > 0) both(s.experts.logits, s.experts.logits_other, s.experts.n_experts, hidden_out ? out : in);
    if (s.n_soon > 0) both(s.soon, s.soon_other, s.n_soon, hidden_out ? out : in);
    if (s.kind == StageKind::attention)
      both(s.attention.meet, s.attention.meet_other, static_cast<int64_t>(meet_floats(s)), in);
  }
  return all;
}

int32_t Program::stages_of(int64_t n_ops) const {
  if (n_ops < static_cast<int64_t>(op_starts.size())) return op_starts[static_cast<size_t>(n_ops)];
  return narrow(static_cast<int64_t>(stages.size()));
}

// ---- Recorder ---------------------------------------------------------------------------------------------------

void Recorder::unsupported(const char* what) {
  if (reason_.empty()) reason_ = what;
}

size_t Recorder::reserve(size_t bytes) {
  // Never at 0: a null pointer means that there is no such buffer.
  const size_t at =
      static_cast<size_t>(align(static_cast<int64_t>(std::max<size_t>(program_->exchange_bytes, 256)), 256));
  program_->exchange_bytes = at + bytes;
  return at;
}

float* Recorder::exchange(int64_t width) {
  return reinterpret_cast<float*>(reserve(static_cast<size_t>(2 * n_tokens_ * width) * sizeof(float)));
}

void Recorder::begin_op() { program_->op_starts.push_back(narrow(static_cast<int64_t>(program_->stages.size()))); }

DecodeStage& Recorder::add_stage() {
  program_->stages.emplace_back();
  return program_->stages.back();
}

bool Recorder::add_matrix(DecodeStage& s, const Tensor& w, const Tensor& bias) {
  Tensor as = w;
  as.dtype = format_of(w);
  const auto m = matrix_arg(as, bias);
  const ActForm form = act_form(as.dtype);
  if (!m || (s.n_matrices > 0 && (form != s.form || m->cols != s.cols))) {
    unsupported("weights that want different activations in one stage");
    return false;
  }
  s.form = form;
  s.cols = m->cols;
  MatrixArg& slot = s.w[s.n_matrices];
  slot = *m;
  slot.out_offset = s.n_matrices > 0 ? s.w[s.n_matrices - 1].out_offset + s.w[s.n_matrices - 1].rows : 0;
  ++s.n_matrices;
  program_->weight_bytes += static_cast<double>(packed_matrix_bytes(w.dtype, w.rows(), w.cols()));
  return true;
}

void Recorder::embed(const EmbedArgs& a) {
  begin_op();
  n_tokens_ = a.ids.rows();
  dim_ = a.table.cols();
  embed_ = a;
  have_embed_ = true;
  if (n_tokens_ > kMaxDecodeRows) unsupported("more rows than a program takes");
  if (a.table.layout != kFileBlocks) unsupported("an embedding that is not in file blocks");
  if (dim_ % 16 != 0) unsupported("a width that is no multiple of 16");
}

void Recorder::residual_input(DecodeStage& s, const Tensor& norm, float eps, int own_copy) {
  s.input = StageInput::residual;
  s.norm = norm.as<float>();
  s.eps = eps;
  s.own_copy = own_copy;
  if (!stream_.values) {
    s.x_source = XSource::embedding;
    s.embedding = {embed_.table.as<uint8_t>(), embed_.ids.as<int32_t>(), static_cast<int32_t>(embed_.table.dtype),
                   embed_.scale, row_bytes(embed_.table.dtype, dim_)};
    return;
  }
  s.in = stream_.values;
  s.in_layer = stream_.layer;
  s.in_width = narrow(stream_.width);
  s.post_norm = stream_.post_norm ? stream_.post_norm.as<float>() : nullptr;
  if (s.post_norm) s.x_source = XSource::branch;
  s.post_eps = stream_.post_eps, s.post_scale = stream_.scale;
}

void Recorder::residual_output(DecodeStage& s, const AddArgs& add, float*& values, int own_copy) {
  s.output = StageOutput::residual;
  s.out_layer = layer_;
  s.own_copy = own_copy;
  s.residual_scale = add.scale;
  s.out_width = narrow(add.norm ? 2 * dim_ : dim_);
  if (!values) values = exchange(s.out_width);
  s.out = values;
  for (const DecodeStage& other : program_->stages)
    if (other.out == values && other.out_width != s.out_width)
      return unsupported("layers of which some have a norm of what they add and some do not");
  stream_ = {values, layer_, s.out_width, add.norm, add.eps, add.scale};
}

void Recorder::attn_in(const AttnInArgs& a) {
  begin_op();
  ++layer_;
  if (!have_embed_ || a.x.rows() != n_tokens_) unsupported("a layer without embedding");
  if (!reason_.empty()) return;
  DecodeStage& s = add_stage();
  residual_input(s, a.norm, a.eps, 0);
  s.output = StageOutput::vector;
  s.out_layer = layer_;
  if (!add_matrix(s, a.wq, a.bq) || !add_matrix(s, a.wk, a.bk) || !add_matrix(s, a.wv, a.bv)) return;
  for (int i = 0; i < 3; ++i) s.n_units += s.w[i].n_tiles;
  s.out_width = s.w[2].out_offset + s.w[2].rows;
  if (!qkv_) qkv_ = exchange(s.out_width);
  s.out = qkv_;
  for (const DecodeStage& other : program_->stages)
    if (other.out == qkv_ && other.out_width != s.out_width)
      return unsupported("layers with different numbers of heads");
  rope_store_ = a.rope_store;
}

void Recorder::attention(const AttentionArgs& a) {
  begin_op();
  if (!reason_.empty()) return;
  if (a.kv_len.rows() != n_tokens_) return unsupported("several new tokens of one sequence");
  if (!find_cache_pair(a.k_cache.dtype, a.v_cache.dtype).persistent)
    return unsupported("keys and values of these two types");
  const RopeStoreArgs& r = rope_store_;
  DecodeStage& s = add_stage();
  s.kind = StageKind::attention;
  s.input = StageInput::vector;
  s.output = StageOutput::vector;
  s.in_layer = s.out_layer = layer_;
  AttentionArg& t = s.attention;
  t.k_cache = a.k_cache.as<uint8_t>(), t.v_cache = a.v_cache.as<uint8_t>();
  t.k_type = static_cast<int32_t>(a.k_cache.dtype), t.v_type = static_cast<int32_t>(a.v_cache.dtype);
  t.n_heads = narrow(a.q.dims[1]), t.n_kv_heads = narrow(a.k_cache.dims[1]), t.head_dim = narrow(a.q.dims[2]);
  t.group = t.n_heads / t.n_kv_heads, t.n_head_groups = (t.group + kUnitRows - 1) / kUnitRows;
  t.page_table = a.page_table.as<int32_t>(), t.max_pages = narrow(a.page_table.cols());
  t.kv_len = a.kv_len.as<int32_t>(), t.positions = r.positions.as<int32_t>(), t.slots = r.slots.as<int32_t>();
  t.q_norm = r.q_norm ? r.q_norm.as<float>() : nullptr, t.k_norm = r.k_norm ? r.k_norm.as<float>() : nullptr;
  t.cos_sin = r.rope.cos_sin ? r.rope.cos_sin.as<float>() : nullptr;
  t.rope_pairs = r.rope.cos_sin ? narrow(r.rope.cos_sin.dims[1]) : 0;
  t.adjacent = r.rope.adjacent;
  t.q_spans = r.spans_heads(r.q_norm), t.k_spans = r.spans_heads(r.k_norm);
  if (r.norms_span_heads() && n_tokens_ > 1) return unsupported("a norm over all heads, of several tokens");
  t.eps = r.eps, t.scale = a.scale, t.softcap = a.softcap;
  t.sinks = a.sinks ? a.sinks.as<float>() : nullptr;
  t.window = narrow(std::min<int64_t>(a.window, INT32_MAX));
  t.k_rotation = narrow(kv_rotation(a.k_cache.dtype, t.head_dim));
  t.v_rotation = narrow(kv_rotation(a.v_cache.dtype, t.head_dim));
  t.k_page_bytes = narrow(kPageTokens * row_bytes(a.k_cache.dtype, t.head_dim));
  t.v_page_bytes = narrow(kPageTokens * row_bytes(a.v_cache.dtype, t.head_dim));
  if (a.k_cache.dtype != DType::F32) t.chunk_keys = ring_chunk_keys(int64_t{t.k_page_bytes} + t.v_page_bytes);
  s.in = qkv_;
  s.in_width = narrow((t.n_heads + 2 * t.n_kv_heads) * t.head_dim);
  s.out_width = s.cols = t.n_heads * t.head_dim;
  if (!attn_) attn_ = exchange(s.out_width);
  s.out = attn_;
  s.n_soon = narrow(n_tokens_) * parts_of_token(t);
  if (!soon_) soon_ = exchange(parts_of_token(t));
  s.soon = soon_;
  for (const DecodeStage& other : program_->stages)
    if (other.kind == StageKind::attention &&
        (other.attention.n_kv_heads != t.n_kv_heads || other.attention.head_dim != t.head_dim ||
         other.attention.n_heads != t.n_heads))
      return unsupported("layers with different numbers of heads");
}

void Recorder::attn_out(const AttnOutArgs& a) {
  begin_op();
  if (!reason_.empty()) return;
  const DecodeStage before = program_->stages.empty() ? DecodeStage{} : program_->stages.back();
  DecodeStage& s = add_stage();
  s.input = StageInput::vector;
  s.in_rotation = before.attention.v_rotation;
  s.soon = before.soon, s.n_soon = before.n_soon;
  s.in_layer = layer_;
  if (!add_matrix(s, a.wo, a.bo)) return;
  s.n_units = s.w[0].n_tiles;
  s.in = attn_, s.in_width = s.cols;
  residual_output(s, a.add, after_attn_, 0);
}

/// Where hidden values go, and in which form.
void Recorder::hidden_output(DecodeStage& s, DType down, int64_t hidden_dim, Activation activation) {
  s.output = StageOutput::hidden;
  s.out_layer = layer_;
  s.n_parts = 2;
  s.hidden_form = act_form(down);
  s.gelu = activation == Activation::gelu_tanh;
  const bool codes = s.hidden_form == ActForm::int8;
  s.out_width = narrow(codes ? hidden_dim / 16 : hidden_dim);
  if (activation == Activation::silu_clamped) unsupported("the clamped activation");
  if (hidden_dim % 16 != 0) unsupported("a hidden width that is no multiple of 16");
  if (!hidden_) {
    hidden_ = exchange(hidden_dim);
    if (codes) hidden_codes_ = reinterpret_cast<uint8_t*>(reserve(static_cast<size_t>(2 * n_tokens_ * hidden_dim)));
  }
  s.out = hidden_, s.out_codes = hidden_codes_;
  // Hidden values of all layers pass through one buffer, of which each layer empties what the one before wrote.
  for (const DecodeStage& other : program_->stages) {
    if (other.output != StageOutput::hidden) continue;
    if (other.hidden_form != s.hidden_form) unsupported("layers whose down projections want different activations");
    if (other.n_active != s.n_active) unsupported("layers of which some have experts and some do not");
  }
}

void Recorder::hidden_input(DecodeStage& s) {
  const DecodeStage& before = program_->stages[program_->stages.size() - 2];
  s.input = StageInput::hidden;
  s.in_layer = layer_;
  s.n_units = s.w[0].n_tiles;
  s.in = hidden_, s.in_codes = hidden_codes_;
  s.in_width = before.out_width;
}

void Recorder::ffn(const FfnArgs& a) {
  begin_op();
  if (!reason_.empty()) return;
  DecodeStage& up = add_stage();
  residual_input(up, a.norm, a.eps, 1);
  if (!add_matrix(up, a.w_gate, a.b_gate) || !add_matrix(up, a.w_up, a.b_up)) return;
  up.n_units = up.w[0].n_tiles;
  hidden_output(up, format_of(a.w_down), a.w_gate.rows(), a.activation);
  DecodeStage& down = add_stage();
  if (!add_matrix(down, a.w_down, a.b_down)) return;
  hidden_input(down);
  residual_output(down, a.add, after_ffn_, 1);
}

/// The matrices of one expert of a stack, as often as experts are active: one after the other (gate, up) or side by
/// side (down).
bool Recorder::add_experts(DecodeStage& s, const Tensor& stack, bool side_by_side) {
  const int64_t rows = stack.dims[1], cols = stack.dims[2], bytes = packed_matrix_bytes(stack.dtype, rows, cols);
  if (!add_matrix(s, matrix_of(stack, 0, bytes), Tensor())) return false;
  program_->weight_bytes += static_cast<double>((s.n_active - 1) * bytes);
  MatrixArg& w = s.w[s.n_matrices - 1];
  s.experts.expert_bytes[s.n_matrices - 1] = bytes;
  if (side_by_side) {
    s.cols *= s.n_active;
    join_columns(w, stack.dtype, s.n_active);
    if (!w.is_plain && w.n_chunks == 0) unsupported("experts whose rows end within a piece of a packed matrix");
  } else {
    if (rows % kTileRows != 0) unsupported("experts whose width is no multiple of 16");
    w.rows *= s.n_active, w.n_tiles *= s.n_active;
  }
  return reason_.empty();
}

void Recorder::moe_ffn(const MoeFfnArgs& a) {
  begin_op();
  if (!reason_.empty()) return;
  const int64_t n_experts = a.w_router.rows(), n_active = a.ids.cols();
  const DType router = a.w_router.dtype;
  if (n_tokens_ > 1) return unsupported("experts of several tokens");
  if (a.w_shared_gate) return unsupported("a shared expert");
  if (a.b_gate || a.b_up || a.b_down) return unsupported("biases of experts");
  if (n_active > kMostActive || n_experts > kMostRouted) return unsupported("so many experts");
  if (a.w_router.layout != kRowMajor) return unsupported("a quantised router");
  ExpertsArg experts;
  experts.router = a.w_router.as<uint8_t>(), experts.bias = a.b_router ? a.b_router.as<float>() : nullptr;
  experts.router_dtype = static_cast<int32_t>(router);
  experts.router_row_bytes = packed_matrix_bytes(router, 1, dim_);
  experts.n_experts = narrow(n_experts), experts.sum_to_one = a.sum_to_one, experts.scale = a.weight_scale;
  experts.n_tiles = narrow(a.w_gate.dims[1] / kTileRows);
  if (!router_) router_ = exchange(n_experts);
  experts.logits = router_;
  for (const DecodeStage& other : program_->stages)
    if (other.n_active > 0 && other.experts.n_experts != n_experts)
      return unsupported("layers with different numbers of experts");
  program_->weight_bytes += static_cast<double>(packed_matrix_bytes(router, n_experts, dim_));
  DecodeStage& up = add_stage();
  residual_input(up, a.norm, a.eps, 1);
  up.n_active = narrow(n_active), up.experts = experts;
  if (!add_experts(up, a.w_gate, false) || !add_experts(up, a.w_up, false)) return;
  up.n_units = up.w[0].n_tiles;
  hidden_output(up, format_of(a.w_down), n_active * a.w_gate.dims[1], a.activation);
  DecodeStage& down = add_stage();
  down.n_active = narrow(n_active), down.experts = experts;
  if (!add_experts(down, a.w_down, true)) return;
  hidden_input(down);
  residual_output(down, a.add, after_ffn_, 1);
}

void Recorder::logits(const LogitsArgs& a) {
  begin_op();
  if (!reason_.empty()) return;
  if (a.rows.rows() != n_tokens_) return unsupported("logits of some of the rows only");
  DecodeStage& s = add_stage();
  residual_input(s, a.norm, a.eps, 0);
  s.output = StageOutput::logits;
  if (!add_matrix(s, a.head, a.bias)) return;
  s.n_units = s.w[0].n_tiles;
  s.out = a.out.as<float>(), s.out_width = narrow(a.out.cols());
  s.logit_scale = a.scale, s.softcap = a.softcap;
  complete_ = true;
}

void Recorder::gather(const Tensor&, const Tensor&, const Tensor&) { unsupported("logits of some of the rows only"); }

std::unique_ptr<Program> Recorder::finish() {
  if (reason_.empty() && !complete_) reason_ = "a step without logits";
  if (!reason_.empty()) return nullptr;
  Program& p = *program_;
  p.n_rows = narrow(n_tokens_), p.n_layers = layer_ + 1, p.dim = narrow(dim_);
  // Every CTA must have a part in every gate and up, or it could fall behind by more than a layer (exchange.cuh).
  p.n_ctas = limits_.n_sms;
  for (const DecodeStage& s : p.stages)
    if (s.output == StageOutput::hidden) p.n_ctas = std::min(p.n_ctas, s.n_units);
  float* soon = nullptr;  // of gate and up: a word of each CTA
  for (size_t i = 0; i < p.stages.size(); ++i) {
    if (p.stages[i].output != StageOutput::hidden || p.stages[i].hidden_form != ActForm::int8) continue;
    if (!soon) soon = reinterpret_cast<float*>(reserve(size_t{2} * static_cast<size_t>(p.n_ctas) * sizeof(float)));
    for (DecodeStage* s : {&p.stages[i], &p.stages[i + 1]}) s->soon = soon, s->n_soon = p.n_ctas;
  }
  for (const DecodeStage& s : p.stages)
    if (s.n_active > 0 && s.experts.n_experts > p.n_ctas) unsupported("more experts than there are processors");
  if (!reason_.empty()) return nullptr;
  int next = 0;
  for (DecodeStage& s : p.stages) {
    if (s.kind == StageKind::attention) {
      AttentionArg& t = s.attention;
      const int parts = p.n_rows * parts_of_token(t);
      t.max_splits = std::max(1, splits_wanted(p.n_ctas, parts));
      s.n_units = parts * t.max_splits;
      if (!meet_) meet_ = reinterpret_cast<float*>(reserve(size_t{2} * meet_floats(s) * sizeof(float)));
      t.meet = meet_;
      s.first_cta = next % p.n_ctas;  // those that had the fewest tiles last
    } else {
      s.first_cta = next % p.n_ctas;
      next += s.n_units;
    }
  }
  int32_t after = INT32_MAX, owner = -1;
  for (size_t i = p.stages.size(); i-- > 0;) {
    DecodeStage& s = p.stages[i];
    s.next_streamed = after;
    find_ends(s);
    if (is_streamed(s)) after = narrow(static_cast<int64_t>(i));
    if (s.output == StageOutput::residual) owner = s.first_cta;
    if (s.input == StageInput::residual && s.output != StageOutput::logits) s.own_first_cta = owner;
  }
  p.shared = infer::cuda::plan_shared(p.stages, p.n_rows, dim_, p.n_ctas, limits_);
  if (p.shared.n_slots < 2 || (p.shared.experts && p.shared.kernel_rows > 1)) {
    reason_ = "activations that leave no room for weights in shared memory";
    return nullptr;
  }
  return std::move(program_);
}

}  // namespace infer::cuda
