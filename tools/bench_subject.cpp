// The checks and the loading of bench_subject.h.
#include "tools/bench_subject.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "tools/terminal.h"

namespace infer::tools {
namespace {

template <class T>
T only(const char* flag, const std::vector<T>& values, T usual) {
  if (values.size() > 1) throw Error(ErrorKind::usage, flag, "one value only in a table of many sequences");
  return values.empty() ? usual : values[0];
}

}  // namespace

BenchSubject::BenchSubject(const BenchFlags& f, const std::string& mode) : flags_(f), opener_(f.model) {
  const std::string nothing = "means nothing with " + mode;
  auto refuse = [&](bool given, const char* flag) {
    if (given) throw Error(ErrorKind::usage, flag, nothing);
  };
  refuse(!f.n_prompt.empty(), "-p");  // people mean -npp
  refuse(!f.n_gen.empty(), "-n");
  refuse(!f.both.empty(), "-pg");
  refuse(!f.depth.empty(), "-d");
  refuse(!f.levels.empty(), "--levels");
  refuse(!f.kv_levels.empty(), "--kv-levels");
  refuse(!f.quality_file.empty(), "--quality");
  refuse(!f.reference.empty(), "--reference");
  refuse(!f.plot.empty() && mode != "-npl", "--plot");
  refuse(f.tokenizer, "--tokenizer");
  if (f.models.empty() && f.shape.empty())
    throw Error(ErrorKind::usage, "-m", "no model given; see infer bench --help");
  if (!f.models.empty() && !f.shape.empty())
    throw Error(ErrorKind::usage, "--shape", "needs no model, and -m names one");
  case_.model = only<std::string>("-m", f.models, "random " + f.shape);
  case_.n_batch = only<int64_t>("-b", f.n_batch, 2048);
  case_.n_ubatch = only<int64_t>("-ub", f.n_ubatch, 0);
  case_.n_threads = only<int64_t>("-t", f.n_threads, 0);
  case_.k_type = only<std::string>("-ctk", f.k_types, "f16");
  case_.v_type = only<std::string>("-ctv", f.v_types, "f16");
  const LoadOptions& load = f.model.load;
  if (!load.mode.empty()) case_.mode = load.mode;
  if (!load.act.empty()) case_.act = load.act;
  case_.fusion = load.fusion;
  opener_.path = case_.model;
  opener_.n_threads = case_.n_threads;
}

void BenchSubject::open() {
  model_ = flags_.shape.empty() ? opener_.open() : random_model(flags_.shape, opener_);
  const ModelInfo& info = model_->info();
  if (!info.device_note.empty()) note("device: {}; {}\n", info.device, info.device_note);
  if (case_.n_ubatch == 0) case_.n_ubatch = default_ubatch(*model_);
  if (wants_limits()) limits_.measure(on_gpu(*model_), static_cast<int>(case_.n_threads));
}

EngineOptions BenchSubject::engine_options() const { return tools::engine_options(flags_.model.load, case_); }

BenchRow BenchSubject::row() const {
  BenchRow row = describe(case_, *model_);
  if (wants_limits()) limits_.put_into(row);
  return row;
}

RowStream::RowStream(const std::string& form, std::vector<TableColumn> columns)
    : records_(form), columns_(std::move(columns)) {}

void RowStream::add(const std::vector<std::string>& cells, const nlohmann::ordered_json& record) {
  const bool first = !std::exchange(any_, true);
  if (is_table())
    write_out((first ? table_head(columns_) : "") + table_row(columns_, cells), true);
  else
    write_out(records_.add(record), true);
}

void RowStream::end(const std::string& last) {
  if (!is_table())
    write_out(records_.end(), true);
  else if (any_)
    write_out("\n" + last, true);
}

bool measured_or_told(const std::string& name, int& status, const std::function<void()>& measure) {
  try {
    measure();
    return true;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::does_not_fit) throw;
    note("{}: left out: {}\n", name, error.what());
    status = static_cast<int>(ErrorKind::does_not_fit);
    return false;
  }
}

}  // namespace infer::tools
