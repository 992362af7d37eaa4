// The parts of self_test(): a small model made of one layer of each kind that a file has, and its ops on a backend with
// random inputs. The result for a token depends neither on how many tokens there are nor on their order, so the
// reference, which is slow, computes a few tokens once, and every number of tokens on the device is compared with them.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "infer.h"
#include "kernels/backend.h"
#include "models/checkpoint.h"
#include "models/config.h"
#include "models/weights.h"

namespace infer::self_testing {

inline constexpr int64_t kMostTokens = 160;
/// Inputs are numbered; this many times one token each is computed on the device at once ...
inline constexpr int64_t kTokenCounts[] = {1, 2, 4, 7, 33, 128, 160};
/// ... and these tokens of them are compared.
inline constexpr int kChecked[] = {0, 1, 3, 6, 16, 32, 127, 159};

using Floats = std::vector<float>;
/// Rows of one result: [tokens, width].
struct Part {
  int64_t width = 0;
  Floats values;
};
/// All results of an op; each has its own scale, so each is compared by itself.
using Parts = std::vector<Part>;

/// What a model needs for one layer of each kind; kinds differ in formats, window, rotation or biases.
struct Extract {
  Config config;                ///< with these layers only
  std::vector<int64_t> layers;  ///< of the file
  Needs needs;
  DType k_type = DType::F16, v_type = DType::F16;
  double layer_params = 0, head_params = 0;
  int64_t n_kinds = 0;  ///< that the file has; more than layers.size() where there are too many
};
Extract extract(const Checkpoint& checkpoint, const std::string& device, const std::string& k_type,
                const std::string& v_type);

/// The extract's weights on a backend, and the inputs that all layers share.
class Subject {
 public:
  Subject(const Checkpoint& checkpoint, const Extract& extract, Backend& backend);

  const Config& config() const { return extract_.config; }
  const Weights& weights() const { return weights_; }
  Backend& backend() const { return backend_; }

  // Each computes the results of the numbered inputs `tokens`.
  Parts embed(std::span<const int> tokens) const;
  Parts attn_in(size_t layer, std::span<const int> tokens) const;
  /// `prompt`: the tokens are 0, 1, 2 ... of one sequence. Else each is the last of a sequence of its own, with the
  /// same result where `lengths` is false, and after a history of its own length where it is true.
  Parts attention(size_t layer, std::span<const int> tokens, bool prompt, bool lengths) const;
  Parts attn_out(size_t layer, std::span<const int> tokens) const;
  Parts ffn(size_t layer, std::span<const int> tokens) const;
  Parts moe_ffn(size_t layer, std::span<const int> tokens) const;
  Parts logits(std::span<const int> tokens) const;

 private:
  class Desk;  ///< tensors of one call
  void pack(const Checkpoint& checkpoint);
  void fill_caches();
  int64_t history(size_t layer) const;
  AddArgs add_args(Desk& desk, const Tensor& x, const Tensor& post_norm) const;

  const Extract& extract_;
  Backend& backend_;
  Weights weights_;
  std::vector<Buffer> buffers_;
  std::vector<Tensor> ropes_;
  std::vector<int32_t> pages_;
  Tensor k_cache_, v_cache_;
};

/// Logits of prompts of `lengths` tokens, all in one step, and of a few more tokens of each, one at a time:
/// [step][sequence]. `which`: numbers of the sequences, which fix their tokens.
inline constexpr int64_t kPromptLengths[] = {16, 5, 9};
inline constexpr int64_t kDecodedTokens = 4;
std::vector<Floats> whole_steps(const Subject& subject, const Extract& extract, Backend& backend,
                                std::span<const int> which);

/// Draws on the device that differ from those of the host; -1: the backend draws nothing.
int64_t wrong_draws(Backend& backend, int64_t vocab, int64_t n_rows);

}  // namespace infer::self_testing
