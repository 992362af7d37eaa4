// Puts the input of a chat into the names that templates use, and turns failures of the engine into Error.
#include "runtime/chat_template.h"

#include <nlohmann/json.hpp>

#include "infer/error.h"
#include "runtime/jinja/interpreter.h"
#include "runtime/jinja/json_value.h"
#include "runtime/jinja/parser.h"

namespace infer {

/// Messages may be long and have several lines, which stay; everything else that a terminal could act on is escaped.
static std::string shown(std::string_view message) {
  constexpr size_t kMaxMessageBytes = 4000;
  std::string lines;
  for (size_t begin = 0; begin <= message.size();) {
    const size_t end = std::min(message.find('\n', begin), message.size());
    if (begin > 0) lines += '\n';
    lines += escaped(std::string(message.substr(begin, end - begin)), kMaxMessageBytes);
    begin = end + 1;
    if (lines.size() > kMaxMessageBytes) return lines.substr(0, kMaxMessageBytes) + "...";
  }
  return lines;
}

[[noreturn]] static void fail(const std::string& name, jinja::Position at, std::string_view message) {
  throw Error(
      ErrorKind::run,
      "template " + escaped(name) + ": line " + std::to_string(at.line) + ", column " + std::to_string(at.column),
      shown(message));
}

ChatTemplate::ChatTemplate(std::string source, std::string name) : source_(std::move(source)), name_(std::move(name)) {
  try {
    tree_ = std::make_shared<const jinja::Tree>(jinja::parse(source_));
  } catch (const jinja::SyntaxFailure& failure) {
    fail(name_, failure.at, failure.what());
  }
}

static void define(jinja::Interpreter& interpreter, std::string_view name, const nlohmann::ordered_json* json) {
  interpreter.define(name, json ? jinja::from_json(interpreter.heap(), *json) : jinja::Value());
}

static void define_input(jinja::Interpreter& interpreter, const ChatTemplateInput& input) {
  // First, so that nothing a caller sends along can stand in for the names below.
  if (input.variables) {
    for (const auto& [name, value] : input.variables->items()) {
      if (!jinja::make_global(interpreter.heap(), name)) define(interpreter, name, &value);
    }
  }
  define(interpreter, "messages", input.messages);
  define(interpreter, "tools", input.tools);
  // Callers of transformers give documents either way.
  const bool given = input.variables && input.variables->contains("documents");
  if (input.documents || !given) define(interpreter, "documents", input.documents);
  interpreter.define("add_generation_prompt", jinja::Value(input.add_generation_prompt));
  if (input.bos) interpreter.define("bos_token", interpreter.heap().text(*input.bos));
  if (input.eos) interpreter.define("eos_token", interpreter.heap().text(*input.eos));
}

RenderedChat ChatTemplate::render_marked(const ChatTemplateInput& input) const {
  jinja::Heap heap;
  jinja::Position at;
  try {
    jinja::Interpreter interpreter(*tree_, heap, input.date ? &*input.date : nullptr);
    try {
      define_input(interpreter, input);
      jinja::Text text = interpreter.run();
      RenderedChat rendered;
      for (const jinja::Span& span : text.user) rendered.user_ranges.emplace_back(span.begin, span.end);
      rendered.text = std::move(text.bytes);
      return rendered;
    } catch (const jinja::Failure&) {
      at = interpreter.at();
      throw;
    }
  } catch (const jinja::Failure& failure) {
    fail(name_, at, failure.what());
  }
}

std::string ChatTemplate::render(const ChatTemplateInput& input) const { return render_marked(input).text; }

}  // namespace infer
