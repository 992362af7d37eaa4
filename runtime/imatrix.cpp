#include "runtime/imatrix.h"

#include <algorithm>

#include "runtime/imatrix_file.h"

namespace infer {

ImportanceMatrix::ImportanceMatrix(const std::string& path) : path_(path) {
  const ImatrixFile file = read_imatrix(path);
  for (const auto& [name, entry] : file.entries) {
    const size_t columns = entry.sums.size() / std::max<size_t>(1, entry.counts.size());
    std::vector<float> means;
    // An expert that no input reached: all its weights count alike.
    for (size_t i = 0; i < entry.sums.size(); ++i) {
      const double count = entry.counts[i / columns];
      means.push_back(count > 0 ? static_cast<float>(entry.sums[i] / count) : 1.0f);
    }
    entries_.emplace(name, std::move(means));
  }
  if (!file.datasets.empty()) dataset_ = file.datasets.front();
  n_chunks_ = file.n_chunks;
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
