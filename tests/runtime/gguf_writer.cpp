// Lays out a GGUF file: header, pairs, tensor entries, padding, data.
#include "tests/runtime/gguf_writer.h"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

namespace infer::test {
namespace {

void pad(std::string& bytes, uint64_t alignment) {
  bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
}

}  // namespace

std::string gguf_string(const std::string& text) { return le<uint64_t>(text.size()) + text; }

void GgufWriter::raw(const std::string& key, uint32_t type, const std::string& bytes) {
  for (Pair& pair : pairs) {
    if (pair.key != key) continue;
    pair = {key, type, bytes};
    return;
  }
  pairs.push_back({key, type, bytes});
}

void GgufWriter::texts(const std::string& key, const std::vector<std::string>& values) {
  std::string bytes = le<uint32_t>(string) + le<uint64_t>(values.size());
  for (const std::string& v : values) bytes += gguf_string(v);
  raw(key, array, bytes);
}

void GgufWriter::remove(const std::string& key) {
  std::erase_if(pairs, [&](const Pair& pair) { return pair.key == key; });
}

void GgufWriter::tensor(const std::string& name, DType type, std::vector<int64_t> dims, std::string data) {
  tensors.push_back({name, static_cast<uint32_t>(type), std::move(dims), std::move(data)});
}

TensorSpec& GgufWriter::find_tensor(const std::string& name) {
  for (TensorSpec& t : tensors)
    if (t.name == name) return t;
  throw std::logic_error("no tensor " + name);
}

void GgufWriter::remove_tensor(const std::string& name) {
  std::erase_if(tensors, [&](const TensorSpec& t) { return t.name == name; });
}

std::string GgufWriter::lay_out(std::map<std::string, size_t>* marks) const {
  std::string out;
  const auto mark = [&](const auto&... name) {
    if (marks) (*marks)[(std::string() + ... + name)] = out.size();
  };
  out = "GGUF";
  mark("version");
  out += le(version);
  mark("n_tensors");
  out += le<uint64_t>(tensors.size());
  mark("n_keys");
  out += le<uint64_t>(pairs.size());
  for (const Pair& pair : pairs) {
    mark("key ", pair.key, " length");
    out += le<uint64_t>(pair.key.size());
    mark("key ", pair.key, " name");
    out += pair.key;
    mark("key ", pair.key, " type");
    out += le(pair.type);
    mark("key ", pair.key, " value");
    out += pair.bytes;
  }
  uint64_t offset = 0;
  for (const TensorSpec& t : tensors) {
    mark("tensor ", t.name, " length");
    out += le<uint64_t>(t.name.size());
    mark("tensor ", t.name, " name");
    out += t.name;
    mark("tensor ", t.name, " n_dims");
    out += le(static_cast<uint32_t>(t.dims.size()));
    for (size_t i = 0; i < t.dims.size(); ++i) {
      mark("tensor ", t.name, " dim ", std::to_string(i));
      out += le(t.dims[t.dims.size() - 1 - i]);
    }
    mark("tensor ", t.name, " type");
    out += le(t.type);
    mark("tensor ", t.name, " offset");
    out += le(offset);
    offset = (offset + t.data.size() + alignment - 1) / alignment * alignment;
  }
  mark("infos end");
  if (!tensors.empty()) pad(out, alignment);
  mark("data");
  for (const TensorSpec& t : tensors) {
    mark("tensor ", t.name, " data");
    out += t.data;
    mark("tensor ", t.name, " end");
    pad(out, alignment);
  }
  return out;
}

std::string GgufWriter::bytes() const { return lay_out(nullptr); }

GgufImage GgufWriter::image() const {
  GgufImage image;
  image.bytes = lay_out(&image.marks);
  return image;
}

void GgufWriter::write(const std::string& path) const { write_bytes(path, bytes()); }

void write_bytes(const std::string& path, const std::string& bytes) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (!file) throw std::runtime_error("cannot write " + path);
  const size_t n = std::fwrite(bytes.data(), 1, bytes.size(), file);
  if (std::fclose(file) != 0 || n != bytes.size()) throw std::runtime_error("cannot write " + path);
}

}  // namespace infer::test
