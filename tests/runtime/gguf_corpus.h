// Malformed GGUF files, a few hundred, each one edit away from a small valid model, and valid controls among them. The
// names begin with the row of the threat table that they belong to (a: container, b: tensor entries, c: metadata,
// e: vocabulary). Used by the reader's tests in memory and, written to a folder, by tests of whole programs.
#pragma once

#include <string>
#include <vector>

namespace infer::test {

struct MutatedFile {
  std::string name;  ///< fit for a file name, without extension
  std::string bytes;
  bool must_refuse;    ///< loading the model must end in Error(bad_file); otherwise it must load
  bool needs_config;   ///< the reader accepts it: hyper-parameters, weights or vocabulary are what is wrong
  std::string expect;  ///< when not empty: text that the message must contain
};

std::vector<MutatedFile> mutated_gguf_files();

/// Its parts: what the reader refuses (container, tensor entries), and what only the meaning of keys and tensors shows.
void add_container_mutations(std::vector<MutatedFile>& out);
void add_tensor_mutations(std::vector<MutatedFile>& out);
void add_meaning_mutations(std::vector<MutatedFile>& out);

/// Writes NAME.gguf for each file and a list "list.tsv" of name, must_refuse, needs_config. Returns how many.
size_t write_mutated_gguf_files(const std::string& folder);

}  // namespace infer::test
