// `infer tokenize` and `infer detokenize`: one text, or JSON lines in and out.
#include <fmt/format.h>

#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>

#include "tools/common.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

using nlohmann::json;

// Runs `answer` on every line of stdin; a bad line is an error that names its number.
void for_each_line(const std::function<json(const json&)>& answer) {
  const std::string input = read_all_stdin();
  size_t at = 0, number = 0;
  while (at < input.size()) {
    size_t end = input.find('\n', at);
    if (end == std::string::npos) end = input.size();
    const std::string line = input.substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      const json request = json::parse(line);
      if (!request.is_object()) throw Error(ErrorKind::run, "not a JSON object");
      json reply = {{"id", request.value("id", json())}};
      reply.update(answer(request));
      // Bytes that are no UTF-8 (a token may hold half a character) become U+FFFD, as JSON allows nothing else.
      // Everything above ASCII is escaped: U+2028 and U+0085 end a line for many readers.
      fmt::print("{}\n", reply.dump(-1, ' ', true, json::error_handler_t::replace));
    } catch (const std::exception& e) {
      throw Error(ErrorKind::run, fmt::format("stdin, line {}", number), escaped(e.what(), 300));
    }
  }
}

std::string text_of(const Model& model, const std::vector<TokenId>& ids) {
  for (TokenId id : ids)
    if (id < 0 || id >= model.vocab())
      throw Error(ErrorKind::usage, "--ids", "no such token", std::to_string(id),
                  fmt::format("0 to {}", model.vocab() - 1));
  return model.detokenize(ids);
}

}  // namespace

int tokenize_command(const Args& args) {
  ModelFlags model_flags;
  std::string text;
  bool has_text = false, from_stdin = false, jsonl = false, ids_only = false, special = true, parse = true,
       count = false;
  Arguments a("infer tokenize -m MODEL (-p TEXT | --stdin | --jsonl)", "Token ids of a text.\n");
  model_flags.add_to(a);
  a.add({"-p", "--prompt"}, "TEXT", "the text", [&](const std::string& t) { text = t, has_text = true; });
  a.flag({"--stdin"}, "read the text from stdin, all bytes as they are", &from_stdin);
  a.flag({"--ids"}, "print only [1, 2, 3]", &ids_only);
  a.flag({"--show-count"}, "print the number of tokens", &count);
  a.flag({"--no-bos"}, "do not add BOS or EOS", &special, false);
  a.flag({"--no-parse-special"}, "control tokens inside the text are plain text", &parse, false);
  a.flag({"--jsonl"}, "lines {\"id\",\"text\",\"add_special\",\"parse_special\"} to {\"id\",\"ids\"}", &jsonl);
  if (!parse_or_help(a, args)) return 0;
  const Model model = model_flags.open(true);
  if (jsonl) {
    for_each_line([&](const json& r) -> json {
      return {{"ids", model.tokenize(r.at("text").get_ref<const std::string&>(), r.value("add_special", special),
                                     r.value("parse_special", parse))}};
    });
    return 0;
  }
  if (!has_text || from_stdin) text = read_all_stdin();
  const std::vector<TokenId> ids = model.tokenize(text, special, parse);
  if (ids_only) {
    fmt::print("[{}]\n", listed(ids));
  } else {
    for (TokenId id : ids) fmt::print("{:6} -> '{}'\n", id, escaped(model.detokenize(std::span(&id, 1))));
  }
  if (count) fmt::print("{} tokens\n", ids.size());
  return 0;
}

int detokenize_command(const Args& args) {
  ModelFlags model_flags;
  std::string ids;
  bool jsonl = false;
  Arguments a("infer detokenize -m MODEL (--ids 1,2,3 | --jsonl)", "The exact bytes of token ids.\n");
  model_flags.add_to(a);
  a.text({"--ids"}, "1,2,3", "token ids", &ids);
  a.flag({"--jsonl"}, "lines {\"id\",\"ids\"} to {\"id\",\"text\"}", &jsonl);
  if (!parse_or_help(a, args)) return 0;
  const Model model = model_flags.open(true);
  if (jsonl) {
    for_each_line([&](const json& r) -> json {
      return {{"text", text_of(model, r.at("ids").get<std::vector<TokenId>>())}};
    });
    return 0;
  }
  const std::string text = text_of(model, parse_ids("--ids", ids));
  write_out(text);
  return 0;
}

}  // namespace infer::tools
