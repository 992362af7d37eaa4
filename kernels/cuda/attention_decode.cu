// Attention for steps in which every sequence has one new token: how a step is cut into units, and by which kernel they
// are computed.
#include "kernels/cuda/attention_steps.cuh"
#include "kernels/cuda/launchers.h"

namespace infer::cuda {
template bool launch_attention_step<16>(const AttentionStep&, int, cudaStream_t);

namespace {

/// Of queries that are ready, over keys and values that are stored.
HeadRows ready_rows(const AttentionArgs& args) {
  HeadRows p{};
  p.n_heads = static_cast<int>(args.q.dims[1]), p.n_kv_heads = static_cast<int>(args.k_cache.dims[1]);
  p.head_dim = static_cast<int>(args.q.dims[2]);
  p.q_from = args.q.as<float>(), p.q_stride = p.n_heads * p.head_dim;
  p.k_cache = args.k_cache.as<uint8_t>(), p.v_cache = args.v_cache.as<uint8_t>();
  p.k_type = args.k_cache.dtype, p.v_type = args.v_cache.dtype;
  p.k_rotation = p.v_rotation = 1;
  return p;
}

}  // namespace

void attention_decode(const AttentionArgs& args, const MergedHeads* heads, const AttentionScratch& scratch, int n_sms,
                      cudaStream_t stream) {
  AttentionStep a{heads ? head_rows(*heads) : ready_rows(args)};
  a.page_table = args.page_table.as<int32_t>();
  a.q_start = args.q_start.as<int32_t>(), a.kv_len = args.kv_len.as<int32_t>();
  a.sinks = args.sinks.as<float>();
  a.out = args.out.data;
  a.copy = scratch.copy, a.copy_form = scratch.copy_form, a.copy_tokens = scratch.copy_tokens;
  a.partial = scratch.partial, a.arrived = scratch.arrived;
  a.max_pages = args.page_table.cols(), a.window = args.window;
  a.n_seqs = static_cast<int>(args.kv_len.rows());
  a.group = a.n_heads / a.n_kv_heads;
  a.scale = args.scale, a.softcap = args.softcap, a.out_type = args.out.dtype;
  const int64_t n_parts = args.q.rows() * a.n_kv_heads * a.n_groups();
  if (n_parts == 0) return;
  if (a.head_dim > 256) throw Error(ErrorKind::usage, "attention", "head too large", std::to_string(a.head_dim), "256");
  const int64_t room = scratch.max_units / n_parts, wanted = splits_wanted(n_sms, n_parts);
  a.max_splits = static_cast<int>(room < 1 ? 1 : room < wanted ? room : wanted);
  a.n_units = static_cast<int32_t>(n_parts * a.max_splits);
  a.by_splits = Divisor(static_cast<uint32_t>(a.max_splits)),
  a.by_groups = Divisor(static_cast<uint32_t>(a.n_groups()));
  a.by_kv_heads = Divisor(static_cast<uint32_t>(a.n_kv_heads));
  if (n_parts >= n_sms ? launch_attention_step<4>(a, n_sms, stream) : launch_attention_step<16>(a, n_sms, stream))
    return;
  launch_attention<0, CacheF32, 16>(a, n_sms, stream);
}

}  // namespace infer::cuda
