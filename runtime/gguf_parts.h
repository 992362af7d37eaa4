// The pieces of the GGUF reader, shared by gguf.cpp (files, splits), gguf_metadata.cpp (keys and values) and
// gguf_tensors.cpp (tensor entries and where their data lie). Not for other users: they call read_gguf().
#pragma once

#include <map>
#include <string>
#include <vector>

#include "models/checkpoint.h"
#include "runtime/gguf_cursor.h"

namespace infer {

using Metadata = std::map<std::string, Value, std::less<>>;

// Limits of ours; the file's own size is checked besides.
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxTensorNameBytes = 63;
constexpr uint64_t kMaxStringBytes = uint64_t{1} << 30;
constexpr uint64_t kMaxArrayElements = uint64_t{1} << 26;
constexpr uint64_t kMaxAlignment = 65536;

/// Reads `count` key-value pairs at the cursor. Refuses duplicate keys, unknown types, nested arrays.
Metadata read_gguf_metadata(GgufCursor& cursor, uint64_t count);

/// general.alignment, or 32.
uint64_t gguf_alignment(const GgufCursor& cursor, const Metadata& metadata);

/// Reads `count` tensor entries at the cursor and places them: `data` of each points into `file`. Adds a warning for
/// bytes after the last tensor.
std::vector<HostTensor> read_gguf_tensors(GgufCursor& cursor, uint64_t count, uint64_t alignment,
                                          std::span<const std::byte> file, std::vector<std::string>& warnings);

/// Whether a key or tensor name consists of printable ASCII.
bool is_plain_name(std::string_view name);

}  // namespace infer
