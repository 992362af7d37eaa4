// GGUF's tensor entries: names, dimensions, types, and where each tensor's data lie. The dims are flipped to row-major
// here and nowhere else. The data of all tensors must tile the file: aligned, disjoint, with no holes but padding.
#include <algorithm>
#include <iterator>
#include <numeric>

#include "kernels/checked.h"
#include "quant/formats.h"
#include "runtime/gguf_parts.h"

namespace infer {
namespace {

// Numbers that GGUF gave out but that no file may use: types of kernels' scratch memory, and layouts withdrawn since.
constexpr DType kNeverStored[] = {DType::Q8_1,       DType::Q8_K,      DType::Q4_2,     DType::Q4_3,
                                  DType::Q4_0_4_4,   DType::Q4_0_4_8,  DType::Q4_0_8_8, DType::IQ4_NL_4_4,
                                  DType::IQ4_NL_4_8, DType::IQ4_NL_8_8};

constexpr uint64_t kMinEntryBytes = 8 + 1 + 4 + 8 + 4 + 8;  // name, dimension count, one dimension, type, offset
constexpr uint64_t kMaxDim = (uint64_t{1} << 31) - 1;       // rows and columns are counted in int32 on devices

std::string dims_text(const std::vector<int64_t>& dims) {
  std::string out;
  for (const int64_t d : dims) out += (out.empty() ? "[" : ", ") + std::to_string(d);
  return out + "]";
}

struct Entry {
  HostTensor tensor;
  uint64_t offset = 0;  // from the beginning of the data
};

void read_dims(GgufCursor& cursor, HostTensor& tensor) {
  const auto n_dims = cursor.number<uint32_t>("number of dimensions");
  if (n_dims < 1 || n_dims > 4) cursor.refuse("invalid number of dimensions", std::to_string(n_dims), "1 to 4");
  tensor.dims.resize(n_dims);
  for (uint32_t i = 0; i < n_dims; ++i) {
    const auto dim = cursor.number<uint64_t>("dimension");
    if (dim < 1 || dim > kMaxDim)
      cursor.refuse("dimension " + std::to_string(i) + " out of range", std::to_string(dim), "1..2147483647");
    tensor.dims[n_dims - 1 - i] = static_cast<int64_t>(dim);  // the file lists the fastest dimension first
  }
}

void read_type(GgufCursor& cursor, HostTensor& tensor) {
  const auto number = cursor.number<uint32_t>("tensor type");
  tensor.dtype = static_cast<DType>(number);
  const FormatInfo* type = tensor.dtype < DType::kPrivate ? find_format(tensor.dtype) : nullptr;
  if (!type) cursor.refuse("unknown tensor type", std::to_string(number), "a type number of GGUF, such as 0 (F32)");
  if (std::find(std::begin(kNeverStored), std::end(kNeverStored), type->id) != std::end(kNeverStored))
    cursor.refuse("tensor type not allowed in files", type->name, "a type for weights, such as Q8_0");
  if (tensor.dims.back() % type->block != 0)
    cursor.refuse("the row length is not a multiple of the block of " + std::string(type->name),
                  std::to_string(tensor.dims.back()), "multiples of " + std::to_string(type->block));
  const auto rows = checked_product({tensor.dims.data(), tensor.dims.size() - 1});
  const int64_t bytes = rows ? tensor_bytes(tensor.dtype, *rows, tensor.dims.back()) : -1;
  if (bytes < 0) cursor.refuse("the size of the tensor overflows", dims_text(tensor.dims) + " of " + type->name);
  tensor.bytes = static_cast<size_t>(bytes);
}

Entry read_entry(GgufCursor& cursor, uint64_t i, uint64_t count) {
  Entry entry;
  cursor.set_subject("tensor number " + std::to_string(i + 1) + " of " + std::to_string(count));
  const std::string_view name = cursor.string("tensor name", kMaxTensorNameBytes);
  if (name.empty()) cursor.refuse("the tensor name is empty", {}, "1 to 63 bytes");
  cursor.set_subject("tensor " + std::string(name));
  if (!is_plain_name(name)) cursor.refuse("the tensor name holds bytes that are not printable ASCII");
  entry.tensor.name = name;
  read_dims(cursor, entry.tensor);
  read_type(cursor, entry.tensor);
  entry.offset = cursor.number<uint64_t>("tensor offset");
  return entry;
}

// Entries whose data overlap, leave holes or run past the end are refused; returns the end of the last tensor's data.
uint64_t check_layout(GgufCursor& cursor, const std::vector<Entry>& entries, uint64_t alignment, uint64_t data_bytes) {
  std::vector<size_t> order(entries.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return entries[a].offset < entries[b].offset; });
  uint64_t end = 0, next = 0;  // of the previous tensor's data; the same, padded
  const Entry* previous = nullptr;
  for (const size_t i : order) {
    const auto& [tensor, offset] = entries[i];
    cursor.set_subject("tensor " + tensor.name);
    if (offset % alignment != 0)
      cursor.refuse("misaligned offset", std::to_string(offset), "multiples of " + std::to_string(alignment));
    if (offset > data_bytes || tensor.bytes > data_bytes - offset)
      cursor.refuse("the data of the tensor run past the end of the file",
                    std::to_string(tensor.bytes) + " bytes at offset " + std::to_string(offset),
                    "to end within the " + std::to_string(data_bytes) + " bytes of tensor data");
    if (offset < end)
      cursor.refuse("the data overlap those of tensor " + escaped(previous->tensor.name),
                    "offset " + std::to_string(offset), "offset " + std::to_string(next));
    if (offset != next)
      cursor.refuse("a hole before the data of the tensor", "offset " + std::to_string(offset),
                    "offset " + std::to_string(next));
    end = offset + tensor.bytes;  // at most data_bytes
    next = checked_align(end, alignment).value_or(end);
    previous = &entries[i];
  }
  cursor.set_subject({});
  return end;
}

// Bytes after the end of the last tensor that are not the padding a writer leaves there.
uint64_t trailing_bytes(std::span<const std::byte> file, uint64_t end, uint64_t alignment) {
  const auto padded = checked_align(end, alignment);
  const uint64_t padding_end = std::min<uint64_t>(file.size(), padded.value_or(end));
  for (uint64_t i = end; i < padding_end; ++i)
    if (file[i] != std::byte{0}) return file.size() - end;
  return file.size() - padding_end;
}

bool is_named(std::string_view name) { return !name.empty() && is_plain_name(name); }

// Whether the bytes at the cursor read as one more tensor entry: then the header's count is too small. Padding and
// weights cannot pass for one.
bool at_tensor_entry(GgufCursor cursor) {
  try {
    const Entry entry = read_entry(cursor, 0, 1);
    return entry.offset < cursor.left();
  } catch (const Error&) {
    return false;
  }
}

bool at_key(GgufCursor cursor) {
  try {
    const std::string_view key = cursor.string("key", kMaxKeyBytes);
    const bool is_tensor = key.ends_with(".weight") || key.ends_with(".bias");
    return is_named(key) && !is_tensor && key.find('.') != key.npos && cursor.number<uint32_t>("type") <= 12;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

std::vector<HostTensor> read_gguf_tensors(GgufCursor& cursor, uint64_t count, uint64_t alignment,
                                          std::span<const std::byte> file, std::vector<std::string>& warnings) {
  if (at_key(cursor) && !at_tensor_entry(cursor)) cursor.refuse("there are more keys than the header counts");
  cursor.expect(count, kMinEntryBytes, "the number of tensors");
  std::vector<Entry> entries;
  entries.reserve(static_cast<size_t>(count));
  for (uint64_t i = 0; i < count; ++i) entries.push_back(read_entry(cursor, i, count));
  cursor.set_subject({});
  if (at_tensor_entry(cursor))
    cursor.refuse("there are more tensors than the header counts", {}, std::to_string(count));

  const auto begin = checked_align(cursor.position(), alignment);
  if (count > 0 && (!begin || *begin > file.size()))
    cursor.refuse("the file ends before the tensor data", std::to_string(file.size()) + " bytes");
  // A file without tensors may end right after its keys, unpadded.
  const uint64_t data_begin = count > 0 ? *begin : cursor.position();
  const uint64_t data_end = data_begin + check_layout(cursor, entries, alignment, file.size() - data_begin);
  if (const uint64_t n = trailing_bytes(file, data_end, alignment))
    warnings.push_back(cursor.path() + ": " + GgufCursor::bytes_text(n) + " after the last tensor, ignored");

  std::vector<HostTensor> tensors;
  tensors.reserve(entries.size());
  for (Entry& entry : entries) {
    entry.tensor.data = file.data() + data_begin + entry.offset;
    tensors.push_back(std::move(entry.tensor));
  }
  return tensors;
}

}  // namespace infer
