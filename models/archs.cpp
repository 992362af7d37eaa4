// ★ The one table of architectures. A new one is models/<name>.cpp with a reader, its declaration in arch.h and a row
// here. Matching is exact: a name that merely resembles one in the table is somebody else's model.
#include "models/arch.h"

namespace infer {

const std::vector<Arch>& architectures() {
  static const std::vector<Arch> rows = {
      {"llama", "Llama 2, 3, 3.1, 3.2, 3.3, SmolLM2, Mistral, Mixtral, TinyLlama and other files of this shape",
       llama_config},
      {"qwen2", "Qwen 1.5, Qwen 2, Qwen 2.5 (dense), DeepSeek-R1-Distill-Qwen", qwen2_config},
      {"qwen3", "Qwen 3 (dense)", qwen3_config},
      {"gemma2", "Gemma 2", gemma2_config},
      {"gemma3", "Gemma 3 (text)", gemma3_config},
      {"phi3", "Phi-3, Phi-3.5 mini, Phi-4, Phi-4-mini", phi3_config},
      {"smollm3", "SmolLM3", smollm3_config},
      {"granite", "Granite 3 (dense)", granite_config},
      {"qwen2moe", "Qwen 1.5 and 2 with experts", qwen2moe_config},
      {"qwen3moe", "Qwen 3 with experts", qwen3moe_config},
      {"olmoe", "OLMoE", olmoe_config},
      {"gpt-oss", "gpt-oss", gpt_oss_config},
  };
  return rows;
}

namespace {

/// Experts that a file announces and its architecture's reader has not asked for.
void refuse_unread_experts(const Checkpoint& checkpoint, const Config& config) {
  if (config.experts.n_experts > 0) return;
  for (const char* key : {".expert_count", ".expert_used_count"}) {
    const int64_t count = checkpoint.find_int(config.arch + key, 0, INT64_MAX).value_or(0);
    if (count > 0)
      checkpoint.refuse(config.arch + key, "mixture of experts is not supported here", std::to_string(count),
                        "absent or 0");
  }
}

}  // namespace

Config read_config(const Checkpoint& checkpoint) {
  const std::string name = checkpoint.get_string("general.architecture");
  std::string known;
  for (const Arch& arch : architectures()) {
    if (name == arch.name) {
      Config config = arch.config(checkpoint);
      refuse_unread_experts(checkpoint, config);
      validate(config, checkpoint.path);
      return config;
    }
    known += (known.empty() ? "" : ", ") + std::string(arch.name);
  }
  checkpoint.refuse("general.architecture", "unsupported architecture", '"' + escaped(name) + '"', known);
}

}  // namespace infer
