// Chatting: a list of messages, rendered by the model's template at every turn. The engine's prefix index makes
// resending the whole history cheap, so the history lives here and nowhere else.
#include "tools/chat.h"

#include <fmt/format.h>

#include <cstdio>

#include "tools/line_reader.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

const char kHelp[] =
    "  /help          this list\n"
    "  /clear         forget the conversation\n"
    "  /regen         answer the last message again\n"
    "  /system TEXT   set the system message and forget the conversation\n"
    "  /read FILE     send a file as the message\n"
    "  /stats         timings of the last answer\n"
    "  /exit          leave (also Ctrl-D, or Ctrl-C twice)\n"
    "  A line that ends in \\ goes on; \"\"\" opens and closes a message of many lines.\n";

class Conversation {
 public:
  Conversation(const Model& model, Engine& engine, const ChatFlags& flags, const GenerationFlags& generation)
      : model_(model), engine_(engine), flags_(flags), generation_(generation), sampling_(generation.resolve(model)) {
    clear(flags.system);
  }

  void clear(const std::string& system) {
    system_ = system;
    messages_.clear();
    if (!system.empty()) messages_.push_back({"system", system});
  }
  void clear() { clear(std::string(system_)); }

  void say(const std::string& text) {
    messages_.push_back({"user", text});
    answer();
  }

  bool regenerate() {
    if (messages_.empty() || messages_.back().role != "assistant") return false;
    messages_.pop_back();
    answer();
    return true;
  }

  const Result& last() const { return last_; }

 private:
  void answer();

  const Model& model_;
  Engine& engine_;
  const ChatFlags& flags_;
  const GenerationFlags& generation_;
  Sampling sampling_;
  std::string system_;
  std::vector<ChatMessage> messages_;
  Result last_;
};

void Conversation::answer() {
  ChatOptions options;
  options.template_source = flags_.template_name;
  options.variables_json = flags_.variables;
  Request request;
  try {
    request.ids = model_.apply_template(messages_, options).ids;
    request.sampling = sampling_;
    request.max_tokens = generation_.n_predict < 0 ? -1 : generation_.n_predict;
    request.stop = generation_.stop;
    last_ = generate(engine_, request, [](const Token& t) { return write_out(t.text, true); });
  } catch (const Error&) {
    messages_.pop_back();  // the message that could not be answered is not part of the history
    throw;
  }
  if (last_.reason == FinishReason::error) {
    messages_.pop_back();
    throw Error(ErrorKind::run, last_.error);
  }
  write_out("\n", true);
  messages_.push_back({"assistant", last_.text});
  if (last_.reason == FinishReason::context)
    note("{}[the context of {} tokens is full: /clear, or start with a larger -c]{}\n", grey(), engine_.stats().n_ctx,
         plain());
  if (last_.reason == FinishReason::length) note("{}[stopped after -n tokens]{}\n", grey(), plain());
}

// One line from the user; false when the chat is over.
bool obey(Conversation& conversation, const std::string& line, const Model& model, const Engine& engine) {
  const size_t space = line.find(' ');
  const std::string word = line.substr(0, space);
  const std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
  if (word == "/exit" || word == "/quit" || word == "/bye") return false;
  if (word == "/help" || word == "/?") {
    note("{}", kHelp);
  } else if (word == "/clear") {
    conversation.clear();
  } else if (word == "/system") {
    conversation.clear(rest);
  } else if (word == "/regen") {
    if (!conversation.regenerate()) note("there is no answer to make again\n");
  } else if (word == "/read") {
    if (rest.empty()) throw Error(ErrorKind::usage, "/read", "needs a file name");
    conversation.say(read_text_file(rest));
  } else if (word == "/stats") {
    print_end(model, engine, conversation.last(), true);
  } else if (word.size() > 1 && word.find('/', 1) == std::string::npos) {
    note("unknown command {}; /help lists them\n", escaped(word));
  } else {
    conversation.say(line);  // a path or a lone slash is text
  }
  return true;
}

}  // namespace

void ChatFlags::add_to(Arguments& a) {
  a.text({"-sys", "--system-prompt"}, "TEXT", "system message", &system);
  a.add({"-sysf", "--system-prompt-file"}, "FILE", "system message from a file",
        [this](const std::string& t) { system = read_text_file(t); });
  a.flag({"-st", "--single-turn"}, "answer one message (-p, -f or stdin) in the chat format, then leave", &single_turn);
  a.text({"--chat-template"}, "NAME", "built-in template instead of the model's (a wrong name lists them)",
         &template_name);
  a.add({"--chat-template-file"}, "FILE", "Jinja template instead of the model's",
        [this](const std::string& t) { template_name = read_text_file(t); });
  a.text({"--chat-template-kwargs"}, "JSON", "variables for the template", &variables);
}

int chat(const Model& model, Engine& engine, const ChatFlags& flags, const GenerationFlags& generation,
         const std::optional<std::string>& first, bool perf) {
  Conversation conversation(model, engine, flags, generation);
  LineReader reader;
  if (!first && is_terminal(0))
    note("{}chat with {}; /help for commands{}\n", grey(), escaped(model.info().name), plain());
  if (first && is_terminal(0) && !flags.single_turn) note("> {}\n", *first);
  std::optional<std::string> line = first;
  bool talking = true, at_prompt_interrupt = false;
  while (talking) {
    if (!line) line = reader.read_message();
    if (!line) {
      // Ctrl-C at the prompt: a second one in a row leaves; the end of input leaves at once.
      if (!interrupted() || at_prompt_interrupt || !is_terminal(0)) break;
      at_prompt_interrupt = true;
      clear_interrupt();
      note("{}(Ctrl-C once more or /exit leaves){}\n", grey(), plain());
      continue;
    }
    at_prompt_interrupt = false;
    try {
      if (first && line == first) {
        conversation.say(*line);
      } else if (!line->empty()) {
        talking = (*line)[0] == '/' ? obey(conversation, *line, model, engine) : (conversation.say(*line), true);
      }
    } catch (const Error& e) {
      // At a terminal a failed turn is not the end of the conversation.
      if (!is_terminal(0) || flags.single_turn) throw;
      note("{}error:{} {}\n", red(), plain(), e.what());
    }
    line.reset();
    if (flags.single_turn) break;
    if (is_terminal(0)) clear_interrupt();
    if (interrupted()) break;
  }
  if (conversation.last().timings.n_prompt) print_end(model, engine, conversation.last(), perf);
  return 0;
}

void print_start(const Model& model, const Engine& engine) {
  const ModelInfo& info = model.info();
  const EngineStats stats = engine.stats();
  note("{}{} · {} · {} parameters · {} · context {} · KV {}{}\n", grey(),
       info.name.empty() ? escaped(info.arch) : escaped(info.name), info.file_type,
       info.n_params >= 1000000000 ? fmt::format("{:.2f} B", info.n_params / 1e9)
                                   : fmt::format("{:.1f} M", info.n_params / 1e6),
       stats.backend, stats.n_ctx, human_bytes(static_cast<double>(stats.kv_bytes)), plain());
}

namespace {

// Why it ended, in words for the last line of a run.
std::string ending(const Result& r) {
  switch (r.reason) {
    case FinishReason::stop:
      return r.stop_string.empty() ? "end of the answer" : "stopped at '" + escaped(r.stop_string) + "'";
    case FinishReason::length:
      return "-n reached";
    case FinishReason::context:
      return "context full";
    case FinishReason::cancelled:
      return "interrupted";
    case FinishReason::error:
      return "error";
  }
  return "";
}

}  // namespace

void print_end(const Model& model, const Engine& engine, const Result& result, bool perf) {
  const Timings& t = result.timings;
  const int64_t computed = t.n_prompt - t.n_reused, steps = t.n_generated - 1;
  // "5 tokens, 12.3 tok/s"; no rate where nothing was timed.
  auto amount = [](int64_t n, int64_t reused, int64_t timed, double seconds) {
    std::string text = fmt::format("{} token{}", n, n == 1 ? "" : "s");
    if (reused > 0) text += fmt::format(" ({} reused)", reused);
    if (timed > 0 && seconds > 0) text += fmt::format(", {:.1f} tok/s", static_cast<double>(timed) / seconds);
    return text;
  };
  note("{}load {:.2f} s | prompt {} | generation {} | memory {} | {}{}\n", grey(), model.info().load_seconds,
       amount(t.n_prompt, t.n_reused, computed, t.prompt_seconds), amount(t.n_generated, 0, steps, t.decode_seconds),
       human_bytes(static_cast<double>(peak_memory())), ending(result), plain());
  if (!perf) return;
  const EngineStats s = engine.stats();
  note(
      "first token {:.3f} s, sampling {:.3f} s, total {:.3f} s\n"
      "steps {} ({} ahead), tokens {}, parallel regions {}, launches {}, captures {}, syncs {}, allocations {}, "
      "threads {}\n"
      "KV {} in {} pages ({} free, {} cached), scratch {}\n",
      t.first_token_seconds, t.sample_seconds, t.total_seconds, s.n_steps, s.n_steps_ahead, s.n_tokens,
      s.n_parallel_regions, s.n_launches, s.n_captures, s.n_syncs, s.n_allocations, s.n_threads,
      human_bytes(static_cast<double>(s.kv_bytes)), s.n_pages, s.n_free_pages, s.n_cached_pages,
      human_bytes(static_cast<double>(s.scratch_bytes)));
}

}  // namespace infer::tools
