// Conversations to prompts: picks the template, hands it the messages as JSON, and tokenizes what it wrote. Control
// tokens are recognised only in the template's own text: a message that spells <|im_end|> stays plain text.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "runtime/chat_template.h"
#include "runtime/model.h"

namespace infer {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxJsonBytes = size_t{64} << 20;

ordered_json parse_json(const char* what, const std::string& text, const char* allowed) {
  if (text.size() > kMaxJsonBytes)
    throw Error(ErrorKind::usage, what, "too long", std::to_string(text.size()) + " bytes",
                std::to_string(kMaxJsonBytes));
  int depth = 0;
  auto shallow = [&](int now, ordered_json::parse_event_t, ordered_json&) {
    depth = std::max(depth, now);
    return true;
  };
  ordered_json value;
  try {
    value = ordered_json::parse(text, shallow);
  } catch (const ordered_json::exception& error) {
    throw Error(ErrorKind::usage, what, "not JSON: " + escaped(error.what(), 300), "", allowed);
  }
  if (depth > 64) throw Error(ErrorKind::usage, what, "nested too deeply", std::to_string(depth), "64 levels");
  const bool right = std::string_view(allowed) == "an object" ? value.is_object() : value.is_array();
  if (!right) throw Error(ErrorKind::usage, what, "wrong type", value.type_name(), allowed);
  return value;
}

std::string names() {
  std::string out;
  for (const KnownChatTemplate& known : known_chat_templates()) out.append(out.empty() ? "" : ", ").append(known.name);
  return out;
}

// Jinja has braces; a word without them is meant as a name.
std::string source_of(const std::string& wanted) {
  if (const auto known = find_known_chat_template(wanted)) return std::string(*known);
  if (wanted.find('{') == std::string::npos)
    throw Error(ErrorKind::usage, "chat template", "unknown name", '"' + escaped(wanted) + '"', names());
  return wanted;
}

RenderedChat render(const ChatTemplate& chat, const std::string& messages, const ChatOptions& options,
                    std::optional<std::string> bos, std::optional<std::string> eos) {
  const ordered_json parsed = parse_json("messages", messages, "an array");
  ordered_json tools, variables;
  ChatTemplateInput input;
  input.messages = &parsed;
  if (!options.tools_json.empty()) {
    tools = parse_json("tools", options.tools_json, "an array");
    input.tools = &tools;
  }
  if (!options.variables_json.empty()) {
    variables = parse_json("template variables", options.variables_json, "an object");
    input.variables = &variables;
  }
  input.add_generation_prompt = options.add_generation_prompt;
  input.bos = options.bos ? options.bos : std::move(bos);
  input.eos = options.eos ? options.eos : std::move(eos);
  input.date = options.date;
  return chat.render_marked(input);
}

// The text as alternating pieces of the template's and of the user's.
std::vector<TextPiece> pieces_of(const RenderedChat& chat) {
  std::vector<TextPiece> pieces;
  const std::string_view text = chat.text;
  size_t at = 0;
  auto add = [&](size_t end, bool parse_special) {
    if (end > at) pieces.push_back({text.substr(at, end - at), parse_special});
    at = end;
  };
  for (const auto& [begin, end] : chat.user_ranges) {
    add(begin, true);
    add(end, false);
  }
  add(text.size(), true);
  return pieces;
}

}  // namespace

ChatPrompt Model::apply_template_json(const std::string& messages_json, const ChatOptions& options) const {
  std::string source = impl_->chat_template;
  if (!options.template_source.empty()) source = source_of(options.template_source);
  if (source.empty())
    throw Error(ErrorKind::usage, "chat template", "the model has none", "", names() + ", or Jinja source");
  RenderedChat chat = render(ChatTemplate(std::move(source)), messages_json, options, impl_->bos_text, impl_->eos_text);
  ChatPrompt prompt;
  if (!impl_->tokenizer) {
    prompt.text = std::move(chat.text);
    return prompt;
  }
  const Tokenizer& tokenizer = *impl_->tokenizer;
  prompt.ids = tokenizer.encode(pieces_of(chat), false);
  // Most templates write BOS themselves; for the others the file says whether a prompt begins with one.
  const bool has_bos = !prompt.ids.empty() && prompt.ids.front() == tokenizer.bos();
  if (tokenizer.adds_bos() && tokenizer.bos() >= 0 && !has_bos) prompt.ids.insert(prompt.ids.begin(), tokenizer.bos());
  prompt.text = std::move(chat.text);
  return prompt;
}

ChatPrompt Model::apply_template(const std::vector<ChatMessage>& messages, const ChatOptions& options) const {
  ordered_json array = ordered_json::array();
  for (const ChatMessage& message : messages) array.push_back({{"role", message.role}, {"content", message.content}});
  return apply_template_json(array.dump(-1, ' ', false, ordered_json::error_handler_t::replace), options);
}

std::vector<std::string> Model::chat_template_names() {
  std::vector<std::string> out;
  for (const KnownChatTemplate& known : known_chat_templates()) out.emplace_back(known.name);
  return out;
}

std::string render_template(const std::string& source, const std::string& messages_json, const ChatOptions& options) {
  return render(ChatTemplate(source_of(source)), messages_json, options, std::nullopt, std::nullopt).text;
}

std::string chat_template_fault(const std::string& source) {
  if (source.empty()) return {};
  try {
    ChatTemplate chat(source);
    return {};
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace infer
