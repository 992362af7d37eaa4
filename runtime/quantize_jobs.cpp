// Planning, and the conversion of rows; see quantize_jobs.h.
#include "runtime/quantize_jobs.h"

#include <algorithm>

#include "quant/encode.h"
#include "quant/formats.h"
#include "runtime/mapped_file.h"

namespace infer {
namespace {

constexpr int64_t kQuantizationVersion = 2;  // of GGML's formats; none has changed since

const char* name_of(DType dtype) { return find_format(dtype)->name; }

/// Whether the formats of this kind have lost something already.
bool is_quantised(DType dtype) { return find_format(dtype)->block > 1; }

void require_readable(const HostTensor& source, DType target, const Checkpoint& checkpoint,
                      const QuantizeOptions& options) {
  if (!row_decodable(source.dtype)) checkpoint.refuse(source.name, "this format cannot be read", name_of(source.dtype));
  // What a folder holds quantised has no other way to a file than to be unpacked.
  if (source.fine && !is_quantised(target)) return;
  if (is_quantised(source.dtype) && !options.allow_requantize && !options.dry_run)
    throw Error(ErrorKind::usage, shown_path(checkpoint.path) + ": " + escaped(source.name),
                "is quantised already; --allow-requantize goes from " + std::string(name_of(source.dtype)) + " to " +
                    name_of(target) + " all the same, with the errors of both");
}

// Q2_K_S lets so few weights speak for themselves that it is no use without knowing which count.
void require_importance(const Mix& mix, const HostTensor& source, DType target, const std::vector<float>* importance,
                        const QuantizeOptions& options) {
  const bool head = source.name == "output.weight" || source.name == "token_embd.weight";
  if (mix.kind != MixKind::q2_k_s || target != DType::Q2_K || importance || head || options.dry_run) return;
  throw Error(ErrorKind::usage, escaped(source.name),
              options.imatrix.empty() ? "Q2_K_S needs an importance matrix (--imatrix FILE); Q2_K does without"
                                      : "the importance matrix does not know this tensor, and Q2_K_S needs it to");
}

}  // namespace

void convert_rows(const QuantizeJob& job, int64_t begin, int64_t end, char* out) {
  const int64_t cols = job.source->dims.back();
  const auto from_bytes = static_cast<size_t>(row_bytes(job.source->dtype, cols));
  const auto to_bytes = static_cast<size_t>(row_bytes(job.target.dtype, cols));
  const bool apart = !job.source->parts.empty();
  const int64_t rows_to_slice = apart ? job.rows / job.source->dims[0] : job.rows;
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = begin; r < end; ++r, out += to_bytes) {
    const std::byte* from = apart ? job.source->parts[static_cast<size_t>(r / rows_to_slice)] : job.source->data;
    decode_weights(job.source->dtype, from + static_cast<size_t>(r % rows_to_slice) * from_bytes, row.data(), cols);
    const float* importance = job.importance ? job.importance->data() + r / job.rows_to_expert * cols : nullptr;
    const Encoded done = encode_weights(job.target.dtype, row.data(), importance, out, cols);
    if (done.fault == Encoded::none) continue;
    const bool too_large = done.fault == Encoded::too_large;
    throw Error(
        ErrorKind::bad_file,
        escaped(job.source->name) + ", row " + std::to_string(r) + ", column " + std::to_string(done.at),
        too_large ? "weights too large for " + std::string(name_of(job.target.dtype)) : "the weight is not finite",
        std::to_string(row[static_cast<size_t>(done.at)]));
  }
}

std::map<std::string, Value, std::less<>> new_metadata(const Checkpoint& checkpoint, const Mix& mix,
                                                       const std::optional<ImportanceMatrix>& imatrix) {
  auto metadata = checkpoint.metadata;
  for (const char* key : {"split.no", "split.count", "split.tensors.count"}) metadata.erase(key);
  metadata.insert_or_assign("general.quantization_version", Value{kQuantizationVersion, "u32"});
  metadata.insert_or_assign("general.file_type", Value{mix.file_type, "u32"});
  if (!imatrix) return metadata;
  metadata.insert_or_assign("quantize.imatrix.file", Value{imatrix->path(), "string"});
  if (!imatrix->dataset().empty())
    metadata.insert_or_assign("quantize.imatrix.dataset", Value{imatrix->dataset(), "string"});
  metadata.insert_or_assign("quantize.imatrix.entries_count", Value{static_cast<int64_t>(imatrix->size()), "u32"});
  if (imatrix->n_chunks() > 0 && imatrix->n_chunks() <= UINT32_MAX)
    metadata.insert_or_assign("quantize.imatrix.chunks_count", Value{imatrix->n_chunks(), "u32"});
  return metadata;
}

std::vector<QuantizeJob> make_jobs(const Checkpoint& checkpoint, const Mix& mix,
                                   const std::optional<ImportanceMatrix>& imatrix, const QuantizeOptions& options,
                                   QuantizeReport& report) {
  const std::vector<TensorChoice> choices = choose_formats(checkpoint, mix, options);
  std::vector<QuantizeJob> jobs(choices.size());
  size_t n_known = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const HostTensor& source = checkpoint.tensors[i];
    QuantizeJob& job = jobs[i];
    job.source = &source;
    job.rows = source.n_elements() / source.dims.back();
    job.rows_to_expert = source.dims.size() > 2 ? source.dims[source.dims.size() - 2] : job.rows;
    job.target = {source.name, choices[i].dtype, source.dims, nullptr, 0};
    job.target.bytes = static_cast<size_t>(tensor_bytes(job.target.dtype, job.rows, source.dims.back()));
    if (job.changes()) {
      require_readable(source, job.target.dtype, checkpoint, options);
      if (imatrix) job.importance = imatrix->find(source);
      require_importance(mix, source, job.target.dtype, job.importance, options);
      n_known += job.importance != nullptr;
      if (imatrix && !job.importance && source.name != "token_embd.weight")
        report.notes.push_back("the importance matrix does not know " + escaped(source.name) +
                               ": its weights count alike");
    }
    report.tensors.push_back({source.name, name_of(source.dtype), name_of(job.target.dtype), source.dims, source.bytes,
                              job.target.bytes, job.importance != nullptr, choices[i].note});
    report.bytes += source.bytes;
    report.new_bytes += job.target.bytes;
    report.n_weights += source.n_elements();
  }
  if (imatrix && n_known == 0)
    throw Error(ErrorKind::bad_file, shown_path(imatrix->path()),
                "the importance matrix is of another model: it knows none of the tensors that are quantised");
  return jobs;
}

}  // namespace infer
