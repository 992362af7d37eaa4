// A small valid checkpoint in memory, to be edited by tests that want it wrong in one place.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "models/checkpoint.h"

namespace infer {

struct TinyShape {
  int64_t n_layers = 2, dim = 32, n_heads = 4, n_kv_heads = 2, head_dim = 8, ffn_dim = 64, vocab = 40;
  int64_t n_experts = 0, n_active = 2, expert_dim = 32, shared_dim = 0;  ///< n_experts 0: dense
};

class TinyCheckpoint {
 public:
  /// Metadata and random F32 tensors of any architecture in the table; optional tensors are left out.
  explicit TinyCheckpoint(const std::string& arch = "llama", const TinyShape& shape = {});

  /// Keys are given without the architecture's prefix unless they begin with "general.".
  TinyCheckpoint& set(const std::string& key, Value::Data data);
  TinyCheckpoint& erase(const std::string& key);
  /// Adds a tensor of random numbers, or replaces the one of this name.
  TinyCheckpoint& tensor(const std::string& name, std::vector<int64_t> dims, DType dtype = DType::F32);
  /// The same with given numbers, as F32.
  TinyCheckpoint& numbers(const std::string& name, const std::vector<float>& values);
  TinyCheckpoint& drop(const std::string& name);
  float* values(const std::string& name);  ///< of an F32 tensor, to be written

  /// The checkpoint as a reader would hand it over; it shares the tensors' bytes.
  Checkpoint build() const;

 private:
  std::string full(const std::string& key) const;
  void add_experts(const std::string& blk, const TinyShape& shape);

  std::string arch_;
  Checkpoint checkpoint_;
  std::shared_ptr<std::deque<std::vector<std::byte>>> storage_ = std::make_shared<std::deque<std::vector<std::byte>>>();
};

}  // namespace infer
