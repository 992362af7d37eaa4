// The stages, fused. Projections to q, k and v and the head take int8 activations in two terms: their rounding moves
// attention weights and log-probabilities most. Measured on SmolLM2 Q4_1, 96 tokens, mean KL from the float32
// reference: 0.0030 with one term everywhere, 0.0013 so, 3e-7 with two terms everywhere (at twice the work on prompts).
// A step of one or two tokens: every thread norms and quantises the rows for itself, then all
// claim tiles of weights. Larger steps: the rows are shared out and prepared once, in a phase of their own. Whatever
// needs only the columns just computed (activation, residual, softcap) is done by the thread that computed them.
#include "kernels/cpu/cpu_stages.h"

#include <algorithm>
#include <cstring>

namespace infer::cpu {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

ProductPlan::Chunk ProductPlan::chunk(int64_t index) const {
  const int64_t block = index % token_blocks, at = index / token_blocks;
  int p = n_products - 1;
  Chunk c{};
  if (chunk_tiles == 0) {
    while (run_begin[at] < first_tile[p]) --p;
    c.tile_begin = run_begin[at] - first_tile[p];
    c.tile_end = run_begin[at + 1] - first_tile[p];
  } else {
    while (at < first_chunk[p]) --p;
    c.tile_begin = (at - first_chunk[p]) * chunk_tiles;
    c.tile_end = std::min(c.tile_begin + chunk_tiles, products[p].tiles);
  }
  c.product = p;
  c.token_begin = n_tokens * block / token_blocks;
  c.token_end = n_tokens * (block + 1) / token_blocks;
  c.row_begin = c.tile_begin * kTileRows;
  c.row_end = std::min(c.tile_end * kTileRows, products[p].w.rows());
  return c;
}

void ProductPlan::cut_stream(int n_threads, int64_t tile_multiple) {
  constexpr int64_t kLeastBytes = 8 << 10;  // some hundred nanoseconds: more than a claim costs
  const int64_t total = first_tile[n_products];
  int64_t tile_bytes = 0;
  for (int p = 0; p < n_products; ++p) {
    tile_bytes = std::max(tile_bytes, static_cast<int64_t>(packed_bytes(products[p].w.dtype, 1, products[p].w.cols())));
  }
  const int64_t least = std::max(ceil_div(kLeastBytes, tile_bytes), ceil_div(total, kMostRuns));
  int64_t at = 0;
  for (int p = 0; p < n_products; ++p) {
    while (at < first_tile[p + 1]) {
      run_begin[n_chunks++] = at;
      const int64_t share = n_threads == 1 ? total : (total - at) / (2 * n_threads);
      at = std::min(at + ceil_div(std::max(share, least), tile_multiple) * tile_multiple, first_tile[p + 1]);
    }
  }
  run_begin[n_chunks] = at;
}

void ProductPlan::cut_blocks(int n_threads) {
  constexpr int64_t kLeastTokens = 64;
  chunk_tiles = 4;
  for (int p = 0; p < n_products; ++p) first_chunk[p + 1] = first_chunk[p] + ceil_div(products[p].tiles, chunk_tiles);
  const int64_t tile_chunks = first_chunk[n_products], wanted = 8 * n_threads;
  if (n_tokens >= 2 * kLeastTokens && tile_chunks < wanted && n_threads > 1) {
    token_blocks = std::min(n_tokens / kLeastTokens, ceil_div(wanted, tile_chunks));
  }
  n_chunks = tile_chunks * token_blocks;
}

Product CpuBackend::product(const Tensor& w, const Tensor& bias, const Tensor& out) {
  if (w.layout == 0) throw Error(ErrorKind::run, "cpu matmul", "the weight was not packed by this backend");
  Product p;
  p.w = w;
  p.bias = bias ? bias.as<float>() : nullptr;
  p.out = out.as<float>();
  p.form = activation_form(w.dtype);
  p.fine = w.layout == kPackedFine;
  p.tiles = tile_count(w.rows());
  return p;
}

ProductPlan CpuBackend::plan(int64_t n_tokens, std::initializer_list<Product> products, int64_t tile_multiple,
                             bool fine) const {
  constexpr int64_t kFewTokens = 8;  // what the matmul kernels do in one pass over the weights
  ProductPlan plan;
  plan.n_tokens = n_tokens;
  for (const Product& p : products) {
    plan.first_tile[plan.n_products + 1] = plan.first_tile[plan.n_products] + p.tiles;
    plan.products[plan.n_products] = p;
    Product& product = plan.products[plan.n_products++];
    product.fine = fine || p.fine;
    plan.fine = plan.fine || product.fine;
  }
  if (n_tokens <= kFewTokens) {
    plan.cut_stream(n_threads(), tile_multiple);
  } else {
    plan.cut_blocks(n_threads());
  }
  return plan;
}

WorkspaceSize CpuBackend::size_of(const Source& source, std::initializer_list<const Tensor*> weights,
                                  int64_t inner_width) const {
  WorkspaceSize size;
  size.n_tokens = source.n_tokens;
  size.width = std::max(source.k, inner_width);
  for (const Tensor* w : weights) size.include_form(activation_form(w->dtype));
  return size;
}

// ---- phases ---------------------------------------------------------------------------------------------------------

int64_t CpuBackend::prepare_chunks(const Source& source) const {
  return source.n_tokens <= kOwnTokens ? 0 : row_chunks(source.n_tokens);
}

/// `n` numbers from column `begin` on, a multiple of 32, as part of row `row` of a buffer of rows of `cols`; in two
/// terms where they meet fine weights.
void CpuBackend::prepare_part(const Prepared& to, ActivationForm form, bool fine, const float* x, int64_t n,
                              int64_t row, int64_t cols, int64_t begin) const {
  const auto prepare = [&](ActivationForm as) {
    const auto at = row * static_cast<int64_t>(activation_bytes(as, 1, cols)) +
                    static_cast<int64_t>(activation_bytes(as, 1, begin));
    prepare_activations(isa_, as, x, n, n, 0, 1, to[as] + at);
  };
  prepare(form);
  if (fine && form == ActivationForm::int8) prepare(ActivationForm::int8_rest);
}

void CpuBackend::prepare_row(const Source& source, const ProductPlan& plan, int64_t token, const Prepared& to,
                             int thread) {
  const int64_t from = source.rows != nullptr ? source.rows[token] : token;
  const float* row = source.x + from * source.k;
  if (source.norm != nullptr) {
    float* normed = workspace_.thread(thread).row;
    pointwise_.rms_norm(row, source.norm, source.eps, normed, source.k);
    row = normed;
  }
  bool done[kForms] = {};
  for (int p = 0; p < plan.n_products; ++p) {
    const ActivationForm form = plan.products[p].form;
    if (done[static_cast<int>(form)]) continue;
    done[static_cast<int>(form)] = true;
    prepare_part(to, form, plan.fine, row, source.k, token, source.k, 0);
  }
}

void CpuBackend::prepare_chunk(const Source& source, const ProductPlan& plan, int64_t chunk, int thread) {
  const int64_t n = source.n_tokens, chunks = prepare_chunks(source);
  for (int64_t t = n * chunk / chunks; t < n * (chunk + 1) / chunks; ++t) {
    prepare_row(source, plan, t, workspace_.input, thread);
  }
}

const Prepared& CpuBackend::prepared(const Source& source, const ProductPlan& plan, int thread) {
  if (source.n_tokens > kOwnTokens) return workspace_.input;
  Workspace::Thread& mine = workspace_.thread(thread);
  if (mine.own_stage != stage_) {
    for (int64_t t = 0; t < source.n_tokens; ++t) prepare_row(source, plan, t, mine.own, thread);
    mine.own_stage = stage_;
  }
  return mine.own;
}

void CpuBackend::multiply(const Product& product, const ProductPlan::Chunk& chunk, const Prepared& from, int thread) {
  const int64_t n = product.w.rows();
  const auto offset = chunk.token_begin * static_cast<int64_t>(activation_bytes(product.form, 1, product.w.cols()));
  const bool fine = product.fine && product.form == ActivationForm::int8;
  cpu::matmul(isa_, product.w, from[product.form] + offset, chunk.token_end - chunk.token_begin,
              product.out + chunk.token_begin * n, n, product.bias, chunk.tile_begin, chunk.tile_end,
              workspace_.thread(thread).matmul, fine ? from[ActivationForm::int8_rest] + offset : nullptr);
}

/// The residual of the columns just computed, where no norm of the whole branch stands in between.
void CpuBackend::add_chunk(const AddArgs& add, const ProductPlan::Chunk& chunk) {
  if (add.norm) return;
  const int64_t dim = add.x.cols();
  for (int64_t t = chunk.token_begin; t < chunk.token_end; ++t) {
    const int64_t at = t * dim + chunk.row_begin;
    pointwise_.add(add.x.as<float>() + at, add.branch.as<float>() + at, add.scale, chunk.row_end - chunk.row_begin);
  }
}

// ---- stages
// ----------------------------------------------------------------------------------------------------------

void CpuBackend::matmul(const MatmulArgs& args) {
  const Source source{args.x.as<float>(), args.x.rows(), args.w.cols(), nullptr, nullptr, 0};
  if (source.n_tokens == 0) return;
  ensure(size_of(source, {&args.w}, 0));
  ++stage_;
  const ProductPlan plan = this->plan(source.n_tokens, {product(args.w, args.bias, args.out)}, 1);
  auto prepare = [&](int64_t chunk, int thread) { prepare_chunk(source, plan, chunk, thread); };
  auto compute = [&](int64_t i, int thread) {
    multiply(plan.products[0], plan.chunk(i), prepared(source, plan, thread), thread);
  };
  pool_.run(ThreadPool::phase(prepare_chunks(source), prepare), ThreadPool::phase(plan.n_chunks, compute));
}

void CpuBackend::attn_in(const AttnInArgs& args) {
  if (!fusion_.attn_in) return Backend::attn_in(args);
  const Source source{args.x.as<float>(), args.x.rows(), args.x.cols(), args.norm.as<float>(), nullptr, args.eps};
  if (source.n_tokens == 0) return;
  ensure(size_of(source, {&args.wq, &args.wk, &args.wv}, 0));
  ++stage_;
  const RopeStoreArgs& heads = args.rope_store;
  const ProductPlan plan = this->plan(
      source.n_tokens,
      {product(args.wq, args.bq, heads.q), product(args.wk, args.bk, heads.k), product(args.wv, args.bv, heads.v)}, 1,
      /*fine=*/true);
  auto prepare = [&](int64_t chunk, int thread) { prepare_chunk(source, plan, chunk, thread); };
  auto compute = [&](int64_t i, int thread) {
    const ProductPlan::Chunk chunk = plan.chunk(i);
    multiply(plan.products[chunk.product], chunk, prepared(source, plan, thread), thread);
  };
  const int64_t n_kv_heads = heads.k.dims[1], n = source.n_tokens * n_kv_heads, chunks = row_chunks(n);
  auto norm = [&](int64_t token, int) { norm_heads(heads, token); };
  auto store = [&](int64_t chunk, int) {
    for (int64_t i = n * chunk / chunks; i < n * (chunk + 1) / chunks; ++i) {
      rope_store_head(heads, i / n_kv_heads, i % n_kv_heads);
    }
  };
  pool_.run(ThreadPool::phase(prepare_chunks(source), prepare), ThreadPool::phase(plan.n_chunks, compute),
            ThreadPool::phase(heads.norms_span_heads() ? source.n_tokens : 0, norm), ThreadPool::phase(chunks, store));
}

void CpuBackend::attn_out(const AttnOutArgs& args) {
  if (!fusion_.attn_out) return Backend::attn_out(args);
  const Source source{args.attn.as<float>(), args.attn.rows(), args.wo.cols(), nullptr, nullptr, 0};
  if (source.n_tokens == 0) return;
  ensure(size_of(source, {&args.wo}, 0));
  ++stage_;
  const ProductPlan plan = this->plan(source.n_tokens, {product(args.wo, args.bo, args.add.branch)}, 1);
  auto prepare = [&](int64_t chunk, int thread) { prepare_chunk(source, plan, chunk, thread); };
  auto compute = [&](int64_t i, int thread) {
    const ProductPlan::Chunk chunk = plan.chunk(i);
    multiply(plan.products[0], chunk, prepared(source, plan, thread), thread);
    add_chunk(args.add, chunk);
  };
  auto close = [&](int64_t token, int) { close_branch(args.add, token); };
  pool_.run(ThreadPool::phase(prepare_chunks(source), prepare), ThreadPool::phase(plan.n_chunks, compute),
            ThreadPool::phase(args.add.norm ? source.n_tokens : 0, close));
}

void CpuBackend::ffn(const FfnArgs& args) {
  if (!fusion_.ffn) return Backend::ffn(args);
  const Tensor& x = args.add.x;
  const Source source{x.as<float>(), x.rows(), x.cols(), args.norm.as<float>(), nullptr, args.eps};
  if (source.n_tokens == 0) return;
  const int64_t ffn_dim = args.w_gate.rows();
  ensure(size_of(source, {&args.w_gate, &args.w_up, &args.w_down}, ffn_dim));
  ++stage_;
  // Only gate is cut into chunks: the same tiles of up go with them, so that the activation closes in the same thread.
  // Two tiles at least: the result is quantised in groups of 32.
  const ProductPlan gate = this->plan(source.n_tokens, {product(args.w_gate, args.b_gate, args.gate)}, 2);
  ProductPlan both = gate;
  Product& up = both.products[both.n_products++] = product(args.w_up, args.b_up, args.up);
  both.fine = both.fine || up.fine;
  const ProductPlan down = this->plan(source.n_tokens, {product(args.w_down, args.b_down, args.add.branch)}, 1);
  const ActivationForm form = down.products[0].form;

  auto prepare = [&](int64_t chunk, int thread) { prepare_chunk(source, both, chunk, thread); };
  auto compute = [&](int64_t i, int thread) {
    const ProductPlan::Chunk chunk = gate.chunk(i);
    const Prepared& from = prepared(source, both, thread);
    multiply(gate.products[0], chunk, from, thread);
    multiply(up, chunk, from, thread);
    const int64_t n = chunk.row_end - chunk.row_begin;
    for (int64_t t = chunk.token_begin; t < chunk.token_end; ++t) {
      float* row = args.gate.as<float>() + t * ffn_dim + chunk.row_begin;
      pointwise_.activate(args.activation, row, args.up.as<float>() + t * ffn_dim + chunk.row_begin, row, n);
      prepare_part(workspace_.inner, form, down.fine, row, n, t, ffn_dim, chunk.row_begin);
    }
  };
  auto project = [&](int64_t i, int thread) {
    const ProductPlan::Chunk chunk = down.chunk(i);
    multiply(down.products[0], chunk, workspace_.inner, thread);
    add_chunk(args.add, chunk);
  };
  auto close = [&](int64_t token, int) { close_branch(args.add, token); };
  pool_.run(ThreadPool::phase(prepare_chunks(source), prepare), ThreadPool::phase(gate.n_chunks, compute),
            ThreadPool::phase(down.n_chunks, project), ThreadPool::phase(args.add.norm ? source.n_tokens : 0, close));
}

void CpuBackend::logits(const LogitsArgs& args) {
  if (!fusion_.logits) return Backend::logits(args);
  const Source source{args.x.as<float>(),    args.rows.rows(),        args.x.cols(),
                      args.norm.as<float>(), args.rows.as<int32_t>(), args.eps};
  if (source.n_tokens == 0) return;
  for (int64_t i = 0; i < source.n_tokens; ++i) {
    if (source.rows[i] >= 0 && source.rows[i] < args.x.rows()) continue;
    throw Error(ErrorKind::run, "logits", "row out of range", std::to_string(source.rows[i]));
  }
  ensure(size_of(source, {&args.head}, 0));
  ++stage_;
  const ProductPlan plan = this->plan(source.n_tokens, {product(args.head, args.bias, args.out)}, 1, /*fine=*/true);
  const bool scaled = args.scale != 1 || args.softcap > 0;
  auto prepare = [&](int64_t chunk, int thread) { prepare_chunk(source, plan, chunk, thread); };
  auto compute = [&](int64_t i, int thread) {
    const ProductPlan::Chunk chunk = plan.chunk(i);
    multiply(plan.products[0], chunk, prepared(source, plan, thread), thread);
    for (int64_t t = chunk.token_begin; scaled && t < chunk.token_end; ++t) {
      float* row = args.out.as<float>() + t * args.head.rows() + chunk.row_begin;
      pointwise_.scale_softcap(row, args.scale, args.softcap, chunk.row_end - chunk.row_begin);
    }
  };
  pool_.run(ThreadPool::phase(prepare_chunks(source), prepare), ThreadPool::phase(plan.n_chunks, compute));
}

}  // namespace infer::cpu
