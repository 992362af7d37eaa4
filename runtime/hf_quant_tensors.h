// The quantised matrices of a Hugging Face folder, one "weight" made of the several tensors of a module: qweight,
// qzeros, scales, g_idx; weight_packed, weight_scale, weight_zero_point, weight_shape; weight, weight_scale_inv.
#pragma once

#include <functional>

#include "models/checkpoint.h"
#include "runtime/hf_quant.h"
#include "runtime/hf_quant_matrix.h"

namespace infer {

struct UnpackOptions {
  int n_threads = 1;
  KeepOptions keep = {};
  std::function<bool(double)> progress = {};  ///< the share that is done; false cancels with Error(run)
};

/// Puts `module.weight`, yet to be made, in the place of a module's tensors, for every module that has them; what is
/// kept unquantised, or rounded, is told in one line of checkpoint.warnings. Scales of activations are left out: they
/// are not quantised here. Throws Error(bad_file).
void unpack_quantised(Checkpoint& checkpoint, const HfQuant& quant, const UnpackOptions& options);

}  // namespace infer
