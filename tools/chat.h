// The chat loop at a terminal or over a pipe, and the lines about a run that go to stderr.
#pragma once

#include <optional>
#include <string>

#include "tools/generation_flags.h"

namespace infer::tools {

struct ChatFlags {
  std::string system, template_name, variables;  ///< template_name: a built-in name or Jinja source
  bool single_turn = false;
  void add_to(Arguments& arguments);
};

/// Talks until /exit, end of input or two Ctrl-C. `first` is the first user message when given.
int chat(const Model& model, Engine& engine, const ChatFlags& flags, const GenerationFlags& generation,
         const std::optional<std::string>& first, bool perf);

void print_start(const Model& model, const Engine& engine);
/// Timings, memory and (perf) counters, one short block on stderr.
void print_end(const Model& model, const Engine& engine, const Result& result, bool perf);

}  // namespace infer::tools
