// Names, help and checks of the flags of many_flags.h.
#include "tools/many_flags.h"

#include "tools/bench_flags.h"

namespace infer::tools {

void declare(Arguments& a, ManyFlags& f) {
  using Set = std::function<void(const std::string&)>;
  bool* const given = &f.given;
  auto add = [&a, given](std::vector<std::string> names, std::string value, std::string help, Set set) {
    a.add(std::move(names), std::move(value), std::move(help), [given, set = std::move(set)](const std::string& t) {
      *given = true;
      set(t);
    });
  };
  auto list = [&add](const std::string& name, std::string help, std::vector<int64_t>* target) {
    add({name}, "N,..", std::move(help), [name, target](const std::string& t) {
      for (const int64_t n : parse_ranges(name, t)) target->push_back(n);
    });
  };
  a.group("Many sequences at once");
  list("-npp", "prompt lengths (with -npl 128, else 512)", &f.n_prompt);
  list("-ntg", "tokens generated for each (default 128)", &f.n_gen);
  list("-npl", "so many prompts, then so many answers in lockstep, as llama-batched-bench", &f.n_seqs);
  add({"-pps"}, "", "with -npl: one prompt, shared by all", [&f](const std::string&) { f.shared_prompt = true; });
  add({"--arrival"}, "PROCESS", "requests that come, and what they felt: poisson:4/s, fixed:90/m, all:32",
      [&f](const std::string& t) { f.arrivals.push_back(parse_arrival(t)); });
  add({"--sla"}, "TARGETS", "the most requests at once that keep these: itl.p99<50ms,ttft.p99<1s",
      [&f](const std::string& t) { f.targets = parse_targets(t); });
  add({"--prompts"}, "FILE", "prompts of --arrival and --sla, one a line, in turn, instead of -npp",
      [&f](const std::string& t) { f.prompts_file = t; });
  // These two do not choose a table: as INFER_PARALLEL and INFER_SEED they may be meant for other commands.
  a.integer({"-np", "--parallel"}, "N", "sequences computed at once at most (--arrival: 32, --sla: 1024)", &f.max_seqs,
            1, 1024);
  a.integer({"-s", "--seed"}, "N", "of arrivals and random prompts (default 1)", &f.seed, 0, INT32_MAX);
  add({"--kv-pool"}, "N", "positions of the KV cache for all of them together (default: enough)",
      [&f](const std::string& t) { f.n_pool = parse_integer("--kv-pool", t, 1, 1 << 30); });
}

}  // namespace infer::tools
