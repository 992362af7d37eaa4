// What a mixture gives to each tensor, in llama.cpp's way: more bits for the output head, for values, and for the first
// and last layers' way down. Counts as it goes, so tensors come layer by layer.
#pragma once

#include <optional>
#include <string_view>

#include "models/checkpoint.h"
#include "runtime/quantize_plan.h"

namespace infer {

/// The N of "blk.N.", or -1.
int64_t layer_of(std::string_view name);
bool is_token_embedding(std::string_view name);

class Mixer {
 public:
  /// `output`: what the user gave for the output head, which tied embeddings are as well.
  Mixer(const Checkpoint& checkpoint, const Mix& mix, bool has_imatrix, std::optional<DType> output);
  DType choose(const HostTensor& tensor);

 private:
  DType head(const HostTensor& tensor) const;
  DType values();
  DType down(int64_t layer);
  DType attention_output() const;

  Mix mix_;
  std::optional<DType> output_;
  bool has_imatrix_, tied_ = true, falcon_ = false, grouped_eight_ = false;
  int64_t n_layers_ = 0, n_experts_ = 0, n_groups_ = 1;  ///< query heads to a key head
  int64_t n_values_ = 0, i_values_ = 0, i_down_ = 0;
};

}  // namespace infer
