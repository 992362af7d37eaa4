// `infer template`: renders the chat template of a model or a file, exactly, to stdout.
#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "tools/common.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

struct Case {
  std::string messages;
  ChatOptions options;
};

// A file holds cases or one conversation; see the help.
Case read_case(const std::string& path, int64_t index) {
  Case c;
  try {
    const ordered_json all = ordered_json::parse(read_text_file(path));
    if (!all.is_array()) throw Error(ErrorKind::usage, escaped(path), "not a JSON array");
    const bool cases = !all.empty() && all[0].is_object() && all[0].contains("messages");
    if (!cases) {
      if (index > 0)
        throw Error(ErrorKind::usage, "--case", "no such case", std::to_string(index), "0: one conversation");
      c.messages = all.dump();
      return c;
    }
    if (index >= static_cast<int64_t>(all.size()))
      throw Error(ErrorKind::usage, "--case", "no such case", std::to_string(index),
                  fmt::format("0 to {}", all.size() - 1));
    const ordered_json& chosen = all[static_cast<size_t>(index)];
    c.messages = chosen.at("messages").dump();
    if (chosen.contains("tools") && !chosen["tools"].is_null()) c.options.tools_json = chosen["tools"].dump();
    ordered_json variables = chosen.value("variables", ordered_json::object());
    if (chosen.contains("documents")) variables["documents"] = chosen["documents"];
    if (!variables.empty()) c.options.variables_json = variables.dump();
  } catch (const ordered_json::exception& e) {
    throw Error(ErrorKind::usage, escaped(path), escaped(e.what(), 300));
  }
  return c;
}

}  // namespace

int template_command(const Args& args) {
  ModelFlags model_flags;
  std::string file, messages, name, bos, eos, date;
  int64_t index = 0;
  bool no_prompt = false, has_bos = false, has_eos = false, has_date = false, source = false, ids = false;
  Arguments a("infer template (-m MODEL | --chat-template-file F) --messages FILE", "The rendered prompt, exactly.\n");
  model_flags.add_to(a);
  a.text({"--chat-template-file"}, "F", "a Jinja template instead of the model's", &file);
  a.text({"--chat-template"}, "NAME", "a built-in template instead of the model's", &name);
  a.text({"--messages"}, "FILE", "JSON array of messages, or of cases {\"messages\", \"tools\", \"variables\"}",
         &messages);
  a.integer({"--case"}, "N", "which case (default 0)", &index, 0, 1 << 30);
  a.flag({"--no-generation-prompt"}, "do not open the assistant's turn", &no_prompt);
  a.add({"--bos"}, "S", "bos_token", [&](const std::string& t) { bos = t, has_bos = true; });
  a.add({"--eos"}, "S", "eos_token", [&](const std::string& t) { eos = t, has_eos = true; });
  a.add({"--date"}, "S", "what strftime_now returns", [&](const std::string& t) { date = t, has_date = true; });
  a.flag({"--source"}, "print the template's source and stop", &source);
  a.flag({"--ids"}, "print the token ids of the rendered prompt", &ids);
  if (!parse_or_help(a, args)) return 0;
  if (file.empty() && model_flags.path.empty())
    throw Error(ErrorKind::usage, "give -m MODEL or --chat-template-file F");
  if (messages.empty() && !source) throw Error(ErrorKind::usage, "--messages", "no file given");
  Case c = source ? Case{} : read_case(messages, index);
  c.options.add_generation_prompt = !no_prompt;
  if (has_bos) c.options.bos = bos;
  if (has_eos) c.options.eos = eos;
  if (has_date) c.options.date = date;
  c.options.template_source = file.empty() ? name : read_text_file(file);
  std::string text;
  if (model_flags.path.empty()) {
    text = source ? c.options.template_source : render_template(c.options.template_source, c.messages, c.options);
  } else {
    const Model model = model_flags.open(true);
    if (source) {
      text = model.chat_template();
    } else {
      const ChatPrompt prompt = model.apply_template_json(c.messages, c.options);
      text = ids ? fmt::format("[{}]\n", listed(prompt.ids)) : prompt.text;
    }
  }
  write_out(text);
  return 0;
}

}  // namespace infer::tools
