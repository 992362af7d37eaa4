// The memory plan: what a model costs at a context, and the largest context that fits. Pure arithmetic on sizes that
// validate(Config) has bounded; it asks neither the system nor a backend and allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "models/config.h"
#include "quant/dtype.h"

namespace infer {

/// Bytes beyond weights, cache and scratch: the program and bookkeeping, and the tokenizer for each of its tokens.
/// Measured with vocabularies of 49152 and 262144 tokens. Part of every plan.
inline constexpr size_t kProgramBytes = size_t{24} << 20, kTokenBytes = 256;
/// Left to the rest of the system when the context is chosen by what fits, in host memory and on a device.
inline constexpr size_t kSpareBytes = size_t{128} << 20, kDeviceSpareBytes = size_t{512} << 20;

/// Type of a KV cache by its name on the command line, one of KvFormats. Throws Error(usage) naming them.
DType kv_type(const std::string& option, const std::string& name);

/// Bytes of K and V of one position in all layers. Throws Error(usage) when a row is no whole number of blocks.
size_t kv_bytes_per_token(const Config& config, DType k_type, DType v_type);

/// Bytes of all rotation tables per position.
size_t rope_bytes_per_position(const Config& config);

struct ContextCosts {
  size_t fixed_bytes = 0;         ///< whatever the context is
  size_t bytes_per_position = 0;  ///< of n_ctx; sequences times KV, tables
  size_t spare_bytes = kSpareBytes;
};

/// Positions that fit into `available`, at most kMaxContext, a multiple of a page; 0 when not even one page does.
int64_t largest_context(const ContextCosts& costs, size_t available);

/// `wanted` 0: the file's `ceiling` or what fits. Else exactly that, or Error(does_not_fit) naming the largest that
/// fits.
int64_t choose_context(int64_t wanted, int64_t ceiling, const ContextCosts& costs, size_t available);

/// "1.5 GiB"
std::string human_size(size_t bytes);

}  // namespace infer
