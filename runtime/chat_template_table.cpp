// The templates that --chat-template knows by name, one row each, for files that carry no template of their own. They
// write the control tokens of their family and nothing else: no tools, no default system text.
#include "runtime/chat_template.h"

namespace infer {

static constexpr KnownChatTemplate kKnown[] = {
    {"chatml", R"({% for m in messages %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %})"},

    {"llama2", R"({% set ns = namespace(system='') %}
{%- for m in messages %}
  {%- if m.role == 'system' %}
    {%- set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}
  {%- elif m.role == 'user' %}
    {{- (bos_token | default('')) + '[INST] ' + ns.system + m.content | trim + ' [/INST]' }}
    {%- set ns.system = '' %}
  {%- else %}
    {{- ' ' + m.content | trim + ' ' + (eos_token | default('')) }}
  {%- endif %}
{%- endfor %})"},

    {"llama3", R"({{- bos_token | default('') }}
{%- for m in messages %}
  {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %})"},

    {"llama4", R"({{- bos_token | default('') }}
{%- for m in messages %}
  {{- '<|header_start|>' + m.role + '<|header_end|>\n\n' + m.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\n\n' }}{% endif %})"},

    // The model has no system turn: a system text opens the first user turn.
    {"gemma", R"({{- bos_token | default('') }}
{%- set ns = namespace(system='') %}
{%- for m in messages %}
  {%- if m.role == 'system' %}
    {%- set ns.system = m.content | trim + '\n\n' %}
  {%- else %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
    {{- ns.system + m.content | trim + '<end_of_turn>\n' }}
    {%- set ns.system = '' %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %})"},

    {"mistral-v1", R"({{- bos_token | default('') }}
{%- set ns = namespace(system='') %}
{%- for m in messages %}
  {%- if m.role == 'system' %}
    {%- set ns.system = m.content + '\n\n' %}
  {%- elif m.role == 'user' %}
    {{- ' [INST] ' + ns.system + m.content + ' [/INST]' }}
    {%- set ns.system = '' %}
  {%- else %}
    {{- ' ' + m.content + (eos_token | default('')) }}
  {%- endif %}
{%- endfor %})"},

    {"mistral", R"({{- bos_token | default('') }}
{%- set ns = namespace(system='') %}
{%- for m in messages %}
  {%- if m.role == 'system' %}
    {%- set ns.system = m.content + '\n\n' %}
  {%- elif m.role == 'user' %}
    {{- '[INST]' + ns.system + m.content + '[/INST]' }}
    {%- set ns.system = '' %}
  {%- else %}
    {{- m.content + (eos_token | default('')) }}
  {%- endif %}
{%- endfor %})"},

    {"mistral-v7", R"({{- bos_token | default('') }}
{%- for m in messages %}
  {%- if m.role == 'system' %}
    {{- '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}
  {%- elif m.role == 'user' %}
    {{- '[INST]' + m.content + '[/INST]' }}
  {%- else %}
    {{- m.content + (eos_token | default('')) }}
  {%- endif %}
{%- endfor %})"},

    {"phi3", R"({% for m in messages %}
{{- '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %})"},

    {"phi4", R"({% for m in messages %}
{{- '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %})"},

    {"zephyr", R"({% for m in messages %}
{{- '<|' + m.role + '|>\n' + m.content + (eos_token | default('')) + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %})"},

    {"falcon3", R"({% for m in messages %}
{{- '<|' + m.role + '|>\n' + m.content + ((eos_token | default('')) if m.role == 'assistant' else '') + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %})"},

    {"deepseek", R"({{- bos_token | default('') }}
{%- for m in messages %}
  {%- if m.role == 'user' %}
    {{- '### Instruction:\n' + m.content + '\n' }}
  {%- elif m.role == 'assistant' %}
    {{- '### Response:\n' + m.content + '\n<|EOT|>\n' }}
  {%- else %}
    {{- m.content }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\n' }}{% endif %})"},

    {"deepseek3", R"({{- bos_token | default('') }}
{%- for m in messages if m.role == 'system' %}{{ m.content + ('' if loop.last else '\n\n') }}{% endfor %}
{%- for m in messages %}
  {%- if m.role == 'user' %}
    {{- '<｜User｜>' + m.content }}
  {%- elif m.role == 'assistant' %}
    {{- '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %})"},

    {"command-r", R"({{- bos_token | default('') }}
{%- set turns = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} %}
{%- for m in messages %}
  {{- '<|START_OF_TURN_TOKEN|><|' + turns.get(m.role, 'SYSTEM') + '_TOKEN|>' + m.content | trim }}
  {{- '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %})"},

    {"granite", R"({% for m in messages %}
{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %})"},

    {"chatglm4", R"({{- '[gMASK]<sop>' }}
{%- for m in messages %}
  {{- '<|' + m.role + '|>\n' + m.content }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %})"},

    {"vicuna", R"({% for m in messages %}
  {%- if m.role == 'system' %}
    {{- m.content + '\n\n' }}
  {%- elif m.role == 'user' %}
    {{- 'USER: ' + m.content + '\n' }}
  {%- else %}
    {{- 'ASSISTANT: ' + m.content + (eos_token | default('')) + '\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %})"},

    {"openchat", R"({{- bos_token | default('') }}
{%- for m in messages %}
  {%- if m.role == 'system' %}
    {{- m.content + '<|end_of_turn|>' }}
  {%- else %}
    {{- 'GPT4 Correct ' + m.role | title + ': ' + m.content + '<|end_of_turn|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %})"},

    {"gpt-oss", R"({% for m in messages %}
  {%- if m.role == 'assistant' %}
    {{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
  {%- else %}
    {{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %})"},
};

std::span<const KnownChatTemplate> known_chat_templates() { return kKnown; }

std::optional<std::string_view> find_known_chat_template(std::string_view name) {
  for (const KnownChatTemplate& known : kKnown) {
    if (known.name == name) return known.source;
  }
  return std::nullopt;
}

}  // namespace infer
