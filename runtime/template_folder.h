// The chat template of a Hugging Face folder: chat_template.jinja or tokenizer_config.json, with the texts of BOS and
// EOS. Weights and tokenizer.json of such a folder are not read here; `infer template -m FOLDER` needs neither.
#pragma once

#include <optional>
#include <string>

namespace infer {

struct TemplateFolder {
  std::string chat_template;  ///< "" when the folder has none
  std::optional<std::string> bos, eos;
};

bool is_folder(const std::string& path);

/// Throws Error(bad_file) when tokenizer_config.json is missing, too long, not JSON, or has a field of the wrong type.
TemplateFolder read_template_folder(const std::string& path);

}  // namespace infer
