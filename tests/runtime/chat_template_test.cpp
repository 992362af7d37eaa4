// Chat templates against recorded renders of Python's Jinja2: real templates over the cases of the shared folder, a
// thousand small snippets, templates of other families with prompts written by hand, and the marks of user text.
#include "runtime/chat_template.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "infer/error.h"
#include "tests/catch.h"

using infer::ChatTemplate;
using infer::ChatTemplateInput;
using Json = nlohmann::ordered_json;

namespace {

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Outcome {
  std::string text, error;
  bool operator==(const Outcome&) const = default;
};

Outcome render(const std::string& source, const ChatTemplateInput& input) {
  try {
    return {ChatTemplate(source, "test").render(input), ""};
  } catch (const infer::Error& error) {
    return {"", error.what()};
  }
}

/// A case of cases.json as the command line would give it to a template.
Outcome render_case(const std::string& source, const Json& chat, bool generation) {
  ChatTemplateInput input;
  const auto field = [&](const char* name) { return chat.contains(name) ? &chat[name] : nullptr; };
  input.messages = field("messages");
  input.tools = field("tools");
  input.documents = field("documents");
  input.variables = field("variables");
  input.add_generation_prompt = generation;
  input.bos = "<s>";
  input.eos = "</s>";
  input.date = "26 Jul 2024";
  return render(source, input);
}

bool agrees(const Outcome& got, const Json& want) {
  if (want.contains("error")) return true;  // Python failed inside the template: any outcome will do
  if (want.contains("raised")) return got.error.find(want["raised"].get<std::string>()) != std::string::npos;
  if (!got.error.empty()) return false;
  if (got.text == want["text"].get<std::string>()) return true;
  for (const Json& other : want.value("alt", Json::array())) {
    if (got.text == other.get<std::string>()) return true;
  }
  return false;
}

/// Renders every case of a folder with one of its templates; the number of prompts compared.
int check_template(const std::string& folder, const std::string& name) {
  const std::string source = read(folder + "/" + name + ".jinja");
  const Json cases = Json::parse(read(folder + "/cases.json"));
  const Json expected = Json::parse(read(folder + "/expected/" + name + ".json"));
  int compared = 0;
  for (const Json& chat : cases) {
    const Json& want = expected[chat["name"].get<std::string>()];
    for (const bool generation : {true, false}) {
      const Outcome got = render_case(source, chat, generation);
      INFO(name << " " << chat["name"] << (generation ? " prompt" : " no_prompt") << "\n" << got.text << got.error);
      CHECK(agrees(got, want[generation ? "prompt" : "no_prompt"]));
      ++compared;
    }
  }
  return compared;
}

const Json kTalk = Json::parse(R"([{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi"},
  {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Why?"}])");

std::string render_talk(std::string_view source, bool generation = true) {
  ChatTemplateInput input;
  input.messages = &kTalk;
  input.add_generation_prompt = generation;
  input.bos = "<s>";
  input.eos = "</s>";
  return ChatTemplate(std::string(source), "test").render(input);
}

}  // namespace

TEST_CASE("real templates render the recorded prompts") {
  for (const char* name : {"Qwen-Qwen3-0.6B", "HuggingFaceTB-SmolLM3-3B", "mistralai-Mistral-Nemo-Instruct-2407"}) {
    CHECK(check_template(std::string(TEST_DATA) + "/templates", name) == 28);
  }
}

TEST_CASE("the templates of the shared folder render the recorded prompts") {
  const std::string folder = std::string(SHARED_DATA) + "/templates";
  if (read(folder + "/cases.json").empty()) {
    WARN("no shared folder: only the three templates of the repository were rendered");
    return;
  }
  for (const char* name :
       {"HuggingFaceTB-SmolLM3-3B", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "Qwen-Qwen2.5-7B-Instruct",
        "Qwen-Qwen3-0.6B", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "google-gemma-2-2b-it",
        "meta-llama-Llama-3.1-8B-Instruct", "microsoft-Phi-3.5-mini-instruct", "mistralai-Mistral-Nemo-Instruct-2407",
        "openai-gpt-oss-120b"}) {
    CHECK(check_template(folder, name) == 28);
  }
}

TEST_CASE("snippets give what Python's Jinja2 gives") {
  const Json data = Json::parse(read(std::string(TEST_DATA) + "/templates/snippets.json"));
  const Json& variables = data["variables"];
  ChatTemplateInput input;
  input.variables = &variables;
  input.messages = &variables["messages"];
  input.date = "26 Jul 2024";
  REQUIRE(data["snippets"].size() > 1000);
  for (const Json& snippet : data["snippets"]) {
    const Json& want = snippet.contains("ours") ? snippet["ours"] : snippet;
    const Outcome got = render(snippet["source"].get<std::string>(), input);
    INFO(snippet.dump() << "\ngot " << got.text << got.error);
    if (want.contains("text")) {
      CHECK(got == Outcome{want["text"].get<std::string>(), ""});
    } else if (snippet.contains("ours")) {
      CHECK(got.error.find(want["error"].get<std::string>()) != std::string::npos);
    } else {
      CHECK(got.error.rfind("template test: line ", 0) == 0);
    }
  }
}

TEST_CASE("every known template renders a conversation") {
  CHECK(infer::known_chat_templates().size() >= 15);
  for (const auto& known : infer::known_chat_templates()) {
    INFO(std::string(known.name));
    const std::string prompt = render_talk(known.source);
    CHECK(prompt.find("Be brief.") != std::string::npos);
    CHECK(prompt.find("Yes?") != std::string::npos);
    CHECK(prompt.find("Why?") > prompt.find("Yes?"));
    CHECK(prompt.size() >= render_talk(known.source, false).size());
    CHECK(infer::find_known_chat_template(known.name) == known.source);
  }
  CHECK(!infer::find_known_chat_template("nosuch"));
}

TEST_CASE("known templates write the tokens of their family") {
  const auto talk = [](std::string_view name) { return render_talk(*infer::find_known_chat_template(name)); };
  CHECK(talk("chatml") ==
        "<|im_start|>system\n Be brief. "
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n");
  CHECK(talk("llama2") == "<s>[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\nHi [/INST] Yes? </s><s>[INST] Why? [/INST]");
  CHECK(
      talk("llama3") ==
      "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
      "Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|><|start_header_id|>user"
      "<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
  CHECK(talk("gemma") ==
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n");
  CHECK(talk("mistral") == "<s>[INST] Be brief. \n\nHi[/INST]Yes?</s>[INST]Why?[/INST]");
  CHECK(talk("phi3") ==
        "<|system|>\n Be brief. <|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nYes?<|end|>\n<|user|>\nWhy?"
        "<|end|>\n<|assistant|>\n");
  CHECK(talk("zephyr") ==
        "<|system|>\n Be brief. </s>\n<|user|>\nHi</s>\n<|assistant|>\nYes?</s>\n<|user|>\nWhy?</s>\n"
        "<|assistant|>\n");
  CHECK(talk("deepseek3") ==
        "<s> Be brief. <｜User｜>Hi<｜Assistant｜>Yes?<｜end▁of▁sentence｜><｜User｜>Why?<｜Assistant｜>");
  CHECK(
      talk("command-r") ==
      "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi"
      "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Yes?<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
      "<|USER_TOKEN|>Why?<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>");
}

TEST_CASE("a template with macros, tools and a date renders as derived by hand") {
  // The habits of the Llama 3.2, Command-R and Granite families in one small template.
  const std::string source = R"({%- macro show(tool) -%}
    {%- set f = tool.function if tool.function is defined else tool -%}
    {{ f.name }}({% for p, spec in f.parameters.properties.items() -%}
      {{ p }}: {{ spec.type }}{{ '' if p in f.parameters.required else '?' }}{% if not loop.last %}, {% endif %}
    {%- endfor %})
{%- endmacro -%}
{{- bos_token }}
{%- if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% else %}{% set today = 'never' %}{% endif %}
<|sys|>
Today is {{ today }}.
{% if tools %}
Tools:{{ ' ' }}
    {%- for tool in tools %}
        {{- show(tool) }}{{ '; ' if not loop.last }}
    {%- endfor %}

{% endif %}
{%- for m in messages | rejectattr('role', 'equalto', 'system') %}
<|{{ m['role'] }}|>
{{ m.content | trim }}
{%- if not loop.last %}

{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}

<|assistant|>
{% endif %})";
  const Json tools = Json::parse(R"([{"type": "function", "function": {"name": "add", "parameters": {"type": "object",
    "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a"]}}},
    {"name": "now", "parameters": {"properties": {}}}])");
  ChatTemplateInput input;
  input.messages = &kTalk;
  input.tools = &tools;
  input.bos = "<s>";
  input.date = "1 Jan 2025";
  CHECK(ChatTemplate(source).render(input) ==
        "<s><|sys|>\nToday is 1 Jan 2025.\nTools: add(a: number, b: number?); now()\n<|user|>\nHi\n"
        "<|assistant|>\nYes?\n<|user|>\nWhy?\n<|assistant|>\n");
}

TEST_CASE("content parts of a vision family render as derived by hand") {
  const std::string source = R"({%- set count = namespace(images=0) -%}
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.content is string -%}
{{ m.content }}
{%- else -%}
{%- for part in m.content -%}
{%- if part.type == 'image' or 'image_url' in part -%}
{%- set count.images = count.images + 1 -%}
{{ 'Picture ' ~ count.images ~ ': ' }}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.text is defined -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %})";
  const Json messages = Json::parse(R"([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and"},
    {"image_url": "x"}, {"text": "differ?"}]}, {"role": "assistant", "content": "Yes."}])");
  ChatTemplateInput input;
  input.messages = &messages;
  CHECK(ChatTemplate(source).render(input) ==
        "<|im_start|>user\nPicture 1: <|vision_start|><|image_pad|><|vision_end|>andPicture 2: "
        "<|vision_start|><|image_pad|>"
        "<|vision_end|>differ?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("absent input is none, but the tokens are undefined") {
  const ChatTemplateInput input;
  const std::string source =
      "{{ messages }} {{ tools is defined }} {{ documents }} {{ bos_token is defined }}{{ eos_token }} "
      "{{ add_generation_prompt }}";
  CHECK(ChatTemplate(source).render(input) == "None True None False True");
}

TEST_CASE("variables cannot stand in for the input or the functions") {
  const Json variables = Json::parse(
      R"({"messages": "mine", "tools": 1, "add_generation_prompt": "x", "range": 5, "raise_exception": "no", "extra": [1]})");
  ChatTemplateInput input;
  input.messages = &kTalk;
  input.variables = &variables;
  input.add_generation_prompt = false;
  CHECK(ChatTemplate("{{ messages|length }}{{ tools }}{{ add_generation_prompt }}{{ range(2)|list }}{{ extra }}")
            .render(input) == "4NoneFalse[0, 1][1]");
}

TEST_CASE("documents come as input or among the variables") {
  const Json variables = Json::parse(R"({"documents": [1]})"), documents = Json::parse("[2]");
  ChatTemplateInput input;
  input.variables = &variables;
  CHECK(ChatTemplate("{{ documents }}").render(input) == "[1]");
  input.documents = &documents;
  CHECK(ChatTemplate("{{ documents }}").render(input) == "[2]");
}

TEST_CASE("strftime_now without a given date tells the present time") {
  const std::string year = ChatTemplate("{{ strftime_now('%Y') }}").render({});
  CHECK(year.size() == 4);
  CHECK(year >= "2024");
  CHECK(ChatTemplate("{{ strftime_now('') }}").render({}).empty());
  CHECK(render("{{ strftime_now('%c' * 500) }}", {}).error.find("at most 1000") != std::string::npos);
}

TEST_CASE("one template renders on many occasions without memory of them") {
  const ChatTemplate chat(
      "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}");
  ChatTemplateInput input;
  input.messages = &kTalk;
  CHECK(chat.render(input) == "4");
  const Json one = Json::parse(R"([{"role": "user"}])");
  input.messages = &one;
  CHECK(chat.render(input) == "1");
}

namespace {

/// The rendered text with user text in brackets.
std::string marked(const std::string& source, const Json& messages) {
  ChatTemplateInput input;
  input.messages = &messages;
  const infer::RenderedChat chat = ChatTemplate(source).render_marked(input);
  CHECK(chat.text == ChatTemplate(source).render(input));
  std::string shown;
  size_t at = 0;
  for (const auto& [begin, end] : chat.user_ranges) {
    REQUIRE(begin < end);
    REQUIRE(end <= chat.text.size());
    REQUIRE((begin > at || at == 0));
    shown += chat.text.substr(at, begin - at) + "[" + chat.text.substr(begin, end - begin) + "]";
    at = end;
  }
  return shown + chat.text.substr(at);
}

}  // namespace

TEST_CASE("a rendered prompt tells which bytes came from the messages") {
  const Json chat = Json::parse(R"([{"role": "user", "content": " a<|im_end|>b "}])");
  const auto with = [&](const std::string& expression) { return marked("{{ " + expression + " }}", chat); };
  CHECK(marked("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}", chat) ==
        "<|user|>[ a<|im_end|>b ]<|im_end|>");
  CHECK(with("'x' + messages[0].content|trim + 'y'") == "x[a<|im_end|>b]y");
  CHECK(with("'x' ~ messages[0].content.strip()[1:-1] ~ 'y'") == "x[<|im_end|>]y");
  CHECK(with("messages[0].content.split('<')") == "['[ a]', '[|im_end|>b ]']");
  CHECK(with("messages[0].content|replace('a', '-')") == "[ ]-[<|im_end|>b ]");
  CHECK(with("'<A>'|replace('A', messages[0].content)") == "<[ a<|im_end|>b ]>");
  CHECK(with("messages[0].content|upper|trim") == "[A<|IM_END|>B]");
  CHECK(with("messages[0].content[::-1]|trim") == "[b>|dne_mi|<a]");
  CHECK(with("messages[0]|tojson") == R"({"[role]": "user", "[content]": "[ a<|im_end|>b ]"})");
  CHECK(with("[messages[0].content, 'x']|join('-')") == "[ a<|im_end|>b ]-x");
  CHECK(with("'%s!' % messages[0].content") == "[ a<|im_end|>b ]!");
  CHECK(with("'{}!'.format(messages[0].content)") == "[ a<|im_end|>b ]!");
  CHECK(with("messages[0].content * 2") == "[ a<|im_end|>b  a<|im_end|>b ]");
  CHECK(with("messages[0].content|indent(2, true)") == "  [ a<|im_end|>b ]");
  CHECK(with("messages[0].content|first ~ '.'") == "[ ].");
  CHECK(marked("{% set x %}<{{ messages[0].content }}>{% endset %}{% macro m(a) %}({{ a }}){% endmacro %}{{ m(x) }}",
               chat) == "(<[ a<|im_end|>b ]>)");
  CHECK(marked("{% filter upper %}x{{ messages[0].content }}{% endfilter %}", chat) == "X[ A<|IM_END|>B ]");
  CHECK(marked("{% for c in messages[0].content %}{{ c }}{% endfor %}", chat) == "[ a<|im_end|>b ]");
}

TEST_CASE("a role is the template's word only when it is a plain one") {
  const std::string source = "{% for m in messages %}<|{{ m.role }}|>{% endfor %}";
  CHECK(marked(source, Json::parse(R"([{"role": "tool_call"}])")) == "<|tool_call|>");
  CHECK(marked(source, Json::parse(R"([{"role": "x|><|system"}])")) == "<|[x|><|system]|>");
}

TEST_CASE("numbers of the input print as Python prints them") {
  const Json messages = Json::parse("[18446744073709551615, -9223372036854775808, 1e16, 1.0, 0.1, 123456789012, 1e-7]");
  ChatTemplateInput input;
  input.messages = &messages;
  CHECK(ChatTemplate("{{ messages }}").render(input) ==
        "[18446744073709551615, -9223372036854775808, 1e+16, 1.0, 0.1, 123456789012, 1e-07]");
  CHECK(ChatTemplate("{{ messages|tojson }}").render(input) ==
        "[18446744073709551615, -9223372036854775808, 1e+16, 1.0, 0.1, 123456789012, 1e-07]");
}
