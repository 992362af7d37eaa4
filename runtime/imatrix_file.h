// An importance matrix as its file has it: for every weight the sums of squares of the columns of its inputs, and of
// how many inputs they are. The GGUF form of llama.cpp: tensors NAME.in_sum2 [experts, columns] and NAME.counts
// [experts, 1], keys imatrix.datasets, imatrix.chunk_count and imatrix.chunk_size. It knows nothing of models.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace infer {

struct ImatrixFile {
  struct Entry {
    std::vector<double> sums;    ///< [experts, columns]
    std::vector<double> counts;  ///< [experts]
    bool operator==(const Entry&) const = default;
  };
  std::map<std::string, Entry, std::less<>> entries;  ///< by name of the weight
  std::vector<std::string> datasets;
  int64_t n_chunks = 0, chunk_size = 0;

  /// Adds another file's sums, counts and chunks; `path` is where they are from. Error(bad_file) for a weight that both
  /// know with another size.
  void add(const ImatrixFile& other, const std::string& path);
};

/// Error(bad_file) for a file that is none, or that holds numbers that are not finite or negative.
ImatrixFile read_imatrix(const std::string& path);

/// Sums and counts become f32. The file gets its name when it is complete. Error(run) with the system's words.
void write_imatrix(const ImatrixFile& file, const std::string& path);

}  // namespace infer
