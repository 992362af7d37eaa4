// Tensors of a folder in the form that GGUF files have. Rows that change places are not moved: a tensor may lie in
// parts, and its rows are the parts, in their new order.
#include <algorithm>

#include "models/arch.h"
#include "runtime/convert.h"
#include "runtime/hf_owned.h"

namespace infer {
namespace {

/// Heads whose rows change places.
struct Heads {
  int64_t head_dim, rope_dim;
};

/// The row of the authors' order that comes to `row`: elements that rotate together lie half a rotation apart there,
/// and side by side in GGUF files.
int64_t source_row(const Heads& heads, int64_t row) {
  const int64_t within = row % heads.head_dim;
  if (within >= heads.rope_dim) return row;
  return row - within + within / 2 + within % 2 * (heads.rope_dim / 2);
}

bool is_part_of(const std::string& name, const char* part) {
  return name.ends_with(std::string(part) + ".weight") || name.ends_with(std::string(part) + ".bias");
}

/// Small, or read by code that wants floats: everything but matrices.
bool is_vector(const HostTensor& tensor) {
  const bool matrix = tensor.dims.size() >= 2 && tensor.n_elements() > tensor.dims.back();
  return !matrix || !tensor.name.ends_with(".weight");
}

class TensorConverter {
 public:
  explicit TensorConverter(Checkpoint& checkpoint)
      : checkpoint_(checkpoint),
        owned_(own_storage(checkpoint)),
        arch_(checkpoint.get_string("general.architecture")) {}

  void run() {
    const Config config = read_config(checkpoint_);
    const std::string adjacent = arch_ + ".rope.adjacent";
    if (!checkpoint_.find_bool(adjacent).value_or(true)) {
      const Heads heads{config.head_dim, config.ropes[0].dim};
      for (HostTensor& tensor : checkpoint_.tensors)
        if (is_part_of(tensor.name, ".attn_q") || is_part_of(tensor.name, ".attn_k")) reorder(tensor, heads);
      checkpoint_.metadata.erase(adjacent);
    }
    for (HostTensor& tensor : checkpoint_.tensors)
      if (is_vector(tensor) && tensor.dtype != DType::F32)
        tensor = owned_tensor(*owned_, tensor, owned_floats(checkpoint_, tensor));
    add_divisors(config);
    checkpoint_.index_tensors();
  }

 private:
  void reorder(HostTensor& tensor, const Heads& heads) {
    const int64_t rows = tensor.dims[0];
    if (is_vector(tensor)) {
      const std::vector<float> values = owned_floats(checkpoint_, tensor);
      std::vector<float> moved;
      for (int64_t i = 0; i < rows; ++i) moved.push_back(values[static_cast<size_t>(source_row(heads, i))]);
      tensor = owned_tensor(*owned_, tensor, moved);
      return;
    }
    std::vector<const std::byte*> parts;
    for (int64_t i = 0; i < rows; ++i) parts.push_back(tensor.slice(source_row(heads, i)));
    tensor.parts = std::move(parts);
    tensor.data = nullptr;
  }

  /// Llama 3's table, which files hold instead of its parameters.
  void add_divisors(const Config& config) {
    const std::string type = checkpoint_.find_string(key("type")).value_or("");
    if (type == "longrope") checkpoint_.metadata.erase(key("type"));  // its tensors say it
    if (type != "llama3") return;
    HostTensor like;
    like.name = "rope_freqs.weight";
    like.dims = {static_cast<int64_t>(config.ropes[0].divisors.size())};
    checkpoint_.tensors.insert(checkpoint_.tensors.begin(), owned_tensor(*owned_, like, config.ropes[0].divisors));
    for (const char* name : {"type", "factor", "low_freq_factor", "high_freq_factor", "original_context_length"})
      checkpoint_.metadata.erase(key(name));
  }

  std::string key(const char* name) const { return arch_ + ".rope.scaling." + name; }

  Checkpoint& checkpoint_;
  std::shared_ptr<OwnedBytes> owned_;
  std::string arch_;
};

}  // namespace

void convert_tensors(Checkpoint& checkpoint) { TensorConverter(checkpoint).run(); }

}  // namespace infer
