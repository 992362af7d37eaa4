// int8_kernel for every packed format of integers, and for two that files have side by side.
#include "kernels/cuda/matmul_int8.cuh"

#include "kernels/cuda/format_pairs.h"

namespace infer::cuda {

void launch_int8(DType first, DType second, const WgmmaPairLaunch& p, cudaStream_t stream) {
  const auto launch = [&]<class F, class G, int kScales = 1, NormHalf kHalf = NormHalf::none>() {
    const WgmmaPlan &a = p.of[0].plan, &b = p.of[1].plan;
    const bool both = first != second;
    launch_passes("matmul_int8", int8_kernel<F, G, kScales, kHalf>, p,
                  p.first_ctas + (both ? b.n_row_blocks * b.n_parts : 0), a.n_parts,
                  both && b.shared_bytes > a.shared_bytes ? b.shared_bytes : a.shared_bytes, stream);
  };
  if (first != second) {
    visit_format_pair(first, second, launch);
    return;
  }
  // W8I has the bytes of Q8_0.
  visit_gpu_format(first == DType::W8I ? DType::Q8_0 : first, [&]<class F>() {
    if constexpr (F::block > 1)
      if constexpr (!meets_f16(F::id)) {
        if constexpr (passes_norm<F>()) {
          if (p.of[0].next_norm) return launch.template operator()<F, F, 1, NormHalf::leaves>();
          if (p.of[0].n_squares > 0) return launch.template operator()<F, F, 1, NormHalf::takes>();
        }
        p.scales == 2 ? launch.template operator()<F, F, 2>() : launch.template operator()<F, F, 1>();
      }
  });
}

}  // namespace infer::cuda
