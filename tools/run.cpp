// `infer run`: completes a prompt, or chats. Decides which of the two, prints the answer to stdout and timings to
// stderr.
#include <fmt/format.h>

#include <cstdio>
#include <optional>

#include "tools/chat.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

struct RunFlags {
  ModelFlags model;
  EngineFlags engine;
  GenerationFlags generation;
  ChatFlags chat;
  std::string prompt;
  std::optional<std::string> file_text;
  std::vector<TokenId> ids;
  bool has_prompt = false, has_ids = false, print_ids = false, escape = true, special = false, perf = false,
       verbose = false;
  std::optional<bool> conversation;
};

void declare(Arguments& a, RunFlags& f) {
  a.positional("MODEL", [&f](const std::string& t) {
    if (!f.model.path.empty()) throw Error(ErrorKind::usage, "'" + escaped(t) + "'", "more than one model file");
    f.model.path = t;
  });
  a.group("Model");
  f.model.add_to(a);
  add_quant_flags(a, f.model.load);
  f.engine.add_to(a);
  a.group("Prompt");
  a.add({"-p", "--prompt"}, "TEXT", "the prompt; without one it is read from stdin", [&f](const std::string& t) {
    f.prompt = t;
    f.has_prompt = true;
  });
  a.add({"-f", "--file"}, "FILE", "read the prompt from a file",
        [&f](const std::string& t) { f.file_text = read_text_file(t); });
  a.add({"--ids"}, "1,2,3", "token ids instead of a prompt", [&f](const std::string& t) {
    f.ids = parse_ids("--ids", t);
    f.has_ids = true;
  });
  a.flag({"-e", "--escape"}, "process \\n, \\t and the like in -p (default)", &f.escape);
  a.flag({"--no-escape"}, "take -p literally", &f.escape, false);
  f.generation.add_to(a);
  a.group("Chat");
  a.add({"-cnv", "--conversation"}, "", "chat even when stdin is not a terminal",
        [&f](const std::string&) { f.conversation = true; });
  a.add({"-no-cnv", "--no-conversation"}, "", "complete the prompt instead of chatting",
        [&f](const std::string&) { f.conversation = false; });
  f.chat.add_to(a);
  a.group("Output");
  a.flag({"--print-ids"}, "print the new token ids as a JSON list instead of text", &f.print_ids);
  a.flag({"--special"}, "print control tokens too", &f.special);
  a.flag({"--perf"}, "counters of the run at the end", &f.perf);
  a.flag({"--no-perf"}, "", &f.perf, false);
  a.flag({"-v", "--verbose"}, "say more", &f.verbose);
  a.flag({"-i", "--interactive"}, "", &f.verbose, false);
  a.ignored({"--color"}, false);
  a.ignored({"--no-warmup"}, false);
  a.ignored({"--warmup"}, false);
  a.ignored({"--jinja"}, false);
  a.ignored({"--no-display-prompt"}, false);
}

std::string the_prompt(const RunFlags& f, const Model& model) {
  if (f.has_prompt) return f.escape ? unescape(f.prompt) : f.prompt;
  if (f.file_text) return *f.file_text;
  if (is_terminal(0))
    throw Error(
        ErrorKind::usage, "-p",
        model.info().has_chat_template
            ? "no prompt given; pass -p TEXT, -f FILE or a pipe"
            : "no prompt given, and the model has no chat template to chat with; pass -p TEXT, -f FILE or a pipe, or "
              "choose a template with --chat-template NAME");
  return read_all_stdin();
}

int complete(const RunFlags& f, const Model& model, Engine& engine) {
  Request request;
  if (f.has_ids && f.ids.empty()) throw Error(ErrorKind::usage, "--ids", "no ids given");
  request.ids = f.ids;
  if (!f.has_ids) request.prompt = the_prompt(f, model);
  request.sampling = f.generation.resolve(model);
  request.max_tokens = f.generation.n_predict < 0 ? -1 : f.generation.n_predict;
  request.stop = f.generation.stop;
  const auto is_control = [&](TokenId id) { return model.token_text(id).empty(); };
  const Result result = generate(engine, request, [&](const Token& t) {
    if (!f.print_ids) {
      const std::string text = f.special && is_control(t.id) ? model.detokenize(std::span(&t.id, 1)) : t.text;
      return write_out(text, true);
    }
    return true;
  });
  if (f.print_ids) fmt::print("[{}]\n", listed(result.ids));
  if (!f.print_ids && is_terminal(1)) write_out("\n", true);
  if (!f.print_ids && !is_terminal(1) && same_output(1, 2)) note("\n");
  print_end(model, engine, result, f.perf);
  if (result.reason == FinishReason::error) throw Error(ErrorKind::run, result.error);
  return 0;
}

// By default at a terminal, when the model knows how; on -cnv or -st in any case, so that a missing template is an
// error.
bool chats(const RunFlags& f, const Model& model) {
  if (f.conversation) return *f.conversation;
  if (f.has_ids) return false;
  if (f.chat.single_turn) return true;
  const bool knows_how = model.info().has_chat_template || !f.chat.template_name.empty();
  return knows_how && is_terminal(0) && !f.file_text;
}

}  // namespace

int run_command(const Args& args) {
  RunFlags f;
  Arguments a("infer [run] MODEL.gguf [flags]",
              "Chats when stdin is a terminal and the model has a chat template, else completes the prompt.\n"
              "Every long flag can be set as INFER_<NAME>, for example INFER_CTX_SIZE=4096.\n");
  declare(a, f);
  if (!parse_or_help(a, args)) return 0;
  const Model model = f.model.open();
  Engine engine(model, f.engine.options(f.model));
  if (engine.stats().n_ctx > model.info().context_length)
    note("warning: a context of {} tokens, and the model was trained for {}\n", engine.stats().n_ctx,
         model.info().context_length);
  announce_device(model, engine, f.model.load);
  if (f.verbose || is_terminal(2)) print_start(model, engine);
  if (!chats(f, model)) return complete(f, model, engine);
  std::optional<std::string> first;
  // One answer to what a pipe holds; without -st every line of it is a message.
  if (f.has_prompt || f.file_text || (f.chat.single_turn && !is_terminal(0))) first = the_prompt(f, model);
  return chat(model, engine, f.chat, f.generation, first, f.perf);
}

}  // namespace infer::tools
