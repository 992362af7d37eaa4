// What a model file said: metadata and named tensors, in no particular file format. Readers in runtime/ (gguf.cpp,
// hf_folder.cpp) fill it and have checked every size against the file before they do; nothing here opens, maps or
// trusts a length again. Typed getters are the only way to metadata, so that a wrong type or range is reported once, in
// one form.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "infer/error.h"
#include "kernels/column_codes.h"
#include "kernels/make_rows.h"
#include "quant/dtype.h"

namespace infer {

/// A tensor in host memory (usually mapped from the file). `dims` are row-major, outermost first: [rows, columns].
struct HostTensor {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> dims;
  const std::byte* data = nullptr;
  size_t bytes = 0;
  /// Where each index of the first dimension lies, when they lie apart (experts of a safetensors file): then `data` is
  /// null. All have the same size.
  std::vector<const std::byte*> parts = {};
  /// How the numbers come to be where they lie nowhere yet, since the file has them in another form: then `data` is
  /// null and `parts` empty. What is read for that are pages of `made_of`.
  MakeRows make = {};
  /// The same rows as the file has them, where those of a matrix lie by columns; may be null.
  std::shared_ptr<const ColumnCodes> columns = {};
  std::vector<std::span<const std::byte>> made_of = {};
  bool owned = false;  ///< a copy in memory, although the checkpoint is mapped
  bool fine = false;   ///< made for activations of 16 bits, see WeightRole::fine_matrix
  int64_t n_elements() const;
  /// Index i of the first dimension (an expert of a stack, a row of a matrix), contiguous.
  const std::byte* slice(int64_t i) const;
  /// Writes rows as MakeRows does, wherever they come from.
  void copy_rows(int64_t first, int64_t n, std::byte* to) const;
};

/// One metadata value. Integers of any width become int64_t when they fit, else uint64_t.
struct Value {
  using Data = std::variant<bool, int64_t, uint64_t, double, std::string, std::vector<bool>, std::vector<int64_t>,
                            std::vector<uint64_t>, std::vector<double>, std::vector<std::string>>;
  Data data;
  std::string type;  ///< as the file names it, for messages: "u32", "string", "array of f32"
  /// One-line rendering, strings escaped, arrays cut after `max_items`.
  std::string text(size_t max_items = 8) const;
};

/// Metadata and tensors of one model. Movable; the tensors point into `storage`.
class Checkpoint {
 public:
  std::string path;       ///< for messages
  std::string format;     ///< "GGUF v3"
  size_t file_bytes = 0;  ///< all parts together
  std::map<std::string, Value, std::less<>> metadata;
  std::vector<HostTensor> tensors;      ///< in file order
  std::shared_ptr<const void> storage;  ///< keeps the bytes behind `tensors` alive
  ReadBytes read;                       ///< of bytes in `storage`
  bool mapped = false;                  ///< tensors are pages of the file, not copies
  std::vector<std::string> warnings;    ///< one line each, already escaped: "12 bytes after the last tensor"

  bool has(std::string_view key) const { return metadata.find(key) != metadata.end(); }
  const HostTensor* find_tensor(std::string_view name) const;  ///< nullptr when absent
  /// Call once after filling `tensors`: builds the name index. Throws bad_file for a duplicate name.
  void index_tensors();

  /// Required and optional getters. A value of another type or outside [min, max] is an Error (bad_file) that names
  /// path, key, found and allowed. Integer getters take any integer type; float getters take f32, f64 and reject
  /// non-finite.
  int64_t get_int(std::string_view key, int64_t min, int64_t max) const;
  std::optional<int64_t> find_int(std::string_view key, int64_t min, int64_t max) const;
  double get_float(std::string_view key, double min, double max) const;
  std::optional<double> find_float(std::string_view key, double min, double max) const;
  std::string get_string(std::string_view key) const;
  std::optional<std::string> find_string(std::string_view key) const;
  std::optional<bool> find_bool(std::string_view key) const;

  /// Arrays by reference; nullptr when absent, Error when of another element type or not `count` long (count < 0: any).
  const std::vector<std::string>* find_strings(std::string_view key, int64_t count = -1) const;
  /// Any integer (or bool) element type, as int64_t.
  std::optional<std::vector<int64_t>> find_ints(std::string_view key, int64_t count, int64_t min, int64_t max) const;
  std::optional<std::vector<double>> find_floats(std::string_view key, int64_t count) const;

  /// For errors about this file: Error(bad_file, "path: key", message, found, allowed).
  [[noreturn]] void refuse(std::string_view what, const std::string& message, const std::string& found = {},
                           const std::string& allowed = {}) const;

 private:
  std::map<std::string, size_t, std::less<>> tensor_index_;
};

}  // namespace infer
