// collect_imatrix(): the chunks of a text go through every layer of the model, one after another, on a backend whose
// products are looked at (kernels/observed_backend.h).
#include <chrono>
#include <cmath>
#include <new>
#include <numeric>

#include "kernels/observed_backend.h"
#include "runtime/engine_impl.h"
#include "runtime/imatrix_file.h"
#include "runtime/output_file.h"

namespace infer {
namespace {

constexpr int64_t kMinChunk = 8, kMaxChunk = 1 << 20;

/// Adds up the squares of what goes into the matrices it knows by name.
class SquareSums {
 public:
  SquareSums(const Weights& weights, bool head) {
    for (const NamedMatrix& m : weights.matrices)
      if (head || m.w.data != weights.head.data) entries_[m.w.data].name = m.name;
  }

  void see(Backend& backend, const MatmulArgs& args) {
    const auto found = entries_.find(args.w.data);
    if (found == entries_.end()) return;
    ImatrixFile::Entry& entry = found->second.entry;
    const auto rows = static_cast<size_t>(args.x.rows()), columns = static_cast<size_t>(args.x.cols());
    x_.resize(rows * columns);
    backend.download(x_.data(), args.x.data, x_.size() * sizeof(float));
    entry.sums.resize(columns);
    entry.counts.resize(1);
    double* sums = entry.sums.data();
    for (size_t r = 0; r < rows; ++r) {
      const float* row = x_.data() + r * columns;
      for (size_t i = 0; i < columns; ++i) sums[i] += static_cast<double>(row[i]) * row[i];
    }
    entry.counts[0] += static_cast<double>(rows);
  }

  /// Each expert has sums and a count of its own, as llama.cpp's files have it.
  void see_experts(Backend& backend, const ExpertMatmulArgs& args) {
    const auto found = entries_.find(args.w.data);
    if (found == entries_.end()) return;
    ImatrixFile::Entry& entry = found->second.entry;
    const auto n = static_cast<size_t>(args.ids.n_elements()), columns = static_cast<size_t>(args.x.cols());
    const auto n_active = static_cast<size_t>(args.ids.cols()), n_experts = static_cast<size_t>(args.w.dims[0]);
    x_.resize(static_cast<size_t>(args.x.n_elements()));
    ids_.resize(n);
    backend.download(x_.data(), args.x.data, x_.size() * sizeof(float));
    backend.download(ids_.data(), args.ids.data, n * sizeof(int32_t));
    entry.sums.resize(n_experts * columns);
    entry.counts.resize(n_experts);
    for (size_t r = 0; r < n; ++r) {
      const float* row = x_.data() + (args.x.n_dims == 3 ? r : r / n_active) * columns;
      double* sums = entry.sums.data() + static_cast<size_t>(ids_[r]) * columns;
      for (size_t i = 0; i < columns; ++i) sums[i] += static_cast<double>(row[i]) * row[i];
      entry.counts[static_cast<size_t>(ids_[r])] += 1;
    }
  }

  /// What has been seen. Error(run) naming the matrix when its inputs were no numbers that a file can hold.
  ImatrixFile file(const std::string& dataset, int64_t n_chunks) const {
    ImatrixFile out;
    for (const auto& [data, named] : entries_) {
      if (named.entry.counts.empty()) continue;
      for (const double sum : named.entry.sums)
        if (!std::isfinite(static_cast<float>(sum)))
          throw Error(ErrorKind::run, escaped(named.name), "inputs that are not finite", std::to_string(sum));
      out.entries.emplace(named.name, named.entry);
    }
    if (!dataset.empty()) out.datasets = {dataset};
    out.n_chunks = n_chunks;
    return out;
  }

 private:
  struct Named {
    std::string name;
    ImatrixFile::Entry entry;
  };
  std::map<const void*, Named> entries_;
  std::vector<float> x_;
  std::vector<int32_t> ids_;
};

/// Refuses sums of other widths than the model's.
void require_same_model(const ImatrixFile& file, const Weights& weights, const std::string& path) {
  for (const NamedMatrix& m : weights.matrices) {
    const auto found = file.entries.find(m.name);
    if (found == file.entries.end()) continue;
    const ImatrixFile::Entry& entry = found->second;
    const auto n_experts = static_cast<size_t>(m.w.n_dims == 3 ? m.w.dims[0] : 1);
    const size_t wanted = n_experts * static_cast<size_t>(m.w.cols());
    if (entry.counts.size() == n_experts && entry.sums.size() == wanted) continue;
    throw Error(ErrorKind::bad_file, escaped(path, 4096) + ": " + escaped(m.name),
                "the importance matrix is of another model", std::to_string(entry.sums.size()) + " numbers",
                std::to_string(wanted));
  }
}

/// All in one. `weights`: null, or of the model that they must be of.
ImatrixFile read_all(const std::vector<std::string>& paths, const Weights* weights) {
  ImatrixFile out;
  for (const std::string& path : paths) {
    const ImatrixFile file = read_imatrix(path);
    if (weights) require_same_model(file, *weights, path);
    out.add(file, path);
  }
  return out;
}

/// The chunks of a text that are asked for.
struct Chunks {
  std::vector<TokenId> ids;
  std::vector<TokenId> bos;  ///< what every chunk begins with in place of its own first token; may be empty
  int64_t size = 0, first = 0, count = 0;

  std::vector<TokenId> chunk(int64_t i) const {
    const auto begin = ids.begin() + (first + i) * size;
    std::vector<TokenId> out(begin, begin + size);
    if (!bos.empty()) out[0] = bos[0];
    return out;
  }
};

Chunks cut(const Model& model, std::string_view text, const ImatrixOptions& o) {
  const auto require = [](bool good, const char* field, int64_t found, const char* allowed) {
    if (!good) throw Error(ErrorKind::usage, field, "out of range", std::to_string(found), allowed);
  };
  require(o.n_ctx >= kMinChunk && o.n_ctx <= kMaxChunk, "n_ctx", o.n_ctx, "8 to 1048576");
  require(o.first_chunk >= 0, "first_chunk", o.first_chunk, "0 or more");
  require(o.n_chunks == -1 || o.n_chunks > 0, "n_chunks", o.n_chunks, "1 or more, or -1 for all");
  require(o.save_every >= 0, "save_every", o.save_every, "0 or more");
  Chunks out;
  out.size = o.n_ctx;
  out.first = o.first_chunk;
  out.ids = model.tokenize(text, true, o.parse_special);
  out.bos = model.tokenize("", true, false);
  const auto n = static_cast<int64_t>(out.ids.size());
  const int64_t there = n / out.size;
  if (there == 0)
    throw Error(ErrorKind::usage, "text", "shorter than one chunk", std::to_string(n) + " tokens",
                "at least " + std::to_string(out.size) + ", or smaller chunks");
  if (out.first >= there)
    throw Error(ErrorKind::usage, "first_chunk", "the text has no such chunk", std::to_string(out.first),
                "below " + std::to_string(there));
  out.count = o.n_chunks < 0 ? there - out.first : std::min(o.n_chunks, there - out.first);
  return out;
}

EngineOptions engine_options(const ImatrixOptions& o) {
  EngineOptions engine;
  engine.n_ctx = engine.n_batch = o.n_ctx;
  engine.n_ubatch = o.n_ubatch;
  engine.n_threads = o.n_threads;
  engine.isa = o.isa;
  return engine;
}

class Collector {
 public:
  Collector(const Model::Impl& model, const std::string& out, const ImatrixOptions& options)
      : out_(out),
        options_(options),
        earlier_(read_all(options.in_files, &model.weights)),
        sums_(model.weights, options.process_output),
        prepared_(Engine::Impl::prepare(model, engine_options(options), nullptr)),
        backend_(std::move(prepared_.backend),
                 {[this](Backend& backend, const MatmulArgs& args) { sums_.see(backend, args); },
                  [this](Backend& backend, const ExpertMatmulArgs& args) { sums_.see_experts(backend, args); }}),
        runner_(model.config, model.weights, backend_, prepared_.plan.limits, model.config.vocab),
        pages_(static_cast<size_t>(prepared_.plan.limits.n_pages)) {
    std::iota(pages_.begin(), pages_.end(), PageId{0});
  }

  ImatrixReport run(const Chunks& chunks) {
    for (int64_t i = 0; i < chunks.count && !report_.cancelled; ++i) {
      if (!compute(chunks.chunk(i), i, chunks.count)) break;
      const bool due = options_.save_every > 0 && (i + 1) % options_.save_every == 0;
      const bool last_of_cancelled = report_.cancelled && report_.n_chunks > 0;
      if (due || last_of_cancelled || i + 1 == chunks.count) save(i + 1);
      if (i + 1 == chunks.count) report_.cancelled = false;
    }
    return report_;
  }

 private:
  /// One chunk. False when the caller wanted to end in the middle of it: the sums hold a part of it then.
  bool compute(const std::vector<TokenId>& ids, int64_t chunk, int64_t n_chunks) {
    const StepLimits& limits = prepared_.plan.limits;
    const auto n = static_cast<int64_t>(ids.size());
    // A row is wanted of every token where the head is looked at, and of none where it is not.
    const int64_t most = options_.process_output ? limits.max_outputs : limits.max_tokens;
    for (int64_t at = 0; at < n; at += most) {
      const int64_t count = std::min(most, n - at);
      const StepSequence part{std::span(ids).subspan(static_cast<size_t>(at), static_cast<size_t>(count)), at, pages_,
                              options_.process_output ? count : 0};
      runner_.run(std::span(&part, 1), [](int, const char*, const Tensor&) {});  // so that no row is left out
      const double done = static_cast<double>(chunk) + static_cast<double>(at + count) / static_cast<double>(n);
      if (!options_.progress || options_.progress(done / static_cast<double>(n_chunks))) continue;
      report_.cancelled = true;
      if (at + count < n) return false;
    }
    return true;
  }

  void save(int64_t n_chunks) {
    ImatrixFile file = earlier_;
    file.add(sums_.file(options_.dataset, n_chunks), out_);
    file.chunk_size = options_.n_ctx;
    write_imatrix(file, out_);
    report_.n_chunks = n_chunks;
    report_.all_chunks = file.n_chunks;
    report_.n_tensors = static_cast<int64_t>(file.entries.size());
  }

  const std::string& out_;
  const ImatrixOptions& options_;
  ImatrixFile earlier_;
  SquareSums sums_;
  Engine::Impl::Prepared prepared_;
  ObservedBackend backend_;
  StepRunner runner_;
  std::vector<PageId> pages_;
  ImatrixReport report_;
};

ImatrixReport collect(const Model& model, std::string_view text, const std::string& out, const ImatrixOptions& o) {
  if (model.impl().vocab_only)
    throw Error(ErrorKind::usage, escaped(model.info().path),
                "loaded for its vocabulary only: there is nothing to measure");
  require_another_file(model.info().path, out);
  const auto start = std::chrono::steady_clock::now();
  const Chunks chunks = cut(model, text, o);
  ImatrixReport report = Collector(model.impl(), out, o).run(chunks);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace

ImatrixReport collect_imatrix(const Model& model, std::string_view text, const std::string& out,
                              const ImatrixOptions& options) {
  try {
    return collect(model, text, out, options);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::does_not_fit, "imatrix", "out of memory");
  }
}

ImatrixReport merge_imatrix(const std::vector<std::string>& in_files, const std::string& out) {
  if (in_files.empty()) throw Error(ErrorKind::usage, "in_files", "nothing to merge");
  const ImatrixFile file = read_all(in_files, nullptr);
  write_imatrix(file, out);
  ImatrixReport report;
  report.all_chunks = file.n_chunks;
  report.n_tensors = static_cast<int64_t>(file.entries.size());
  return report;
}

}  // namespace infer
