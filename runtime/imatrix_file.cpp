#include "runtime/imatrix_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/formats.h"
#include "runtime/gguf.h"
#include "runtime/gguf_writer.h"
#include "runtime/output_file.h"

namespace infer {
namespace {

constexpr std::string_view kSums = ".in_sum2", kCounts = ".counts";
constexpr const char *kDatasets = "imatrix.datasets", *kChunkCount = "imatrix.chunk_count",
                     *kChunkSize = "imatrix.chunk_size";

std::vector<double> numbers_of(const Checkpoint& file, const HostTensor& tensor) {
  if (tensor.dtype != DType::F32)
    file.refuse(tensor.name, "an importance matrix holds floats", find_format(tensor.dtype)->name, "F32");
  std::vector<float> floats(static_cast<size_t>(tensor.n_elements()));
  std::memcpy(floats.data(), tensor.data, tensor.bytes);
  for (const float x : floats)
    if (!(x >= 0) || !std::isfinite(x))
      file.refuse(tensor.name, "not an importance", std::to_string(x), "finite numbers of at least 0");
  return {floats.begin(), floats.end()};
}

/// One tensor of the file to write, with its data.
struct Part {
  HostTensor tensor;
  std::vector<float> data;
};

Part part(const std::string& name, const std::vector<double>& numbers, size_t rows) {
  Part out;
  out.data.assign(numbers.begin(), numbers.end());
  out.tensor.name = name;
  out.tensor.dims = {static_cast<int64_t>(rows), static_cast<int64_t>(numbers.size() / rows)};
  out.tensor.bytes = out.data.size() * sizeof(float);
  return out;
}

}  // namespace

void ImatrixFile::add(const ImatrixFile& other, const std::string& path) {
  for (const auto& [name, from] : other.entries) {
    const auto [found, fresh] = entries.emplace(name, from);
    if (fresh) continue;
    Entry& to = found->second;
    if (to.sums.size() != from.sums.size() || to.counts.size() != from.counts.size())
      throw Error(ErrorKind::bad_file, escaped(path, 4096) + ": " + escaped(name),
                  "the importance matrix is of another model", std::to_string(from.sums.size()) + " numbers",
                  std::to_string(to.sums.size()));
    for (size_t i = 0; i < to.sums.size(); ++i) to.sums[i] += from.sums[i];
    for (size_t i = 0; i < to.counts.size(); ++i) to.counts[i] += from.counts[i];
  }
  for (const std::string& dataset : other.datasets)
    if (std::find(datasets.begin(), datasets.end(), dataset) == datasets.end()) datasets.push_back(dataset);
  n_chunks += other.n_chunks;
  if (chunk_size == 0) chunk_size = other.chunk_size;
}

ImatrixFile read_imatrix(const std::string& path) {
  const Checkpoint file = read_gguf(path);
  ImatrixFile out;
  for (const HostTensor& sums : file.tensors) {
    if (!sums.name.ends_with(kSums)) continue;
    const std::string name = sums.name.substr(0, sums.name.size() - kSums.size());
    const HostTensor* counts = file.find_tensor(name + std::string(kCounts));
    if (!counts) file.refuse(sums.name, "no counts for these sums", {}, name + std::string(kCounts));
    ImatrixFile::Entry entry{numbers_of(file, sums), numbers_of(file, *counts)};
    const size_t columns = static_cast<size_t>(sums.dims.back());
    if (entry.counts.size() * columns != entry.sums.size())
      file.refuse(counts->name, "as many counts as rows of sums are needed", std::to_string(entry.counts.size()),
                  std::to_string(entry.sums.size() / columns));
    out.entries.emplace(name, std::move(entry));
  }
  if (out.entries.empty())
    file.refuse("tensors", "not an importance matrix", std::to_string(file.tensors.size()) + " tensors",
                "tensors called NAME.in_sum2 and NAME.counts");
  if (const auto* datasets = file.find_strings(kDatasets)) out.datasets = *datasets;
  out.n_chunks = file.find_int(kChunkCount, 0, INT32_MAX).value_or(0);
  out.chunk_size = file.find_int(kChunkSize, 0, INT32_MAX).value_or(0);
  return out;
}

void write_imatrix(const ImatrixFile& file, const std::string& path) {
  std::map<std::string, Value, std::less<>> metadata;
  metadata["general.type"] = {std::string("imatrix"), "string"};
  metadata[kDatasets] = {file.datasets, "array of string"};
  metadata[kChunkCount] = {file.n_chunks, "u32"};
  metadata[kChunkSize] = {file.chunk_size, "u32"};
  std::vector<Part> parts;
  std::vector<HostTensor> tensors;
  for (const auto& [name, entry] : file.entries) {
    parts.push_back(part(name + std::string(kSums), entry.sums, entry.counts.size()));
    parts.push_back(part(name + std::string(kCounts), entry.counts, entry.counts.size()));
  }
  for (const Part& p : parts) tensors.push_back(p.tensor);
  constexpr size_t kAlignment = 32;
  const std::string head = gguf_head(metadata, tensors, kAlignment);
  OutputFile out(path, head.size());
  out.write(head.data(), head.size());
  for (const Part& p : parts) {
    out.write(p.data.data(), p.tensor.bytes);
    constexpr char kZeros[kAlignment] = {};
    out.write(kZeros, (kAlignment - out.position() % kAlignment) % kAlignment);
  }
  out.commit();
}

}  // namespace infer
