// The flags of `infer bench` for many sequences at once: batches in lockstep, load by arrival, search for a target.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/arguments.h"
#include "tools/arrival.h"
#include "tools/latency.h"

namespace infer::tools {

struct ManyFlags {
  std::vector<int64_t> n_prompt, n_gen, n_seqs;  ///< -npp, -ntg, -npl
  bool shared_prompt = false;
  std::vector<Arrival> arrivals;
  std::vector<Target> targets;
  double duration = 0;  ///< of BenchModes; 0: a minute
  std::string prompts_file;
  int64_t max_seqs = 0;  ///< -np; 0: as the mode wants it
  int64_t n_pool = 0, seed = 1;
  bool given = false;  ///< any of the flags that mean nothing in other tables
};

void declare(Arguments& arguments, ManyFlags& flags);

}  // namespace infer::tools
