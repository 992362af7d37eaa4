// The smallest engine: one model on one backend, sequences whose KV pages lie scattered in a pool, logits.
// For tests that compare forward passes; it owns no policy and no sampler.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/arch.h"
#include "models/decoder.h"

namespace infer {

/// New tokens of one sequence.
struct Chunk {
  int sequence;
  std::vector<int32_t> ids;
  int64_t n_outputs = -1;  ///< logits of this many last rows; -1: of all
};

class Runner {
 public:
  explicit Runner(Checkpoint checkpoint, const std::string& backend = "ref", DType kv_type = DType::F32,
                  const BackendOptions& options = {});

  /// One step with all chunks; the logits of the wanted rows, in order.
  std::vector<float> step(const std::vector<Chunk>& chunks, const StageObserver& observer = nullptr);

  const Config& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  Backend& backend() { return *backend_; }
  void forget(int sequence) { sequences_.erase(sequence); }

 private:
  struct Sequence {
    std::vector<int32_t> pages;
    int32_t length = 0;
  };
  int32_t take_page();

  Checkpoint checkpoint_;
  std::unique_ptr<Backend> backend_;
  Config config_;
  Weights weights_;
  KvTensors kv_;
  std::vector<Tensor> ropes_;
  std::vector<Buffer> buffers_;
  std::map<int, Sequence> sequences_;
  int32_t next_page_ = 0;
};

/// Sum of squared differences over the sum of `want` squared; infinite for a NaN or another size.
double nmse(const std::vector<float>& got, const std::vector<float>& want);

int32_t argmax(const float* logits, int64_t n);

}  // namespace infer
