// The requests that a load is made of, the engines that serve them, and the two tables. Loops and clocks are in
// load_run, the search is in sla.
#include "tools/bench_load.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "tools/batch_run.h"
#include "tools/bench_records.h"
#include "tools/bench_subject.h"
#include "tools/load_rows.h"
#include "tools/sla.h"
#include "tools/terminal.h"
#include "tools/units.h"

namespace infer::tools {
namespace {

constexpr int64_t kUsualPrompt = 512, kUsualGen = 128, kUsualSeqs = 32, kMaxSeqs = 1024;
constexpr double kUsualDuration = 60;
constexpr double kProbes = 20;  // that a search takes at most, more or less, each with a start that is not measured

using Prompts = std::vector<std::vector<TokenId>>;

Prompts read_prompts(const Model& model, const std::string& path) {
  if (!model.info().has_tokenizer) throw Error(ErrorKind::usage, "--prompts", "the model has no tokenizer");
  const std::string text = read_text_file(path);
  Prompts prompts;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    if (end > begin) prompts.push_back(model.tokenize(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  std::erase_if(prompts, [](auto& ids) { return ids.empty(); });
  if (prompts.empty()) throw Error(ErrorKind::usage, escaped(path), "no prompts in the file");
  return prompts;
}

/// Requests of one length, or of a file's prompts in turn. They always generate all of their tokens.
class Requests {
 public:
  Requests(const Model& model, const Prompts& prompts, int64_t n_prompt, int64_t n_gen, int64_t seed)
      : prompts_(prompts), vocab_(model.vocab()), longest_(n_prompt), n_gen_(n_gen), seed_(seed) {
    shape_ = {static_cast<double>(n_prompt), n_gen};
    if (prompts.empty()) return;
    double total = 0;
    for (const auto& ids : prompts) total += static_cast<double>(ids.size());
    shape_.n_prompt = total / static_cast<double>(prompts.size());
    longest_ = static_cast<int64_t>(
        std::max_element(prompts.begin(), prompts.end(), [](auto& a, auto& b) { return a.size() < b.size(); })->size());
  }

  Request operator()(int64_t i) const {
    Request r;
    if (prompts_.empty()) {
      std::seed_seq words{seed_, i};
      std::mt19937 random(words);
      r.ids = random_ids(random, longest_, vocab_);
    } else {
      r.ids = prompts_[static_cast<size_t>(i) % prompts_.size()];
    }
    r.max_tokens = n_gen_;
    r.sampling.temperature = 0;
    r.sampling.ignore_eos = true;
    return r;
  }

  const LoadShape& shape() const { return shape_; }
  int64_t longest() const { return longest_ + n_gen_; }

 private:
  const Prompts& prompts_;
  int64_t vocab_, longest_, n_gen_, seed_;
  LoadShape shape_;
};

/// What both tables start with: flags, model, prompts.
class LoadBench {
 public:
  LoadBench(const BenchFlags& f, const std::string& mode) : f_(f), subject_(f, mode) {
    const ManyFlags& m = f.many;
    const auto refuse = [&](bool given, const char* flag) {
      if (given) throw Error(ErrorKind::usage, flag, "means nothing with " + mode);
    };
    refuse(!m.n_seqs.empty(), "-npl");
    refuse(m.shared_prompt, "-pps");
    if (!m.prompts_file.empty() && !m.n_prompt.empty())
      throw Error(ErrorKind::usage, "-npp", "--prompts gives the prompts");
    for (const auto* lengths : {&m.n_prompt, &m.n_gen})
      for (const int64_t n : *lengths)
        if (n < 1)
          throw Error(ErrorKind::usage, lengths == &m.n_prompt ? "-npp" : "-ntg", "out of range", "0", "1 and more");
    if (!m.prompts_file.empty()) read_text_file(m.prompts_file);  // before anything takes its time
  }

  void open() {
    subject_.open();
    const ManyFlags& m = f_.many;
    if (!m.prompts_file.empty()) prompts_ = read_prompts(subject_.model(), m.prompts_file);
    for (const int64_t pp : m.n_prompt.empty() ? std::vector<int64_t>{kUsualPrompt} : m.n_prompt)
      for (const int64_t tg : m.n_gen.empty() ? std::vector<int64_t>{kUsualGen} : m.n_gen)
        requests_.emplace_back(subject_.model(), prompts_, pp, tg, m.seed);
  }

  const std::vector<Requests>& requests() const { return requests_; }
  const BenchSubject& subject() const { return subject_; }

  Engine engine(const Requests& requests, int64_t n_seqs) {
    EngineOptions o = subject_.engine_options();
    o.n_seqs = n_seqs;
    o.n_ctx = requests.longest();
    o.n_pool = f_.many.n_pool;
    Engine engine(subject_.model(), o);
    warn_slow_cache(engine.stats().cache_note);
    if (f_.warmup) {
      Request r = requests(-1);
      r.max_tokens = std::min<int64_t>(r.max_tokens, 2);
      const Result result = generate(engine, r, [](const Token&) { return true; });
      if (result.reason == FinishReason::error) throw Error(ErrorKind::run, result.error);
      engine.clear_cache();
    }
    machine_ = subject_.row();
    machine_.n_threads = engine.stats().n_threads;
    return engine;
  }

  nlohmann::ordered_json record() const { return machine_record(machine_); }

 private:
  const BenchFlags& f_;
  BenchSubject subject_;
  Prompts prompts_;
  std::vector<Requests> requests_;
  BenchRow machine_;
};

void measure_arrival(const BenchFlags& f, LoadBench& bench, const Requests& requests, const Arrival& arrival,
                     RowStream& out) {
  const bool endless = arrival.kind != Arrival::Kind::all;
  const double duration = f.many.duration > 0 ? f.many.duration : endless ? kUsualDuration : 0;
  Engine engine = bench.engine(requests, f.many.max_seqs > 0 ? f.many.max_seqs : kUsualSeqs);
  const ArrivalTimes times(arrival, static_cast<uint64_t>(f.many.seed));
  const LoadResult result = run_arrivals(
      engine, [&](int64_t i) { return requests(i); }, times, duration, real_clock());
  if (result.n_finished == 0 && interrupted()) return;  // else what was measured until then is told
  nlohmann::ordered_json record = bench.record();
  record["arrival"] = arrival.text;
  record.update(load_record(requests.shape(), result));
  std::vector<std::string> cells = load_cells(requests.shape(), result);
  cells.insert(cells.begin(), arrival.text);
  out.add(cells, record);
  if (result.n_unfinished > 0 && !interrupted())
    note("{}: more than was served: {} of {} requests were under way or waiting {} after the last arrival\n",
         arrival.text, result.n_unfinished, result.n_arrived, duration_text(duration));
}

/// One probe after the other, with a row to each.
class SlaSearch {
 public:
  SlaSearch(const BenchFlags& f, LoadBench& bench, RowStream& out)
      : f_(f), bench_(bench), out_(out), requests_(bench.requests()[0]) {}

  int run() {
    const int64_t limit = f_.many.max_seqs > 0 ? f_.many.max_seqs : kMaxSeqs;
    const SlaAnswer a = search_most(
        limit, [this](int64_t n) { return keeps(n); }, interrupted);
    if (!interrupted()) tell(a, limit);
    return a.most > 0 || interrupted() ? 0 : 5;
  }
  /// In one line, when there is an answer.
  const std::string& answer() const { return answer_; }

 private:
  bool keeps(int64_t n) {
    if (f_.progress) note("{} at once\n", n);
    const double duration = (f_.many.duration > 0 ? f_.many.duration : kUsualDuration) / kProbes;
    LoadResult result;
    try {
      Engine engine = bench_.engine(requests_, n);
      result = run_at_once(
          engine, [this](int64_t i) { return requests_(i); }, n, duration, real_clock());
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::does_not_fit || n == 1) throw;
      note("{} at once: {}\n", n, error.what());
      bounds_[n] = "memory: the KV cache for them does not fit";
      return false;
    }
    if (interrupted()) return false;
    const std::string missed = misses(result);
    bounds_[n] = missed, rates_[n] = result.out_rate();
    add_row(n, result, missed.empty());
    return missed.empty();
  }

  std::string misses(const LoadResult& result) const {
    std::string missed;
    for (const Target& t : f_.many.targets)
      if (!t.kept(result.felt))
        missed += fmt::format("{}{} {}", missed.empty() ? "" : ", ", t.name(), value(t, result));
    return missed;
  }

  static std::string value(const Target& t, const LoadResult& result) {
    const double seconds = t.value(result.felt);
    return seconds > 0 ? duration_text(seconds) : "unknown, nothing came in time";
  }

  void add_row(int64_t n, const LoadResult& result, bool kept) {
    nlohmann::ordered_json record = bench_.record();
    record["n_at_once"] = n, record["kept"] = kept;
    record.update(load_record(requests_.shape(), result));
    std::vector<std::string> cells = load_cells(requests_.shape(), result);
    cells.insert(cells.begin(), std::to_string(n));
    cells.push_back(kept ? "yes" : "no");
    out_.add(cells, record);
  }

  void tell(const SlaAnswer& a, int64_t limit) {
    for (const Target& t : f_.many.targets)
      answer_ += fmt::format("{}{}<{}", answer_.empty() ? "" : ", ", t.name(), duration_text(t.limit));
    answer_ +=
        a.most > 0 ? fmt::format(": {} at once, {:.1f} t/s out", a.most, rates_[a.most]) : ": not even one at a time";
    answer_ += a.first_miss > 0 ? fmt::format("; bound by {} (with {})\n", bounds_[a.first_miss], a.first_miss)
                                : fmt::format("; bound by the {} that were tried at most (-np)\n", limit);
  }

  const BenchFlags& f_;
  LoadBench& bench_;
  RowStream& out_;
  const Requests& requests_;
  std::map<int64_t, std::string> bounds_;  ///< what a number of requests misses
  std::map<int64_t, double> rates_;
  std::string answer_;
};

}  // namespace

int bench_arrival(const BenchFlags& f) {
  std::vector<TableColumn> columns = load_columns();
  columns.insert(columns.begin(), {"arrival", 14, false});
  RowStream out(f.form, columns);
  if (!f.many.targets.empty()) throw Error(ErrorKind::usage, "--sla", "has so many requests at once: no --arrival");
  LoadBench bench(f, "--arrival");
  bench.open();
  int status = 0;
  for (const Requests& requests : bench.requests())
    for (const Arrival& arrival : f.many.arrivals) {
      if (interrupted()) break;
      if (f.progress) note("{}\n", arrival.text);
      measured_or_told(arrival.text, status, [&] { measure_arrival(f, bench, requests, arrival, out); });
    }
  out.end(last_lines(bench.subject().row()));
  return status;
}

int bench_sla(const BenchFlags& f) {
  std::vector<TableColumn> columns = load_columns();
  columns.insert(columns.begin(), {"at once", 7, true});
  columns.push_back({"kept", 4, false});
  RowStream out(f.form, columns);
  if (f.many.n_prompt.size() > 1 || f.many.n_gen.size() > 1)
    throw Error(ErrorKind::usage, f.many.n_prompt.size() > 1 ? "-npp" : "-ntg", "one value only with --sla");
  LoadBench bench(f, "--sla");
  bench.open();
  SlaSearch search(f, bench, out);
  const int status = search.run();
  const bool table = out.is_table();
  out.end((table ? search.answer() : "") + last_lines(bench.subject().row()));
  if (!table) note("{}", search.answer());
  return status;
}

}  // namespace infer::tools
