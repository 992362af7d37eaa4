// quantize(): the plan, then tensor after tensor in slabs of a few million weights. While the threads encode one slab,
// the one before is written; pages of the source are let go of behind it.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <future>
#include <new>

#include "kernels/cpu/thread_pool.h"
#include "models/parallel.h"
#include "quant/formats.h"
#include "runtime/convert.h"
#include "runtime/gguf.h"
#include "runtime/gguf_writer.h"
#include "runtime/hf_folder.h"
#include "runtime/mapped_file.h"
#include "runtime/output_file.h"
#include "runtime/quantize_jobs.h"

namespace infer {
namespace {

constexpr int64_t kSlabWeights = int64_t{1} << 23;
constexpr int64_t kChunkWeights = int64_t{1} << 16;  // what a thread takes at a time

// The kernel reads the pages again should anybody want them.
void drop_pages(const std::byte* begin, const std::byte* end) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto from = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page,
             to = reinterpret_cast<uintptr_t>(end) / page * page;
  if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
}

class Writer {
 public:
  Writer(OutputFile& file, size_t alignment) : file_(file), alignment_(alignment) {}
  ~Writer() {
    if (pending_.valid()) pending_.wait();
  }
  /// A buffer that nobody is writing from.
  std::vector<char>& next_buffer() { return buffers_[turn_]; }
  /// Writes next_buffer() on another thread, after what came before.
  void write_buffer() {
    finish();
    std::vector<char>& buffer = buffers_[turn_];
    turn_ = 1 - turn_;
    pending_ = std::async(std::launch::async, [this, &buffer] { file_.write(buffer.data(), buffer.size()); });
  }
  void write_now(const void* data, size_t bytes) {
    finish();
    file_.write(data, bytes);
  }
  void pad() {
    finish();
    static constexpr char kZeros[65536] = {};
    file_.write(kZeros, (alignment_ - file_.position() % alignment_) % alignment_);
  }
  void finish() {
    if (pending_.valid()) pending_.get();
  }

 private:
  OutputFile& file_;
  size_t alignment_;
  std::vector<char> buffers_[2];
  int turn_ = 0;
  std::future<void> pending_;
};

class Quantizer {
 public:
  /// `share_done`: of the whole work, before this part of it.
  Quantizer(const Checkpoint& checkpoint, const QuantizeOptions& options, double share_done)
      : checkpoint_(checkpoint),
        options_(options),
        share_done_(share_done),
        n_threads_(options.n_threads > 0 ? options.n_threads : cpu::default_threads()) {
    for (const HostTensor& tensor : checkpoint.tensors) n_weights_ += tensor.n_elements();
  }

  void run(const std::vector<QuantizeJob>& jobs, const std::vector<QuantizedTensor>& tensors, Writer& writer) {
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (options_.on_tensor) options_.on_tensor(tensors[i]);
      jobs[i].changes() ? convert(jobs[i], writer) : copy(jobs[i], writer);
      writer.pad();
    }
    writer.finish();
  }

 private:
  void copy(const QuantizeJob& job, Writer& writer) {
    const HostTensor& tensor = *job.source;
    if (!tensor.parts.empty()) return gather(tensor, writer);
    constexpr size_t kPiece = size_t{32} << 20;
    for (size_t at = 0; at < tensor.bytes; at += kPiece) {
      const size_t n = std::min(kPiece, tensor.bytes - at);
      writer.write_now(tensor.data + at, n);
      drop(tensor, at, n);
      report(static_cast<double>(n) / static_cast<double>(tensor.bytes) * static_cast<double>(tensor.n_elements()), 0);
    }
  }

  void gather(const HostTensor& tensor, Writer& writer) {
    constexpr size_t kPiece = size_t{4} << 20;
    const size_t part_bytes = tensor.bytes / tensor.parts.size();
    const auto write = [&] {
      writer.write_buffer();
      writer.next_buffer().clear();
    };
    writer.next_buffer().clear();
    for (const std::byte* part : tensor.parts) {
      const char* bytes = reinterpret_cast<const char*>(part);
      for (size_t at = 0; at < part_bytes;) {
        std::vector<char>& buffer = writer.next_buffer();
        const size_t n = std::min(part_bytes - at, kPiece - buffer.size());
        buffer.insert(buffer.end(), bytes + at, bytes + at + n);
        at += n;
        if (buffer.size() == kPiece) write();
      }
    }
    write();
    drop_parts(tensor);
    report(static_cast<double>(tensor.n_elements()), 0);
  }

  void convert(const QuantizeJob& job, Writer& writer) {
    const int64_t cols = job.source->dims.back(), slab_rows = std::max<int64_t>(1, kSlabWeights / cols);
    const int64_t chunk_rows =
        std::max<int64_t>(1, std::min(kChunkWeights / cols, (job.rows + n_threads_ - 1) / n_threads_));
    const size_t to_bytes = job.target.bytes / static_cast<size_t>(job.rows);
    const size_t from_bytes = job.source->bytes / static_cast<size_t>(job.rows);
    for (int64_t begin = 0; begin < job.rows; begin += slab_rows) {
      const int64_t rows = std::min(slab_rows, job.rows - begin), chunks = (rows + chunk_rows - 1) / chunk_rows;
      std::vector<char>& buffer = writer.next_buffer();
      buffer.resize(static_cast<size_t>(rows) * to_bytes);
      const auto slab_weights = static_cast<double>(rows * cols);
      const bool finished = run_parallel(
          std::vector<double>(static_cast<size_t>(chunks), 1.0), n_threads_,
          [&](size_t chunk) {
            const int64_t from = static_cast<int64_t>(chunk) * chunk_rows, to = std::min(rows, from + chunk_rows);
            convert_rows(job, begin + from, begin + to, buffer.data() + static_cast<size_t>(from) * to_bytes);
          },
          [&](double share) { return !options_.progress || options_.progress(fraction(share * slab_weights)); });
      if (!finished) cancel();
      writer.write_buffer();
      drop(*job.source, static_cast<size_t>(begin) * from_bytes, static_cast<size_t>(rows) * from_bytes);
      done_ += slab_weights;
    }
    drop_parts(*job.source);
  }

  void drop(const HostTensor& tensor, size_t at, size_t bytes) const {
    if (checkpoint_.mapped && tensor.data && !tensor.owned) drop_pages(tensor.data + at, tensor.data + at + bytes);
  }
  // Parts may be rows that are smaller than a page: those that lie side by side go together.
  void drop_parts(const HostTensor& tensor) const {
    if (!checkpoint_.mapped || tensor.owned || tensor.parts.empty()) return;
    std::vector<const std::byte*> parts = tensor.parts;
    std::sort(parts.begin(), parts.end());
    const size_t part_bytes = tensor.bytes / parts.size();
    for (size_t i = 0; i < parts.size();) {
      const std::byte* begin = parts[i];
      const std::byte* end = begin;
      for (; i < parts.size() && parts[i] == end; ++i) end += part_bytes;
      drop_pages(begin, end);
    }
  }
  double fraction(double more) const {
    const double share = std::min(1.0, (done_ + more) / static_cast<double>(n_weights_ + 1));
    return share_done_ + (1 - share_done_) * share;
  }
  void report(double weights, double more) {
    done_ += weights;
    if (options_.progress && !options_.progress(fraction(more))) cancel();
  }
  [[noreturn]] static void cancel() { throw Error(ErrorKind::run, "quantize", "cancelled; nothing was written"); }

  const Checkpoint& checkpoint_;
  const QuantizeOptions& options_;
  double share_done_;
  int n_threads_;
  int64_t n_weights_ = 0;
  double done_ = 0;
};

/// A model in GGUF's form, whatever it lay in.
struct Source {
  Checkpoint checkpoint;
  double share_done = 0;  ///< of the work: quantised weights of a folder are unpacked before anything is written
};

Source read_source(const std::string& in, const Mix& mix, const QuantizeOptions& options, QuantizeReport& report) {
  constexpr double kUnpacking = 0.5;
  Source source;
  if (!is_folder(in)) return {read_gguf(in)};
  ConvertOptions convert;
  convert.n_threads = options.n_threads;
  convert.exact = mix.dtype == DType::F32;
  convert.progress = [&](double share) {
    source.share_done = kUnpacking;
    return !options.progress || options.progress(kUnpacking * share);
  };
  Converted converted = convert_folder(in, convert);
  report.notes = std::move(converted.notes);
  source.checkpoint = std::move(converted.checkpoint);
  return source;
}

/// Weights that a folder holds quantised and that were unpacked to 16 bits have lost something too.
void require_requantize(const std::vector<QuantizeJob>& jobs, const QuantizeOptions& options) {
  for (const QuantizeJob& job : jobs)
    if (job.target.dtype >= DType::kPrivate)
      throw Error(ErrorKind::usage, escaped(job.source->name), "no GGUF file has this format",
                  find_format(job.target.dtype)->name, "a format for this tensor: --tensor-type, --output-tensor-type");
  if (options.allow_requantize || options.dry_run) return;
  for (const QuantizeJob& job : jobs) {
    if (!job.source->fine || !job.changes() || find_format(job.target.dtype)->block == 1) continue;
    throw Error(ErrorKind::usage, escaped(job.source->name),
                std::string("is quantised in this folder; --allow-requantize goes to ") +
                    find_format(job.target.dtype)->name + " all the same, and F16, BF16 and F32 need no permission");
  }
}

/// Experts that choose_formats() left alone are told once.
void note_kept_experts(const Mix& mix, const std::vector<QuantizeJob>& jobs, QuantizeReport& report) {
  const auto n = std::count_if(jobs.begin(), jobs.end(), [](const QuantizeJob& job) {
    return job.source->dtype == DType::MXFP4 && job.source->dims.size() > 2 && !job.changes();
  });
  if (n > 0 && mix.dtype != DType::MXFP4)
    report.notes.push_back(std::to_string(n) +
                           " stacks of experts stay in MXFP4, as they were trained; --allow-requantize changes them");
}

/// Of a plain type beside experts in MXFP4 the latter are what people look for.
int64_t file_type_of(const Mix& mix, const std::vector<QuantizeJob>& jobs) {
  if (find_format(mix.dtype)->block > 1) return mix.file_type;
  for (const QuantizeJob& job : jobs)
    if (job.target.dtype == DType::MXFP4) return find_mix("MXFP4_MOE").file_type;
  return mix.file_type;
}

QuantizeReport quantize_file(const std::string& in, const std::string& out, const QuantizeOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Mix& mix = find_mix(options.type);
  if (!options.dry_run) require_another_file(in, out);
  QuantizeReport report;
  const Source source = read_source(in, mix, options, report);
  const Checkpoint& checkpoint = source.checkpoint;
  if (checkpoint.tensors.empty()) checkpoint.refuse("tensors", "the file holds no weights");
  std::optional<ImportanceMatrix> imatrix;
  if (!options.imatrix.empty()) imatrix.emplace(options.imatrix);
  const std::vector<QuantizeJob> jobs = make_jobs(checkpoint, mix, imatrix, options, report);
  require_requantize(jobs, options);
  note_kept_experts(mix, jobs, report);

  const size_t alignment = alignment_of(checkpoint);
  std::vector<HostTensor> targets;
  for (const QuantizeJob& job : jobs) targets.push_back(job.target);
  auto metadata = new_metadata(checkpoint, mix, imatrix);
  metadata.insert_or_assign("general.file_type", Value{file_type_of(mix, jobs), "u32"});
  const std::string head = gguf_head(metadata, targets, alignment);
  report.file_bytes = head.size();
  for (const HostTensor& tensor : targets) report.file_bytes += (tensor.bytes + alignment - 1) / alignment * alignment;
  if (options.dry_run) {
    if (options.on_tensor)
      for (const QuantizedTensor& tensor : report.tensors) options.on_tensor(tensor);
    return report;
  }
  OutputFile file(out, report.file_bytes);
  {
    Writer writer(file, alignment);
    writer.write_now(head.data(), head.size());
    Quantizer(checkpoint, options, source.share_done).run(jobs, report.tensors, writer);
  }
  file.commit();
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace

QuantizeReport quantize(const std::string& in, const std::string& out, const QuantizeOptions& options) {
  try {
    return quantize_file(in, out, options);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::does_not_fit, "quantize", "out of memory");
  }
}

}  // namespace infer
