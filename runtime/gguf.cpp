// The GGUF reader's outer half: the header, the parts of a split file, overrides, and the Checkpoint made of them.
#include "runtime/gguf.h"

#include <cstdio>
#include <filesystem>

#include "runtime/gguf_parts.h"
#include "runtime/mapped_file.h"
#include "runtime/overrides.h"

namespace infer {
namespace {

struct Part {
  std::shared_ptr<const MappedFile> file;
  uint32_t version = 0;
  Metadata metadata;
  std::vector<HostTensor> tensors;
  std::vector<std::string> warnings;
};

// Keys say u16; names have room for 99999.
constexpr int64_t kMaxParts = 65535;

uint32_t read_version(GgufCursor& cursor) {
  if (cursor.left() < 4 || std::memcmp(cursor.rest().data(), "GGUF", 4) != 0)
    cursor.refuse("not a GGUF file", guess_contents(cursor.rest()), "a file that begins with \"GGUF\"");
  cursor.take(4, "magic");
  const auto version = cursor.number<uint32_t>("version");
  if ((version & 0xFFFF) == 0 && version != 0)
    cursor.refuse("a big-endian GGUF file", "version bytes in reverse order", "little-endian files");
  if (version != 2 && version != 3)
    cursor.refuse("GGUF version not supported", "version " + std::to_string(version), "versions 2 and 3");
  return version;
}

Part read_part(const std::string& path, bool map) {
  Part part;
  part.file = std::make_shared<const MappedFile>(path, map);
  GgufCursor cursor(shown_path(path), part.file->bytes());
  part.version = read_version(cursor);
  const auto n_tensors = cursor.number<uint64_t>("number of tensors");
  const auto n_keys = cursor.number<uint64_t>("number of keys");
  part.metadata = read_gguf_metadata(cursor, n_keys);
  const uint64_t alignment = gguf_alignment(cursor, part.metadata);
  part.tensors = read_gguf_tensors(cursor, n_tensors, alignment, part.file->bytes(), part.warnings);
  return part;
}

Checkpoint begin_checkpoint(const std::string& path, Part& first) {
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.format = "GGUF v" + std::to_string(first.version);
  checkpoint.mapped = first.file->mapped();
  checkpoint.metadata = std::move(first.metadata);
  return checkpoint;
}

void add_part(Checkpoint& checkpoint, Part& part) {
  checkpoint.file_bytes += part.file->size();
  for (HostTensor& tensor : part.tensors) checkpoint.tensors.push_back(std::move(tensor));
  for (std::string& warning : part.warnings) checkpoint.warnings.push_back(std::move(warning));
}

std::string split_suffix(int64_t number, int64_t count) {
  char suffix[48];
  std::snprintf(suffix, sizeof suffix, "-%05d-of-%05d.gguf", static_cast<int>(number), static_cast<int>(count));
  return suffix;
}

// A sibling repeats keys of the first part at most; anything else would have to be ignored or believed.
void check_sibling(const Checkpoint& first, const Checkpoint& sibling, int64_t number, int64_t count) {
  sibling.get_int("split.no", number, number);
  sibling.get_int("split.count", count, count);
  for (const auto& [key, value] : sibling.metadata) {
    if (key == "split.no" || key == "general.alignment") continue;
    const auto it = first.metadata.find(key);
    if (it == first.metadata.end() || it->second.data != value.data)
      sibling.refuse(key, "differs from the first part of the split model", value.text(),
                     it == first.metadata.end() ? "no such key" : it->second.text());
  }
}

// The number of parts that the first part announces; 0 or 1 for a model in one file.
int64_t count_parts(const Checkpoint& first) {
  const int64_t number = first.find_int("split.no", 0, kMaxParts).value_or(0);
  if (number != 0)
    first.refuse("split.no", "not the first part of a split model", std::to_string(number),
                 "0: open the first part, its siblings are found by their names");
  return first.find_int("split.count", 0, kMaxParts).value_or(0);
}

// Adds the tensors of the other parts of a split model, which lie beside the first and differ in name by their number.
void read_siblings(Checkpoint& checkpoint, int64_t count, MappedFiles& files, bool map) {
  const std::string suffix = split_suffix(1, count);
  if (!checkpoint.path.ends_with(suffix))
    checkpoint.refuse("split.count", "the name of the file is not that of a first part",
                      std::to_string(count) + " parts", "a name that ends in " + suffix);
  const std::string prefix = checkpoint.path.substr(0, checkpoint.path.size() - suffix.size());
  for (int64_t i = 1; i < count; ++i) {
    const std::string path = prefix + split_suffix(i + 1, count);
    Part part = read_part(path, map);
    check_sibling(checkpoint, begin_checkpoint(path, part), i, count);
    add_part(checkpoint, part);
    files.push_back(std::move(part.file));
  }
  const auto n_tensors = static_cast<int64_t>(checkpoint.tensors.size());
  checkpoint.find_int("split.tensors.count", n_tensors, n_tensors);
}

}  // namespace

Checkpoint read_gguf(const std::string& path, const GgufOptions& options) {
  // For metadata alone nothing of the file outlives this call, and mapping spares reading the weights.
  Part first = read_part(path, options.mmap || options.metadata_only);
  Checkpoint checkpoint = begin_checkpoint(path, first);
  add_part(checkpoint, first);
  auto files = std::make_shared<MappedFiles>();
  files->push_back(std::move(first.file));
  const int64_t n_parts = count_parts(checkpoint);
  if (n_parts > 1 && !options.metadata_only) read_siblings(checkpoint, n_parts, *files, options.mmap);
  checkpoint.index_tensors();
  if (options.metadata_only) {
    checkpoint.tensors.clear();
    checkpoint.index_tensors();
  } else {
    checkpoint.read = reader_of(files);
    checkpoint.storage = std::move(files);
  }
  apply_overrides(checkpoint, options.overrides);
  return checkpoint;
}

bool looks_like_gguf(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return false;  // opening a pipe would wait for a writer
  std::FILE* file = std::fopen(path.c_str(), "rbe");
  if (!file) return false;
  char magic[4] = {};
  const bool is_gguf = std::fread(magic, 1, sizeof magic, file) == sizeof magic && std::memcmp(magic, "GGUF", 4) == 0;
  std::fclose(file);
  return is_gguf;
}

}  // namespace infer
