// The file: tensors NAME.in_sum2 [experts, columns] with sums of squares and NAME.counts [experts, 1] with how many
// inputs each sum is of, for the weights called NAME.
#include "runtime/imatrix.h"

#include <cmath>
#include <cstring>

#include "quant/formats.h"
#include "runtime/gguf.h"

namespace infer {
namespace {

constexpr std::string_view kSums = ".in_sum2", kCounts = ".counts";

std::vector<float> floats_of(const Checkpoint& file, const HostTensor& tensor) {
  if (tensor.dtype != DType::F32)
    file.refuse(tensor.name, "an importance matrix holds floats", find_format(tensor.dtype)->name, "F32");
  std::vector<float> out(static_cast<size_t>(tensor.n_elements()));
  std::memcpy(out.data(), tensor.data, tensor.bytes);
  for (const float x : out)
    if (!(x >= 0) || !std::isfinite(x))
      file.refuse(tensor.name, "not an importance", std::to_string(x), "finite numbers of at least 0");
  return out;
}

}  // namespace

ImportanceMatrix::ImportanceMatrix(const std::string& path) : path_(path) {
  const Checkpoint file = read_gguf(path);
  for (const HostTensor& sums : file.tensors) {
    if (!sums.name.ends_with(kSums)) continue;
    const std::string name = sums.name.substr(0, sums.name.size() - kSums.size());
    const HostTensor* counts = file.find_tensor(name + std::string(kCounts));
    if (!counts) file.refuse(sums.name, "no counts for these sums", {}, name + std::string(kCounts));
    std::vector<float> values = floats_of(file, sums);
    const std::vector<float> of = floats_of(file, *counts);
    const size_t columns = static_cast<size_t>(sums.dims.back());
    if (of.size() * columns != values.size())
      file.refuse(counts->name, "as many counts as rows of sums are needed", std::to_string(of.size()),
                  std::to_string(values.size() / columns));
    // An expert that no input reached: all its weights count alike.
    for (size_t i = 0; i < values.size(); ++i) values[i] = of[i / columns] > 0 ? values[i] / of[i / columns] : 1.0f;
    entries_.emplace(name, std::move(values));
  }
  if (entries_.empty())
    file.refuse("tensors", "not an importance matrix", std::to_string(file.tensors.size()) + " tensors",
                "tensors called NAME.in_sum2 and NAME.counts");
  if (const auto* datasets = file.find_strings("imatrix.datasets"); datasets && !datasets->empty())
    dataset_ = datasets->front();
  n_chunks_ = file.find_int("imatrix.chunk_count", 0, INT64_MAX).value_or(0);
}

const std::vector<float>* ImportanceMatrix::find(const HostTensor& tensor) const {
  const auto found = entries_.find(tensor.name);
  if (found == entries_.end()) return nullptr;
  const int64_t experts = tensor.dims.size() > 2 ? tensor.dims[tensor.dims.size() - 3] : 1;
  const int64_t wanted = experts * tensor.dims.back();
  if (static_cast<int64_t>(found->second.size()) != wanted)
    throw Error(ErrorKind::bad_file, escaped(path_, 4096) + ": " + escaped(tensor.name),
                "the importance matrix is of another model", std::to_string(found->second.size()) + " numbers",
                std::to_string(wanted));
  return &found->second;
}

}  // namespace infer
