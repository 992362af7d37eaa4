// A safetensors file is a length, a JSON header and bytes. Everything the header says is compared with what is there.
#include "runtime/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <span>

#include "infer/error.h"
#include "kernels/checked.h"
#include "quant/formats.h"
#include "runtime/json_file.h"
#include "runtime/mapped_file.h"

namespace infer {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian and numbers are copied as they lie");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxNameBytes = 255, kMaxDims = 5;
constexpr int64_t kMaxDim = INT32_MAX;  // rows and columns are counted in int32 on devices
constexpr size_t kMaxShards = 4096;
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleName = "model.safetensors";

struct TypeName {
  const char* name;
  DType dtype;
};
constexpr TypeName kTypes[] = {
    {"F32", DType::F32},         {"F16", DType::F16},         {"BF16", DType::BF16},
    {"F8_E4M3", DType::F8_E4M3}, {"I8", DType::I8},           {"U8", DType::U8},
    {"I32", DType::I32},         {"F8_E5M2", DType::F8_E5M2}, {"I64", DType::I64},
};

struct Entry {
  HostTensor tensor;
  uint64_t begin = 0, end = 0;  // in the data
};

struct File {
  std::shared_ptr<const MappedFile> bytes;
  std::vector<HostTensor> tensors;
};

std::string bytes_text(uint64_t n) { return std::to_string(n) + (n == 1 ? " byte" : " bytes"); }

bool is_printable(std::string_view name) {
  return std::all_of(name.begin(), name.end(), [](char c) { return c > 32 && c < 127; });
}

/// One header, read tensor by tensor.
class HeaderReader {
 public:
  HeaderReader(const std::string& path, std::span<const std::byte> file) : path_(shown_path(path)), file_(file) {}

  std::vector<HostTensor> read() {
    const std::string_view header = header_text();
    data_ = file_.subspan(8 + header.size());
    const Json json = parse_json(header, path_ + ": header");
    const JsonObject root(json, path_ + ": header");
    std::vector<Entry> entries;
    for (const auto& [name, value] : json.items()) {
      if (name == "__metadata__") {
        check_metadata(value);
        continue;
      }
      if (name.empty() || name.size() > kMaxNameBytes || !is_printable(name))
        refuse("tensor " + escaped(name), "unusable name", bytes_text(name.size()),
               "1 to " + std::to_string(kMaxNameBytes) + " printable ASCII characters");
      entries.push_back(read_entry(name, value));
    }
    return placed(std::move(entries));
  }

 private:
  [[noreturn]] void refuse(const std::string& what, const std::string& message, const std::string& found = {},
                           const std::string& allowed = {}) const {
    throw Error(ErrorKind::bad_file, what.empty() ? path_ : path_ + ": " + what, message, found, allowed);
  }

  std::string_view header_text() const {
    uint64_t length = 0;
    if (file_.size() < sizeof length)
      refuse("", "too short for a safetensors file", bytes_text(file_.size()), "8 bytes and a header");
    std::memcpy(&length, file_.data(), sizeof length);
    const uint64_t left = file_.size() - sizeof length;
    if (length > kMaxHeaderBytes || length < 2 || length > left || file_[8] != std::byte{'{'})
      refuse("", "not a safetensors file",
             length > left || length > kMaxHeaderBytes ? "a header of " + bytes_text(length) : guess_contents(file_),
             "a header of 2 to " + std::to_string(std::min(left, kMaxHeaderBytes)) + " bytes that begins with {");
    return {reinterpret_cast<const char*>(file_.data()) + sizeof length, static_cast<size_t>(length)};
  }

  void check_metadata(const Json& value) const {
    const JsonObject metadata(value, path_ + ": __metadata__");
    for (const auto& [key, text] : value.items())
      if (!text.is_string()) metadata.refuse(escaped(key), "wrong type", json_text(text), "a string");
  }

  Entry read_entry(const std::string& name, const Json& value) const {
    const std::string where = "tensor " + name;
    const JsonObject fields(value, path_ + ": " + where);
    for (const auto& [key, unused] : value.items())
      if (key != "dtype" && key != "shape" && key != "data_offsets")
        refuse(where, "unknown field", '"' + escaped(key) + '"', "dtype, shape, data_offsets");
    Entry entry;
    entry.tensor.name = name;
    entry.tensor.dtype = read_type(fields);
    read_shape(fields, entry.tensor);
    read_offsets(fields, entry);
    return entry;
  }

  DType read_type(const JsonObject& fields) const {
    const std::string name = fields.get_string("dtype");
    std::string known;
    for (const TypeName& type : kTypes) {
      if (name == type.name) return type.dtype;
      known += (known.empty() ? "" : ", ") + std::string(type.name);
    }
    fields.refuse("dtype", "unsupported type", '"' + escaped(name) + '"', known);
  }

  void read_shape(const JsonObject& fields, HostTensor& tensor) const {
    const Json::array_t* shape = fields.find_array("shape");
    if (!shape) fields.refuse("shape", "required key is missing");
    if (shape->size() > kMaxDims)
      fields.refuse("shape", "too many dimensions", std::to_string(shape->size()), "0 to " + std::to_string(kMaxDims));
    for (const Json& dim : *shape) {
      if (!dim.is_number_unsigned() || dim.get<uint64_t>() < 1 || dim.get<uint64_t>() > uint64_t{kMaxDim})
        fields.refuse("shape", "unusable dimension", json_text(dim), "an integer in 1..2147483647");
      tensor.dims.push_back(dim.get<int64_t>());
    }
    if (tensor.dims.empty()) tensor.dims = {1};  // one number
    const auto rows = checked_product({tensor.dims.data(), tensor.dims.size() - 1});
    const int64_t bytes = rows ? tensor_bytes(tensor.dtype, *rows, tensor.dims.back()) : -1;
    if (bytes < 0) fields.refuse("shape", "the size of the tensor overflows");
    tensor.bytes = static_cast<size_t>(bytes);
  }

  void read_offsets(const JsonObject& fields, Entry& entry) const {
    const Json::array_t* offsets = fields.find_array("data_offsets");
    if (!offsets || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned())
      fields.refuse("data_offsets", "unusable", offsets ? "an array" : "nothing", "two offsets: begin and end");
    entry.begin = (*offsets)[0].get<uint64_t>();
    entry.end = (*offsets)[1].get<uint64_t>();
    const std::string found = std::to_string(entry.begin) + ".." + std::to_string(entry.end);
    if (entry.begin > entry.end || entry.end > data_.size())
      fields.refuse("data_offsets", "outside the data", found, "within 0.." + std::to_string(data_.size()));
    if (entry.end - entry.begin != entry.tensor.bytes)
      fields.refuse("data_offsets", "do not match type and shape", found, bytes_text(entry.tensor.bytes));
  }

  // The tensors in the order of their data, which must follow each other from the first byte to the last.
  std::vector<HostTensor> placed(std::vector<Entry> entries) const {
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.begin < b.begin; });
    uint64_t next = 0;
    std::vector<HostTensor> tensors;
    tensors.reserve(entries.size());
    for (Entry& entry : entries) {
      if (entry.begin != next)
        refuse(
            "tensor " + entry.tensor.name,
            entry.begin < next ? "the data overlap those of tensor " + tensors.back().name : "a hole before the data",
            "offset " + std::to_string(entry.begin), "offset " + std::to_string(next));
      next = entry.end;
      entry.tensor.data = data_.data() + entry.begin;
      tensors.push_back(std::move(entry.tensor));
    }
    if (next != data_.size()) refuse("", "bytes after the last tensor", bytes_text(data_.size() - next), "none");
    return tensors;
  }

  std::string path_;
  std::span<const std::byte> file_, data_;
};

File read_file(const std::string& path, bool map) {
  File file;
  file.bytes = std::make_shared<const MappedFile>(path, map);
  file.tensors = HeaderReader(path, file.bytes->bytes()).read();
  return file;
}

/// Tensor name to file name, as the index says; files are names in the same folder and nothing else.
std::map<std::string, std::string> read_index(const std::string& path) {
  const Json json = parse_json(read_small_file(path, kMaxTokenizerBytes), shown_path(path));
  const JsonObject root(json, shown_path(path));
  const auto map = root.find_object("weight_map");
  if (!map) root.refuse("weight_map", "required key is missing");
  std::map<std::string, std::string> out;
  for (const auto& [tensor, file] : map->json().items()) {
    const std::string* name = file.get_ptr<const Json::string_t*>();
    if (!name) map->refuse(escaped(tensor), "wrong type", json_text(file), "a file name");
    if (!is_printable(*name) || !name->ends_with(".safetensors") || name->find_first_of("/\\") != std::string::npos ||
        name->starts_with("."))
      map->refuse(escaped(tensor), "not the name of a file in this folder", '"' + escaped(*name) + '"',
                  "a plain name that ends in .safetensors");
    out.emplace(tensor, *name);
  }
  if (out.empty()) root.refuse("weight_map", "names no tensor");
  return out;
}

// Index and shards must say the same: a tensor in a shard that the index does not send there would have to be ignored
// or believed.
void check_shard(const std::string& folder, const std::string& name, const File& file,
                 const std::map<std::string, std::string>& index) {
  size_t expected = 0;
  for (const auto& [tensor, shard] : index) expected += shard == name;
  for (const HostTensor& tensor : file.tensors) {
    const auto found = index.find(tensor.name);
    if (found == index.end() || found->second != name)
      throw Error(ErrorKind::bad_file, shown_path(folder + "/" + name) + ": tensor " + tensor.name,
                  "the index does not place this tensor here",
                  found == index.end() ? "no such tensor in the index" : '"' + escaped(found->second) + '"');
  }
  if (file.tensors.size() == expected) return;
  for (const auto& [tensor, shard] : index) {
    const auto is_it = [&](const HostTensor& t) { return t.name == tensor; };
    if (shard == name && std::none_of(file.tensors.begin(), file.tensors.end(), is_it))
      throw Error(ErrorKind::bad_file, shown_path(folder + "/" + name), "a tensor of the index is missing",
                  '"' + escaped(tensor) + '"');
  }
}

}  // namespace

bool has_safetensors(const std::string& folder) {
  return is_file(folder + "/" + kIndexName) || is_file(folder + "/" + kSingleName);
}

Checkpoint read_safetensors(const std::string& folder, const SafetensorsOptions& options) {
  std::map<std::string, std::string> index;
  std::vector<std::string> names;
  if (is_file(folder + "/" + kIndexName)) {
    index = read_index(folder + "/" + kIndexName);
    for (const auto& [tensor, file] : index) names.push_back(file);
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    if (names.size() > kMaxShards)
      throw Error(ErrorKind::bad_file, shown_path(folder + "/" + kIndexName), "too many files",
                  std::to_string(names.size()), "at most " + std::to_string(kMaxShards));
  } else {
    names.emplace_back(kSingleName);
  }
  Checkpoint checkpoint;
  checkpoint.path = folder;
  auto files = std::make_shared<MappedFiles>();
  for (const std::string& name : names) {
    File file = read_file(folder + "/" + name, options.mmap);
    if (!index.empty()) check_shard(folder, name, file, index);
    checkpoint.file_bytes += file.bytes->size();
    checkpoint.mapped = checkpoint.mapped || file.bytes->mapped();
    for (HostTensor& tensor : file.tensors) checkpoint.tensors.push_back(std::move(tensor));
    files->push_back(std::move(file.bytes));
  }
  checkpoint.index_tensors();
  checkpoint.read = reader_of(files);
  checkpoint.storage = std::move(files);
  return checkpoint;
}

}  // namespace infer
