// Attention for steps in which every sequence has one new token. The work is cut into units (token, KV head, up to 8 of
// its query heads, split of the positions); what the splits of one token and KV head found is combined by whichever of
// them comes last, always in the order of the positions, so that results do not depend on who that was.
#include "kernels/cuda/attention_decode.cuh"
#include "kernels/cuda/head_sizes.h"
#include "kernels/cuda/launchers.h"

namespace infer::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * 32;
/// Of shared memory; head size 0 stands for any.
template <int kHeadDim>
constexpr int kScratchBytes = attend_shared_bytes<(kHeadDim > 0 ? kHeadDim : 256), kWarps>();

struct DecodeArgs {
  const float* q;  ///< [n_tokens, n_heads, head_dim]
  const uint8_t *k_cache, *v_cache;
  const int32_t *page_table, *q_start, *kv_len;
  const float* sinks;
  void* out;
  float* partial;
  int32_t* arrived;
  int64_t max_pages, window;
  int n_seqs, n_heads, n_kv_heads, head_dim, group, max_splits;
  int64_t n_units;
  float scale, softcap;
  DType k_type, v_type, out_type;

  __host__ __device__ int n_groups() const { return ceil_div(group, kUnitRows); }
};

__device__ __forceinline__ void put(const DecodeArgs& a, int64_t at, float x) {
  if (a.out_type == DType::F32)
    static_cast<float*>(a.out)[at] = x;
  else if (a.out_type == DType::F16)
    static_cast<__half*>(a.out)[at] = narrow<__half>(x);
  else
    static_cast<__nv_bfloat16*>(a.out)[at] = narrow<__nv_bfloat16>(x);
}

/// What sums found under maximum `top`, with total `total`, are multiplied with. The sink of a head is one more logit.
__device__ __forceinline__ float final_factor(const DecodeArgs& a, int head, float top, float total) {
  if (!a.sinks) return total == 0 ? 0.0f : 1.0f / total;
  const float sink = a.sinks[head] * kLog2e, higher = fmaxf(top, sink), weight = weight_below(top, higher);
  return weight / (total * weight + weight_below(sink, higher));
}

/// All heads of KV head `kv_head` of token `token` from the partial results of `n_splits` splits.
__device__ void combine(const DecodeArgs& a, int64_t token, int kv_head, int n_splits) {
  const int64_t row_floats = a.head_dim + 2, split_floats = kUnitRows * row_floats;
  for (int i = threadIdx.x; i < a.group * a.head_dim; i += kThreads) {
    const int in_group = i / a.head_dim, dim = i % a.head_dim, head = kv_head * a.group + in_group;
    const int64_t unit = ((token * a.n_kv_heads + kv_head) * a.n_groups() + in_group / kUnitRows) * a.max_splits;
    const float* rows = a.partial + unit * split_floats + in_group % kUnitRows * row_floats;
    float top = -INFINITY, total = 0, sum = 0;
    for (int s = 0; s < n_splits; ++s) top = fmaxf(top, __ldcg(rows + s * split_floats + a.head_dim));
    for (int s = 0; s < n_splits; ++s) {
      const float* row = rows + s * split_floats;
      const float weight = weight_below(__ldcg(row + a.head_dim), top);
      total += weight * __ldcg(row + a.head_dim + 1);
      sum += weight * __ldcg(row + dim);
    }
    put(a, (token * a.n_heads + head) * a.head_dim + dim, sum * final_factor(a, head, top, total));
  }
}

/// The sequence of a token and the position after the token's own. Sequence and token have the same number unless some
/// sequence has no new token and another has two.
__device__ __forceinline__ int2 find_sequence(const DecodeArgs& a, int token) {
  int s = token;
  if (a.q_start[s] > token || a.q_start[s + 1] <= token) {
    for (s = 0; s + 1 < a.n_seqs && a.q_start[s + 1] <= token;) ++s;
  }
  return make_int2(s, a.kv_len[s] - (a.q_start[s + 1] - token) + 1);
}

/// Grid: at most one block per SM, strides over units. Block: 16 warps. Shared: attend_shared_bytes, q, out. Reads the
/// cache once per unit, which bounds it; partial results are (head_dim + 2) * 32 bytes per unit. kHeadDim 0: any head
/// size and cache types, by plain arithmetic.
template <int kHeadDim, class Cache>
__global__ void __launch_bounds__(kThreads, 1) attention_decode_kernel(const DecodeArgs a) {
  extern __shared__ __align__(16) float scratch[];
  __shared__ float row_max[kUnitRows], row_sum[kUnitRows];
  __shared__ bool last;
  const int head_dim = kHeadDim > 0 ? kHeadDim : a.head_dim;
  float* q = scratch + kScratchBytes<kHeadDim> / 4;
  float* out = q + kUnitRows * head_dim;
  for (int64_t unit = blockIdx.x; unit < a.n_units; unit += gridDim.x) {
    const int split = static_cast<int>(unit % a.max_splits);
    const int64_t rest = unit / a.max_splits, pair = rest / a.n_groups();
    const int first_row = static_cast<int>(rest % a.n_groups()) * kUnitRows;
    const int kv_head = static_cast<int>(pair % a.n_kv_heads), token = static_cast<int>(pair / a.n_kv_heads);
    const int2 sequence = find_sequence(a, token);
    const SplitPlan plan = plan_splits(sequence.y, a.window, a.max_splits);
    if (split >= plan.n_splits) continue;
    const int n_rows = min(kUnitRows, a.group - first_row), head = kv_head * a.group + first_row;
    const int64_t at = (static_cast<int64_t>(token) * a.n_heads + head) * head_dim;
    for (int i = threadIdx.x; i < n_rows * head_dim; i += kThreads) q[i] = a.q[at + i] * a.scale;
    __syncthreads();
    const AttentionUnit work{q,
                             n_rows,
                             a.k_cache,
                             a.v_cache,
                             a.n_kv_heads,
                             kv_head,
                             a.page_table + sequence.x * a.max_pages,
                             plan.begin(split),
                             plan.end_of(split),
                             a.softcap,
                             out,
                             row_max,
                             row_sum};
    if constexpr (kHeadDim > 0) {
      attend_range<kHeadDim, Cache, kWarps, 0>(work, scratch);
    } else {
      attend_plain<kWarps, 0>(work, head_dim, a.k_type, a.v_type, scratch);
    }
    // Values that lie rotated are brought back; that is linear, so it may come before splits are combined.
    if (const auto block = static_cast<int>(kv_rotation(a.v_type, head_dim)); block > 1) {
      for (int row = threadIdx.x / 32; row < n_rows; row += kWarps)
        hadamard(out + row * head_dim, head_dim, block, threadIdx.x % 32);
      __syncthreads();
    }
    if (plan.n_splits == 1) {
      for (int i = threadIdx.x; i < n_rows * head_dim; i += kThreads) {
        const int row = i / head_dim;
        put(a, at + i, out[i] * final_factor(a, head + row, row_max[row], row_sum[row]));
      }
    } else {
      float* rows = a.partial + unit * kUnitRows * (head_dim + 2);
      for (int i = threadIdx.x; i < n_rows * (head_dim + 2); i += kThreads) {
        const int row = i / (head_dim + 2), dim = i % (head_dim + 2);
        rows[i] = dim < head_dim ? out[row * head_dim + dim] : dim == head_dim ? row_max[row] : row_sum[row];
      }
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        last = atomicAdd(a.arrived + pair, 1) == a.n_groups() * plan.n_splits - 1;
        if (last) a.arrived[pair] = 0;  // for the next launch; nobody else comes
        __threadfence();
      }
      __syncthreads();
      if (last) combine(a, token, kv_head, plan.n_splits);
    }
    __syncthreads();
  }
}

template <int kHeadDim, class Cache>
void launch(const DecodeArgs& a, int n_sms, cudaStream_t stream) {
  const int bytes = kScratchBytes<kHeadDim> + 2 * kUnitRows * a.head_dim * 4;
  const auto kernel = attention_decode_kernel<kHeadDim, Cache>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "attention_decode");
  const int64_t grid = a.n_units < n_sms ? a.n_units : n_sms;
  kernel<<<static_cast<unsigned>(grid), kThreads, bytes, stream>>>(a);
  check_launch("attention_decode");
}

/// False where tensor cores have no kernel for the head size and types.
template <class Cache>
bool launch_sized(const DecodeArgs& a, int n_sms, cudaStream_t stream) {
  if (a.k_type != Cache::Keys::id || a.v_type != Cache::Values::id) return false;
  bool launched = false;
  visit_head_size(a.head_dim, [&]<int kHeadDim>() {
    if constexpr (kCacheFits<kHeadDim, Cache>) launch<kHeadDim, Cache>(a, n_sms, stream), launched = true;
  });
  return launched;
}

}  // namespace

void attention_decode(const AttentionArgs& args, const AttentionScratch& scratch, int n_sms, cudaStream_t stream) {
  DecodeArgs a{};
  a.q = args.q.as<float>();
  a.k_cache = args.k_cache.as<uint8_t>(), a.v_cache = args.v_cache.as<uint8_t>();
  a.page_table = args.page_table.as<int32_t>();
  a.q_start = args.q_start.as<int32_t>(), a.kv_len = args.kv_len.as<int32_t>();
  a.sinks = args.sinks.as<float>();
  a.out = args.out.data;
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
  const auto launched = [&]<class... Cache>() { return (launch_sized<Cache>(a, n_sms, stream) || ...); };
  if (launched.template operator()<CacheF16, CacheBF16, CacheQ8_0, CacheQ4_0>()) return;
  // Of two types those that are worth having: one of them quantised, and values not more finely than keys but for f16.
  if (launched.template operator()<CachePair<CacheQ8_0, CacheQ4_0>, CachePair<CacheQ8_0, CacheF16>,
                                   CachePair<CacheF16, CacheQ8_0>, CachePair<CacheF16, CacheQ4_0>>())
    return;
  launch<0, CacheF32>(a, n_sms, stream);
}

}  // namespace infer::cuda
