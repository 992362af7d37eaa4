// The chat template of a model: from a conversation to the prompt text that the model was trained on.
// Templates are Jinja sources out of model files, so they are untrusted: runtime/jinja bounds their time, memory and
// depth, and gives them nothing but their input. Knows nothing of tokens.
#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace infer {

namespace jinja {
struct Tree;
}

/// What a template sees. The JSON values are borrowed for the call; a null pointer is none.
struct ChatTemplateInput {
  const nlohmann::ordered_json* messages = nullptr;   ///< array of {"role", "content", ...}
  const nlohmann::ordered_json* tools = nullptr;      ///< array
  const nlohmann::ordered_json* documents = nullptr;  ///< array
  const nlohmann::ordered_json* variables =
      nullptr;  ///< object; every key is a variable, but cannot replace the others here
  bool add_generation_prompt = true;
  std::optional<std::string> bos, eos;  ///< bos_token and eos_token; undefined when absent
  std::optional<std::string> date;      ///< what strftime_now() returns whatever its format; absent: the present time
};

/// A rendered prompt, and which of its bytes came from the input: ascending ranges [begin, end) that do not touch.
/// A control token that overlaps one of them was written by a user, not by the template, and must be read as plain
/// text.
struct RenderedChat {
  std::string text;
  std::vector<std::pair<size_t, size_t>> user_ranges;
};

/// A parsed template. Immutable; renders may run at the same time.
class ChatTemplate {
 public:
  /// `name` is for messages: a file, a model, or the name of a known template. Throws Error (run) with line and column
  /// when the source does not parse.
  explicit ChatTemplate(std::string source, std::string name = "chat");

  /// Throws Error (run) "template NAME: line L, column C: ..."; the text of raise_exception() is within it.
  std::string render(const ChatTemplateInput& input) const;
  RenderedChat render_marked(const ChatTemplateInput& input) const;

  const std::string& source() const { return source_; }
  const std::string& name() const { return name_; }

 private:
  std::string source_, name_;
  std::shared_ptr<const jinja::Tree> tree_;
};

/// A template that --chat-template knows by name.
struct KnownChatTemplate {
  std::string_view name, source;
};

std::span<const KnownChatTemplate> known_chat_templates();
/// The source of that name; nothing when there is none.
std::optional<std::string_view> find_known_chat_template(std::string_view name);

}  // namespace infer
