// What a loaded model consists of, behind the public Model. Immutable once load() has returned, so engines on any
// number of threads share it without locks.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "infer.h"
#include "kernels/backend.h"
#include "models/config.h"
#include "models/weights.h"
#include "runtime/tokenizer.h"

namespace infer {

struct Model::Impl {
  ModelInfo info;
  bool vocab_only = false;
  Config config;  ///< empty when vocab_only, like what follows
  Weights weights;
  Needs needs;                          ///< without what an engine decides
  std::shared_ptr<const void> storage;  ///< the file's bytes, as long as weights lie in them
  std::string device;                   ///< these two as make_backend() wants them
  BackendOptions backend_options;
  std::optional<Tokenizer> tokenizer;  ///< absent when the file has none
  std::string chat_template;
  std::optional<std::string> bos_text, eos_text;  ///< as templates see them

  /// Throws Error(usage) when there is none.
  const Tokenizer& require_tokenizer() const;
};

/// Why a template does not parse; empty when it does, or when there is none.
std::string chat_template_fault(const std::string& source);

}  // namespace infer
