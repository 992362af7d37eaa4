// Quantising while loading: the same plan and the same rows as quantize(), into memory instead of a file.
#include <algorithm>
#include <memory>

#include "kernels/cpu/thread_pool.h"
#include "models/parallel.h"
#include "runtime/quantize_jobs.h"

namespace infer {
namespace {

constexpr int64_t kStepWeights = int64_t{1} << 18;  // what a thread takes at a time

struct Chunk {
  const QuantizeJob* job;
  int64_t begin, end;  ///< rows
  char* out;
};

}  // namespace

void quantize_checkpoint(Checkpoint& checkpoint, const LoadOptions& options) {
  QuantizeOptions quantize;
  quantize.type = options.quant;
  quantize.allow_requantize = options.allow_requantize;
  const Mix& mix = find_mix(options.quant);
  QuantizeReport report;
  const std::vector<QuantizeJob> jobs = make_jobs(checkpoint, mix, std::nullopt, quantize, report);

  // What changes lies in buffers of its own; the rest stays where it is, so that the file is kept as well.
  struct Storage {
    std::shared_ptr<const void> file;
    std::vector<std::unique_ptr<char[]>> buffers;
  };
  auto storage = std::make_shared<Storage>();
  storage->file = checkpoint.storage;
  std::vector<HostTensor> tensors;
  std::vector<Chunk> chunks;
  std::vector<double> work;
  for (const QuantizeJob& job : jobs) {
    tensors.push_back(job.target);
    tensors.back().data = job.source->data;
    tensors.back().parts = job.source->parts;
    tensors.back().owned = job.source->owned;
    if (!job.changes()) continue;
    storage->buffers.push_back(std::make_unique_for_overwrite<char[]>(job.target.bytes));
    char* const out = storage->buffers.back().get();
    tensors.back().data = reinterpret_cast<const std::byte*>(out);
    tensors.back().parts.clear();
    tensors.back().owned = true;
    const size_t row_bytes = job.target.bytes / static_cast<size_t>(job.rows);
    const int64_t step = std::max<int64_t>(1, kStepWeights / job.source->dims.back());
    for (int64_t begin = 0; begin < job.rows; begin += step) {
      const int64_t end = std::min(job.rows, begin + step);
      chunks.push_back({&job, begin, end, out + static_cast<size_t>(begin) * row_bytes});
      work.push_back(static_cast<double>(end - begin) * static_cast<double>(job.source->dims.back()));
    }
  }
  const int n_threads = options.n_threads > 0 ? options.n_threads : cpu::default_threads();
  const bool finished = run_parallel(
      work, n_threads, [&](size_t i) { convert_rows(*chunks[i].job, chunks[i].begin, chunks[i].end, chunks[i].out); },
      [&](double share) { return !options.progress || options.progress(0.9 * share); });
  if (!finished) throw Error(ErrorKind::run, escaped(checkpoint.path), "loading was cancelled");
  checkpoint.metadata = new_metadata(checkpoint, mix, std::nullopt);
  checkpoint.tensors = std::move(tensors);
  checkpoint.index_tensors();
  checkpoint.storage = std::move(storage);
  checkpoint.mapped = false;  // nobody may let go of these pages
}

}  // namespace infer
