// The stage of experts, fused, and its primitives. Two regions with the sort between them: the first norms the rows and
// chooses; the second takes every expert that was chosen through gate and up, then down, all of its tokens at once, the
// shared expert beside them, and closes the tokens. An expert's rows lie side by side in sorted order, from the
// gathered input to the result of down.
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_stages.h"
#include "kernels/route.h"

namespace infer::cpu {
namespace {

constexpr int64_t kFewRows = 8;  // what the matmul kernels do in one pass over the weights

int64_t matrix_bytes(const Tensor& stack) {
  return static_cast<int64_t>(packed_bytes(stack.dtype, stack.dims[1], stack.dims[2]));
}

int64_t tile_bytes_of(const Tensor& w) { return static_cast<int64_t>(packed_bytes(w.dtype, 1, w.cols())); }

double dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t kLanes = 8;
  double sums[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) sums[i % kLanes] += static_cast<double>(a[i]) * b[i];
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

/// Rows that wait for a kernel, or that it left, in a Prepared buffer.
uint8_t* row_of(const Prepared& from, ActivationForm form, int64_t row, int64_t cols) {
  return from[form] + row * static_cast<int64_t>(activation_bytes(form, 1, cols));
}

/// fn(i) for one chunk's share of [0, n).
template <class Fn>
void for_share(int64_t n, int64_t chunk, int64_t chunks, Fn fn) {
  for (int64_t i = n * chunk / chunks; i < n * (chunk + 1) / chunks; ++i) fn(i);
}

}  // namespace

Product CpuBackend::expert_product(const Tensor& w, const Tensor& bias, const Tensor& out, int64_t expert) {
  const int64_t rows = w.dims[1];
  Product p = product(matrix_of(w, expert, matrix_bytes(w)), Tensor(), out);
  if (bias) p.bias = bias.as<float>() + expert * rows;
  return p;
}

void CpuBackend::route(const RouteArgs& args) {
  for_rows(args.logits.rows(), [&](int64_t t) { route_row(args, t); });
}

void CpuBackend::route_row(const RouteArgs& a, int64_t token) {
  const int64_t n_experts = a.logits.cols(), n_active = a.ids.cols();
  route_token(a.logits.as<float>() + token * n_experts, n_experts, n_active, a.sum_to_one, a.scale,
              a.ids.as<int32_t>() + token * n_active, a.weights.as<float>() + token * n_active);
}

/// `places`: of the rows of args.experts, or null where they lie as the args say. `x`: the token's row for the mix.
void CpuBackend::combine_row(const CombineArgs& a, const int32_t* places, const float* x, int64_t token) {
  const int64_t dim = a.out.cols(), n_active = a.weights.cols();
  float* out = a.out.as<float>() + token * dim;
  std::memset(out, 0, static_cast<size_t>(dim) * sizeof(float));
  for (int64_t i = token * n_active; i < (token + 1) * n_active; ++i) {
    const int64_t place = places != nullptr ? places[i] : i;
    pointwise_.add(out, a.experts.as<float>() + place * dim, a.weights.as<float>()[i], dim);
  }
  if (!a.shared) return;
  const double share = a.shared_mix ? 1 / (1 + std::exp(-dot(x, a.shared_mix.as<float>(), dim))) : 1;
  pointwise_.add(out, a.shared.as<float>() + token * dim, static_cast<float>(share), dim);
}

void CpuBackend::combine(const CombineArgs& a) {
  for_rows(a.out.rows(),
           [&](int64_t t) { combine_row(a, nullptr, a.shared_mix ? a.x.as<float>() + t * a.x.cols() : nullptr, t); });
}

/// Each chunk is computed into a block of its own and copied to where its rows belong.
void CpuBackend::expert_matmul(const ExpertMatmulArgs& a) {
  constexpr int64_t kBlockRows = 64, kBlockTiles = 4;
  const int64_t n_rows = a.ids.n_elements(), n_active = a.ids.cols(), n = a.w.dims[1], k = a.w.dims[2];
  if (n_rows == 0) return;
  const ActivationForm form = activation_form(a.w.dtype);
  WorkspaceSize size;
  size.n_tokens = 1, size.width = k, size.expert_rows = n_rows, size.expert_width = k;
  size.include_form(form), size.include_expert_form(form);
  ensure(size);
  experts_.sort(a.ids, a.w.dims[0]);
  experts_.up.clear();
  const ExpertPlan::Cut cut{tile_count(n), tile_bytes_of(a.w), 1, n_threads(), false};
  ExpertPlan::cut(0, std::ssize(experts_.groups()), cut, experts_.up);
  const int64_t prepare_chunks = row_chunks(n_rows);
  auto prepare = [&](int64_t chunk, int) {
    for_share(n_rows, chunk, prepare_chunks, [&](int64_t place) {
      const int64_t row = experts_.order()[static_cast<size_t>(place)];
      const float* x = a.x.as<float>() + (a.x.n_dims == 3 ? row : row / n_active) * k;
      prepare_part(workspace_.expert_input, form, a.w.layout == kPackedFine, x, k, place, k, 0);
    });
  };
  auto compute = [&](int64_t i, int thread) {
    const ExpertPlan::Chunk& chunk = experts_.up[static_cast<size_t>(i)];
    const ExpertPlan::Group& group = experts_.groups()[static_cast<size_t>(chunk.group)];
    const Product p = expert_product(a.w, a.bias, a.out, group.expert);
    const int64_t begin = chunk.tile_begin * kTileRows, width = std::min(n, chunk.tile_end * kTileRows) - begin;
    Tensor w = p.w;  // of these tiles alone
    w.data = p.w.as<char>() + chunk.tile_begin * tile_bytes_of(p.w), w.dims[0] = width;
    float block[kBlockRows * kBlockTiles * kTileRows];
    for (int64_t r = 0; r < group.count; r += kBlockRows) {
      const int64_t first = group.first + r, m = std::min(kBlockRows, group.count - r);
      const bool rest = p.fine && form == ActivationForm::int8;
      cpu::matmul(isa_, w, row_of(workspace_.expert_input, form, first, k), m, block, width,
                  p.bias != nullptr ? p.bias + begin : nullptr, 0, tile_count(width), workspace_.thread(thread).matmul,
                  rest ? row_of(workspace_.expert_input, ActivationForm::int8_rest, first, k) : nullptr);
      for (int64_t j = 0; j < m; ++j) {
        float* to = a.out.as<float>() + experts_.order()[static_cast<size_t>(first + j)] * n + begin;
        std::memcpy(to, block + j * width, static_cast<size_t>(width) * sizeof(float));
      }
    }
  };
  pool_.run(ThreadPool::phase(prepare_chunks, prepare), ThreadPool::phase(std::ssize(experts_.up), compute));
}

// ---- the stage -----------------------------------------------------------------------------------------------------

WorkspaceSize CpuBackend::moe_size(const MoeFfnArgs& a, const Source& source) const {
  WorkspaceSize size = size_of(source, {&a.w_router, &a.w_gate, &a.w_up, &a.w_down}, 0);
  for (const Tensor* w : {&a.w_gate, &a.w_up, &a.w_down}) size.include_expert_form(activation_form(w->dtype));
  size.expert_rows = a.ids.n_elements();
  size.expert_width = std::max(a.w_gate.cols(), a.w_down.cols());
  if (!a.w_shared_gate) return size;
  for (const Tensor* w : {&a.w_shared_gate, &a.w_shared_up, &a.w_shared_down})
    size.include_form(activation_form(w->dtype));
  size.width = std::max(size.width, a.w_shared_down.cols());
  return size;
}

/// The first region. Returns the plan by which the source's rows are prepared: its products are the router, then all
/// others that read these rows.
ProductPlan CpuBackend::choose_experts(const MoeFfnArgs& a, const Source& source) {
  const Product router = product(a.w_router, a.b_router, a.router);
  const ProductPlan alone = plan(source.n_tokens, {router}, 1, router.form == ActivationForm::int8);
  ProductPlan all = alone;
  for (const Tensor* w : {&a.w_gate, &a.w_up}) all.products[all.n_products++] = expert_product(*w, {}, a.gate, 0);
  for (const Tensor* w : {&a.w_shared_gate, &a.w_shared_up})
    if (*w) all.products[all.n_products++] = product(*w, {}, a.shared_gate);
  for (int p = 0; p < all.n_products; ++p) all.fine = all.fine || all.products[p].fine;
  const RouteArgs choice = steps(a).route;
  const int64_t n = source.n_tokens, chunks = row_chunks(n);
  auto prepare = [&](int64_t chunk, int thread) { prepare_chunk(source, all, chunk, thread); };
  auto compute = [&](int64_t i, int thread) {
    multiply(alone.products[0], alone.chunk(i), prepared(source, all, thread), thread);
  };
  auto choose = [&](int64_t chunk, int) { for_share(n, chunk, chunks, [&](int64_t t) { route_row(choice, t); }); };
  pool_.run(ThreadPool::phase(prepare_chunks(source), prepare), ThreadPool::phase(alone.n_chunks, compute),
            ThreadPool::phase(chunks, choose));
  return all;
}

/// The chunks of both halves of the second region; the group after the last stands for the shared expert.
void CpuBackend::cut_experts(const MoeFfnArgs& a, int64_t n_tokens) {
  experts_.sort(a.ids, a.w_gate.dims[0]);
  const int64_t n_groups = std::ssize(experts_.groups());
  const bool few = n_tokens <= kFewRows;
  const auto cut = [&](std::vector<ExpertPlan::Chunk>& chunks, const Tensor& expert, const Tensor& shared,
                       int64_t multiple) {
    chunks.clear();
    if (shared) {
      ExpertPlan::cut(n_groups, n_groups + 1,
                      {tile_count(shared.rows()), tile_bytes_of(shared), multiple, n_threads(), few}, chunks);
    }
    ExpertPlan::cut(0, n_groups, {tile_count(expert.dims[1]), tile_bytes_of(expert), multiple, n_threads(), few},
                    chunks);
  };
  cut(experts_.up, a.w_gate, a.w_shared_gate, 2);  // results are quantised in groups of 32
  cut(experts_.down, a.w_down, a.w_shared_down, 1);
}

/// Gate, up and activation of some columns for all rows of a group; the result is left prepared for the way down.
void CpuBackend::expert_up(const MoeFfnArgs& a, const ExpertPlan::Chunk& chunk, const Prepared& input, int thread) {
  const bool shared = chunk.group == std::ssize(experts_.groups());
  const ExpertPlan::Group group =
      shared ? ExpertPlan::Group{0, 0, a.add.x.rows()} : experts_.groups()[static_cast<size_t>(chunk.group)];
  Product gate =
      shared ? product(a.w_shared_gate, {}, a.shared_gate) : expert_product(a.w_gate, a.b_gate, a.gate, group.expert);
  Product up = shared ? product(a.w_shared_up, {}, a.shared_up) : expert_product(a.w_up, a.b_up, a.up, group.expert);
  const int64_t width = gate.w.rows(), begin = chunk.tile_begin * kTileRows;
  const int64_t n = std::min(width, chunk.tile_end * kTileRows) - begin;
  // One token's experts all read its one row; else each expert's rows were gathered.
  const bool gathered = !shared && a.add.x.rows() > 1;
  const int64_t from = gathered ? group.first : 0;
  gate.out += (group.first - from) * width, up.out += (group.first - from) * width;
  const ProductPlan::Chunk rows{0, chunk.tile_begin, chunk.tile_end, from, from + group.count, begin, begin + n};
  const Prepared& source = gathered ? workspace_.expert_input : input;
  multiply(gate, rows, source, thread);
  multiply(up, rows, source, thread);
  const Tensor& down = shared ? a.w_shared_down : a.w_down;
  const ActivationForm form = activation_form(down.dtype);
  const Prepared& inner = shared ? workspace_.inner : workspace_.expert_inner;
  for (int64_t r = from; r < from + group.count; ++r) {
    float* row = gate.out + r * width + begin;
    pointwise_.activate(a.activation, row, up.out + r * width + begin, row, n);
    prepare_part(inner, form, down.layout == kPackedFine, row, n, r - from + group.first, width, begin);
  }
}

void CpuBackend::expert_down(const MoeFfnArgs& a, const ExpertPlan::Chunk& chunk, int thread) {
  const bool shared = chunk.group == std::ssize(experts_.groups());
  const ExpertPlan::Group group =
      shared ? ExpertPlan::Group{0, 0, a.add.x.rows()} : experts_.groups()[static_cast<size_t>(chunk.group)];
  const Product down =
      shared ? product(a.w_shared_down, {}, a.shared_down) : expert_product(a.w_down, a.b_down, a.down, group.expert);
  const ProductPlan::Chunk rows{0, chunk.tile_begin, chunk.tile_end, group.first, group.first + group.count, 0, 0};
  multiply(down, rows, shared ? workspace_.inner : workspace_.expert_inner, thread);
}

void CpuBackend::moe_ffn(const MoeFfnArgs& args) {
  if (!fusion_.ffn) return Backend::moe_ffn(args);
  const Tensor& x = args.add.x;
  const Source source{x.as<float>(), x.rows(), x.cols(), args.norm.as<float>(), nullptr, args.eps};
  if (source.n_tokens == 0) return;
  ensure(moe_size(args, source));
  ++stage_;
  const ProductPlan all = choose_experts(args, source);
  cut_experts(args, source.n_tokens);
  const int64_t n_rows = args.ids.n_elements(), n_active = args.ids.cols();
  const int64_t gather_chunks = source.n_tokens > 1 ? row_chunks(n_rows) : 0;
  auto gather = [&](int64_t chunk, int thread) {
    const Prepared& from = prepared(source, all, thread);
    for_share(n_rows, chunk, gather_chunks, [&](int64_t place) {
      const int64_t token = experts_.order()[static_cast<size_t>(place)] / n_active;
      for (int f = 0; f < kForms; ++f) {
        const auto form = static_cast<ActivationForm>(f);
        const auto wanted = [&](const Tensor& w) {
          const ActivationForm own = activation_form(w.dtype);
          return form == own ||
                 (form == ActivationForm::int8_rest && own == ActivationForm::int8 && w.layout == kPackedFine);
        };
        if (!wanted(args.w_gate) && !wanted(args.w_up)) continue;
        std::memcpy(row_of(workspace_.expert_input, form, place, source.k), row_of(from, form, token, source.k),
                    activation_bytes(form, 1, source.k));
      }
    });
  };
  auto up = [&](int64_t i, int thread) {
    expert_up(args, experts_.up[static_cast<size_t>(i)], prepared(source, all, thread), thread);
  };
  auto down = [&](int64_t i, int thread) { expert_down(args, experts_.down[static_cast<size_t>(i)], thread); };
  const CombineArgs sum = steps(args).combine;
  auto close = [&](int64_t token, int thread) {
    float* normed = workspace_.thread(thread).row;
    if (args.shared_mix) pointwise_.rms_norm(source.x + token * source.k, source.norm, source.eps, normed, source.k);
    combine_row(sum, experts_.places().data(), normed, token);
    close_branch(args.add, token);
  };
  pool_.run(ThreadPool::phase(gather_chunks, gather), ThreadPool::phase(std::ssize(experts_.up), up),
            ThreadPool::phase(std::ssize(experts_.down), down), ThreadPool::phase(source.n_tokens, close));
}

}  // namespace infer::cpu
