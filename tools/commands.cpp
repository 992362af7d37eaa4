// Finds the subcommand, turns errors into one line on stderr and the documented exit status.
#include <fmt/format.h>

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <system_error>

#include "tools/commands.h"
#include "tools/terminal.h"

#ifndef INFER_BUILD_COMMIT
#define INFER_BUILD_COMMIT "unknown"
#endif

namespace infer::tools {
namespace {

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const Args&);
};

const Command kCommands[] = {
    {"run", "generate text or chat (the default)", run_command},
    {"bench", "measure prompt and generation speed", bench_command},
    {"perplexity", "perplexity of a text, and KL against another model", perplexity_command},
    {"quantize", "write a model with its weights in another format", quantize_command},
    {"imatrix", "measure on a text which weights matter, for quantize", imatrix_command},
    {"inspect", "what a file holds and what it needs to run", inspect_command},
    {"plan", "what a model takes of a GPU's or the host's memory", plan_command},
    {"doctor", "what this machine can do, what holds it back, what a model reaches", doctor_command},
    {"selftest", "every kernel that a model uses, against the reference", selftest_command},
    {"tokenize", "text to token ids", tokenize_command},
    {"detokenize", "token ids to text", detokenize_command},
    {"template", "render the chat template", template_command},
    {"logits", "raw logits of a token sequence", logits_command},
    {"eval", nullptr, perplexity_command},
};

std::string version() {
  return fmt::format("infer {}.{}.{} ({})", INFER_VERSION_MAJOR, INFER_VERSION_MINOR, INFER_VERSION_PATCH,
                     INFER_BUILD_COMMIT);
}

int print_help() {
  fmt::print("{}: transformer inference from GGUF files\n\n", version());
  fmt::print("usage: infer MODEL.gguf                  chat (at a terminal, if the model has a chat template)\n");
  fmt::print("       infer MODEL.gguf -p TEXT          complete or answer TEXT\n");
  fmt::print("       infer COMMAND -m MODEL.gguf ...\n\ncommands:\n");
  for (const Command& c : kCommands)
    if (c.summary) fmt::print("  {:12} {}\n", c.name, c.summary);
  fmt::print(
      "\n'infer COMMAND --help' lists the flags of a command: infer run --help those of chatting and generating.\n");
  fmt::print("Also: --version, --list-devices, --completion-bash\n\n");
  fmt::print(
      "exit status: 0 ok, 1 run error, 2 usage, 3 bad model file, 4 does not fit, 5 gate failed, 130 interrupted\n");
  return 0;
}

int print_completion() {
  std::string words;
  for (const Command& c : kCommands) words += std::string(c.name) + " ";
  fmt::print(
      "_infer() {{\n  local cur=${{COMP_WORDS[COMP_CWORD]}} command=run word\n"
      "  for word in \"${{COMP_WORDS[@]:1:COMP_CWORD-1}}\"; do case \" {0}\" in *\" $word \"*) command=$word ;; esac; "
      "done\n"
      "  if [[ $cur == -* ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$(infer $command --help | grep -oE -- '(^|[ ,])--?[a-z][a-z-]*' | tr -d ' ,')\" "
      "-- \"$cur\"))\n"
      "  elif ((COMP_CWORD == 1)); then\n    COMPREPLY=($(compgen -W \"{0}\" -- \"$cur\") $(compgen -f -- \"$cur\"))\n"
      "  else\n    COMPREPLY=($(compgen -f -- \"$cur\"))\n  fi\n}}\ncomplete -o filenames -F _infer infer\n",
      words);
  return 0;
}

int dispatch(Args args) {
  if (args.empty() || args[0] == "-h" || args[0] == "--help" || args[0] == "help") return print_help();
  if (args[0] == "--version") return fmt::print("{}\n", version()), 0;
  if (args[0] == "--completion-bash") return print_completion();
  if (args[0] == "--list-devices") {
    for (const std::string& d : list_devices()) fmt::print("{}\n", d);
    for (const std::string& d : list_unusable_devices()) fmt::print("not usable: {}\n", d);
    return 0;
  }
  for (const Command& c : kCommands)
    if (args[0] == c.name) return c.run(Args(args.begin() + 1, args.end()));
  const bool word = args[0].find_first_of("./-") == std::string::npos && access(args[0].c_str(), F_OK) != 0;
  if (word) {
    std::vector<std::string> names;
    for (const Command& c : kCommands) names.push_back(c.name);
    const std::string near = nearest(args[0], names);
    throw Error(ErrorKind::usage, "'" + escaped(args[0]) + "'",
                near.empty() ? "neither a command nor a model file; see infer --help"
                             : "unknown command; did you mean " + near + "?");
  }
  return run_command(args);
}

// Runs the command and turns what it throws into one line and a status.
int guarded(const Args& args) {
  try {
    return dispatch(args);
  } catch (const Error& e) {
    if (interrupted()) return 130;  // what Ctrl-C broke off is no news
    note("{}error:{} {}\n", red(), plain(), e.what());
    return static_cast<int>(e.kind());
  } catch (const std::bad_alloc&) {
    note("{}error:{} out of memory\n", red(), plain());
    return static_cast<int>(ErrorKind::does_not_fit);
  } catch (const std::exception& e) {
    // What fmt::print throws when it cannot write to stdout is told by close_output().
    const auto* system = dynamic_cast<const std::system_error*>(&e);
    if (system && std::ferror(stdout)) return set_output_error(system->code().value()), 0;
    note("{}error:{} {}\n", red(), plain(), escaped(e.what(), 400));
    return 1;
  }
}

// The output is part of the result: a full disk is an error, but a reader that has seen enough (head) is not.
int close_output(int status) {
  const int error = output_error();
  if (error == EPIPE) return 0;
  if (error == 0 || status != 0) return status;
  note("{}error:{} stdout: {}\n", red(), plain(), std::strerror(error));
  return 1;
}

}  // namespace

int run_program(const Args& args) { return close_output(guarded(args)); }

}  // namespace infer::tools
