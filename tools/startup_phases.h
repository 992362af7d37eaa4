// What `infer bench --startup` makes of the marks that its children print. Starts no processes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace infer::tools {

/// One start, in milliseconds, in order; what reading takes is not known of one start alone.
struct Start {
  double exec = 0, open = 0, convert = 0, tokenizer = 0, device = 0, weights = 0, engine = 0, capture = 0, prefill = 0,
         first_token = 0;
  double total = 0;
};

/// The phases of a start as they are printed.
struct StartPhase {
  const char* name;
  double cold = 0, warm = 0;  ///< milliseconds
};

/// Medians over the runs. What opening, converting and packing take longer from a cold cache is the reading; `cold` may
/// be empty.
std::vector<StartPhase> start_phases(const std::vector<Start>& cold, const std::vector<Start>& warm);

/// Reads what a child has printed. Throws Error(run) when that is not what it should be.
Start parse_marks(const std::string& text, int64_t started_ns);

}  // namespace infer::tools
