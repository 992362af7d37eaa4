// See bench_startup.h.
#include "tools/bench_startup.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "tools/bench_records.h"
#include "tools/bench_run.h"
#include "tools/startup_phases.h"
#include "tools/storage.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kPromptTokens = 16;

/// On a clock that parent and child share.
int64_t now_ns() {
  timespec t = {};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

std::vector<TokenId> random_ids(int64_t n, int64_t vocab) {
  std::mt19937 random(1234);
  std::uniform_int_distribution<TokenId> draw(0, static_cast<TokenId>(vocab - 1));
  std::vector<TokenId> ids(static_cast<size_t>(n));
  for (TokenId& id : ids) id = draw(random);
  return ids;
}

std::string read_from_start(int fd) {
  std::string text;
  char block[4096];
  ssize_t n = 0;
  for (off_t at = 0; (n = pread(fd, block, sizeof block, at)) > 0; at += n) text.append(block, static_cast<size_t>(n));
  return text;
}

/// What a program printed, and when it was started.
struct Ran {
  int64_t started_ns = 0;
  std::string out;
};

Ran run_self(const Args& args) {
  const int out = memfd_create("stdout", MFD_CLOEXEC), err = memfd_create("stderr", MFD_CLOEXEC);
  const auto fail = [&](int error, const std::string& why) {
    close(out), close(err);
    throw Error(ErrorKind::run, "--startup", why + (error ? std::string(": ") + std::strerror(error) : ""));
  };
  if (out < 0 || err < 0) fail(errno, "no place for what the program prints");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out, 1);
  posix_spawn_file_actions_adddup2(&actions, err, 2);
  std::string name = "infer";
  std::vector<char*> argv = {name.data()};
  std::vector<std::string> copies = args;
  for (std::string& a : copies) argv.push_back(a.data());
  argv.push_back(nullptr);
  Ran ran;
  pid_t pid = 0;
  ran.started_ns = now_ns();
  const int error = posix_spawn(&pid, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error) fail(error, "cannot start the program again");
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
  ran.out = read_from_start(out);
  if (!interrupted() && !(WIFEXITED(status) && WEXITSTATUS(status) == 0))
    fail(0, "the program that was started failed: " + escaped(read_from_start(err), 300));
  close(out), close(err);
  return ran;
}

/// Share of the model's files that is in memory, the largest of them counting most; nothing where it is not told.
std::optional<double> share_in_memory(const std::vector<std::string>& files) {
  double sum = 0;
  for (const std::string& file : files) {
    const auto share = cached_share(file);
    if (!share) return std::nullopt;
    sum += *share / static_cast<double>(files.size());
  }
  return sum;
}

std::string table(const std::vector<StartPhase>& phases, bool with_cold) {
  std::vector<TableColumn> heads = {{"phase", 12, false}};
  if (with_cold) heads.insert(heads.end(), {{"cold ms", 9, true}, {"share", 6, true}});
  heads.insert(heads.end(), {{"warm ms", 9, true}, {"share", 6, true}});
  const StartPhase& total = phases.back();
  std::vector<std::vector<std::string>> rows;
  for (const StartPhase& p : phases) {
    std::vector<std::string> cells = {p.name};
    const auto add = [&](double ms, double all) {
      cells.push_back(fmt::format("{:.1f}", ms));
      cells.push_back(all > 0 ? fmt::format("{:.0f} %", 100 * ms / all) : "");
    };
    if (with_cold) add(p.cold, total.cold);
    add(p.warm, total.warm);
    rows.push_back(std::move(cells));
  }
  return table_text(heads, rows);
}

std::string explanation(std::optional<double> cold_share, size_t n_cold, size_t n_warm) {
  std::string out = fmt::format("medians of {} starts with a cold page cache and {} with a warm one\n", n_cold, n_warm);
  if (!cold_share)
    out += "cold: the system does not tell whether it has forgotten the file\n";
  else if (*cold_share > 0.05)
    out += fmt::format("cold: not quite; {:.0f} % of the file stayed in memory\n", 100 * *cold_share);
  else
    out += fmt::format("cold: the system has forgotten the file ({:.0f} % in memory)\n", 100 * *cold_share);
  return out +
         "read: what opening, converting and packing take longer from a cold cache. convert: scales of quantised "
         "folders, and\n"
         "--quant. pack: the weights of quantised folders into formats that kernels know, and the copy to a GPU. "
         "capture: what\n"
         "the first pass takes longer than later ones: steps recorded on a GPU, first use of memory. Only the model's "
         "file is\n"
         "made cold, not the program.\n";
}

Args child_arguments(const Args& args) {
  Args out = {"bench"};
  for (const std::string& a : args)
    if (a != "--startup") out.push_back(a);
  out.push_back("--startup-marks");
  return out;
}

struct Starts {
  std::vector<Start> cold, warm;
  std::optional<double> cold_share;  ///< the most that was in memory before a cold one
};

/// By turns, so that a machine that others use is as busy for the ones as for the others.
Starts measure_starts(const BenchFlags& f, const Args& child) {
  const std::vector<std::string> files = model_files(f.models[0]);
  Starts out;
  for (int64_t r = 0; r < 2 * f.repetitions && !interrupted(); ++r) {
    const bool cold = r % 2 == 0;
    for (const std::string& file : files) cold ? drop_from_cache(file) : read_into_cache(file);
    const auto now = cold ? share_in_memory(files) : std::nullopt;
    if (r == 0)
      out.cold_share = now;
    else if (cold)
      out.cold_share = out.cold_share && now ? std::optional(std::max(*out.cold_share, *now)) : std::nullopt;
    if (f.progress) note("{} start {} of {}\n", cold ? "cold" : "warm", r / 2 + 1, f.repetitions);
    const Ran ran = run_self(child);
    if (!interrupted()) (cold ? out.cold : out.warm).push_back(parse_marks(ran.out, ran.started_ns));
  }
  return out;
}

}  // namespace

int bench_startup(const BenchFlags& f, const Args& args) {
  if (f.models.size() != 1)
    throw Error(ErrorKind::usage, "--startup", "one model at a time", std::to_string(f.models.size()), "1");
  RecordText records(f.form);
  const Args child = child_arguments(args);
  // The first start of all also reads the program, and makes it known whether the model runs at all.
  run_self(child);
  const auto [cold, warm, cold_share] = measure_starts(f, child);
  if (cold.empty() || warm.empty()) return 130;
  const std::vector<StartPhase> phases = start_phases(cold, warm);
  if (records.is_table()) {
    fmt::print("{}\n{}", table(phases, true), explanation(cold_share, cold.size(), warm.size()));
    return 0;
  }
  ordered_json j = {{"model_filename", f.models[0]}, {"n_starts", warm.size()}};
  j["cold_cached_share"] = cold_share ? ordered_json(*cold_share) : ordered_json(nullptr);
  for (const StartPhase& p : phases) {
    std::string key = p.name == std::string("in all") ? "total" : p.name;
    std::replace(key.begin(), key.end(), ' ', '_');
    j["cold_" + key + "_ms"] = p.cold;
    j["warm_" + key + "_ms"] = p.warm;
  }
  fmt::print("{}", records.add(j));
  fmt::print("{}", records.end());
  return 0;
}

int print_startup_marks(const BenchFlags& flags) {
  const int64_t main_ns = now_ns();
  BenchFlags f = flags;
  f.model.path = f.models[0];
  f.model.n_threads = f.n_threads.empty() ? -1 : f.n_threads[0];
  const Model model = f.model.open();
  BenchCase c = expand(f, f.models[0])[0];
  c.n_prompt = f.n_prompt.empty() || f.n_prompt[0] == 0 ? kPromptTokens : f.n_prompt[0];
  c.n_gen = 1, c.depth = 0;
  if (f.n_ubatch.empty()) c.n_ubatch = default_ubatch(model);
  const int64_t loaded_ns = now_ns();
  Engine engine(model, engine_options(f.model.load, c));
  const int64_t engine_ns = now_ns();
  Request request;
  request.ids = random_ids(c.n_prompt, model.vocab());
  request.max_tokens = 1;
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  request.reuse_prefix = false;
  int64_t first_ns = 0;
  const auto once = [&] {
    const Result result = generate(engine, request, [&](const Token&) {
      if (first_ns == 0) first_ns = now_ns();
      return true;
    });
    if (result.reason == FinishReason::error) throw Error(ErrorKind::run, result.error);
    return result.timings.prompt_seconds;
  };
  const double first = once(), steady = std::min({first, once(), once(), once()});
  ordered_json j = {{"main_ns", main_ns}, {"first_token_ns", first_ns}};
  for (const auto& [name, seconds] : model.info().load_phases) j[name] = seconds;
  j["engine"] = static_cast<double>(engine_ns - loaded_ns) / 1e9;
  j["capture"] = first - steady;
  j["prefill"] = steady;
  j["first_token"] = std::max(0.0, static_cast<double>(first_ns - engine_ns) / 1e9 - first);
  fmt::print("{}\n", j.dump());
  return 0;
}

}  // namespace infer::tools
