// The work of quantising, tensor by tensor: planned and checked before any of it is done, and done row by row. Shared
// by quantize(), which writes a file, and by loading with LoadOptions::quant, which fills memory.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "infer.h"
#include "models/checkpoint.h"
#include "runtime/imatrix.h"
#include "runtime/quantize_plan.h"

namespace infer {

struct QuantizeJob {
  const HostTensor* source = nullptr;
  HostTensor target;  ///< without data
  const std::vector<float>* importance = nullptr;
  int64_t rows = 0, rows_to_expert = 0;
  bool changes() const { return source->dtype != target.dtype; }
};

/// One job to a tensor, in the order of the file; fills tensors, sizes and notes of the report. Throws for what
/// quantize() refuses before it begins.
std::vector<QuantizeJob> make_jobs(const Checkpoint& checkpoint, const Mix& mix,
                                   const std::optional<ImportanceMatrix>& imatrix, const QuantizeOptions& options,
                                   QuantizeReport& report);

/// Decodes and encodes rows [begin, end); `out` is where row `begin` goes. Error(bad_file) names tensor, row and column
/// of a weight that cannot be written.
void convert_rows(const QuantizeJob& job, int64_t begin, int64_t end, char* out);

/// The source's metadata with what has changed.
std::map<std::string, Value, std::less<>> new_metadata(const Checkpoint& checkpoint, const Mix& mix,
                                                       const std::optional<ImportanceMatrix>& imatrix);

/// Replaces the tensors of a checkpoint by what quantize() would write, in memory.
void quantize_checkpoint(Checkpoint& checkpoint, const LoadOptions& options);

}  // namespace infer
