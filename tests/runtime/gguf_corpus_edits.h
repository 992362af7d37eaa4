// What the parts of the corpus share: the small model that is edited, and one line to add an edit of it.
#pragma once

#include <cstdint>

#include "tests/runtime/gguf_corpus.h"
#include "tests/tiny_model.h"

namespace infer::test {

// Tensors that edits pick: the first, one of the middle, a norm, the last.
inline constexpr const char *kEmbed = "token_embd.weight", *kMiddle = "blk.1.ffn_up.weight",
                            *kNorm = "output_norm.weight", *kLast = "output.weight";

inline GgufWriter small_model(bool spm = false) {
  TinyModel model;
  model.weights = DType::Q8_0;
  model.spm = spm;
  model.dim = 32;
  model.n_heads = 2;
  model.n_kv_heads = 1;
  model.ffn_dim = 64;
  return tiny_model(model);
}

struct CorpusAdder {
  std::vector<MutatedFile>& out;
  bool needs_config = false;

  void refused(const std::string& name, std::string bytes, const std::string& expect = {}) const {
    out.push_back({name, std::move(bytes), true, needs_config, expect});
  }
  void loads(const std::string& name, std::string bytes) const {
    out.push_back({name, std::move(bytes), false, false, {}});
  }
  /// The model after one edit, to be refused.
  template <class Edit>
  void edit(const std::string& name, Edit edit, const std::string& expect = {}) const {
    GgufWriter file = small_model();
    edit(file);
    refused(name, file.bytes(), expect);
  }
  /// The model after one edit, to be loaded.
  template <class Edit>
  void edit_loads(const std::string& name, Edit edit) const {
    GgufWriter file = small_model();
    edit(file);
    loads(name, file.bytes());
  }
  /// The model with one more key, made of raw bytes.
  void key(const std::string& name, const std::string& key, uint32_t type, const std::string& bytes,
           const std::string& expect = {}) const {
    edit(
        name, [&](GgufWriter& f) { f.raw(key, type, bytes); }, expect);
  }
};

}  // namespace infer::test
