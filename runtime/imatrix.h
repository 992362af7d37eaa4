// An importance matrix: for every matmul of a model the mean square of each column of its inputs, measured on some
// text. Read from GGUF files as llama.cpp writes them; says nothing about how they were measured.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "models/checkpoint.h"

namespace infer {

class ImportanceMatrix {
 public:
  /// Error(bad_file) for a file that is none, or that holds numbers that are not finite or negative.
  explicit ImportanceMatrix(const std::string& path);

  /// One number for each column and expert of the tensor, expert after expert; null when the file does not know the
  /// tensor. Error(bad_file) when it has another size: the matrix is of another model.
  const std::vector<float>* find(const HostTensor& tensor) const;
  const std::string& path() const { return path_; }
  size_t size() const { return entries_.size(); }
  const std::string& dataset() const { return dataset_; }  ///< the first, or ""
  int64_t n_chunks() const { return n_chunks_; }

 private:
  std::string path_, dataset_;
  int64_t n_chunks_ = 0;
  std::map<std::string, std::vector<float>, std::less<>> entries_;
};

}  // namespace infer
