// Attention for steps in which every sequence has one new token: how a step is cut into units, and by which kernel they
// are computed.
#include "kernels/cuda/attention_steps.cuh"
#include "kernels/cuda/launchers.h"

namespace infer::cuda {
template bool launch_attention_step<16>(const AttentionStep&, int, cudaStream_t);

void attention_decode(const AttentionArgs& args, const AttentionScratch& scratch, int n_sms, cudaStream_t stream) {
  AttentionStep a{};
  a.q = args.q.as<float>();
  a.k_cache = args.k_cache.as<uint8_t>(), a.v_cache = args.v_cache.as<uint8_t>();
  a.page_table = args.page_table.as<int32_t>();
  a.q_start = args.q_start.as<int32_t>(), a.kv_len = args.kv_len.as<int32_t>();
  a.sinks = args.sinks.as<float>();
  a.out = args.out.data;
  a.copy = static_cast<__nv_bfloat16*>(scratch.copy), a.copy_tokens = scratch.copy_tokens;
  a.partial = scratch.partial, a.arrived = scratch.arrived;
  a.max_pages = args.page_table.cols(), a.window = args.window;
  a.n_seqs = static_cast<int>(args.kv_len.rows());
  a.n_heads = static_cast<int>(args.q.dims[1]), a.n_kv_heads = static_cast<int>(args.k_cache.dims[1]);
  a.head_dim = static_cast<int>(args.q.dims[2]), a.group = a.n_heads / a.n_kv_heads;
  a.scale = args.scale, a.softcap = args.softcap;
  a.k_type = args.k_cache.dtype, a.v_type = args.v_cache.dtype, a.out_type = args.out.dtype;
  const int64_t n_parts = args.q.rows() * a.n_kv_heads * a.n_groups();
  if (n_parts == 0) return;
  if (a.head_dim > 256) throw Error(ErrorKind::usage, "attention", "head too large", std::to_string(a.head_dim), "256");
  const int64_t room = scratch.max_units / n_parts, wanted = splits_wanted(n_sms, n_parts);
  a.max_splits = static_cast<int>(room < 1 ? 1 : room < wanted ? room : wanted);
  a.n_units = n_parts * a.max_splits;
  if (n_parts >= n_sms ? launch_attention_step<4>(a, n_sms, stream) : launch_attention_step<16>(a, n_sms, stream))
    return;
  launch_attention<0, CacheF32, 16>(a, n_sms, stream);
}

}  // namespace infer::cuda
