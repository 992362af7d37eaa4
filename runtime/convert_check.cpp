// See convert_check.h.
#include "runtime/convert_check.h"

#include "infer/error.h"
#include "runtime/convert.h"
#include "runtime/tokenizer.h"
#include "runtime/utf8.h"

namespace infer {
namespace {

/// A space in front of all texts, unless there is one.
bool has_soft_prefix(const Vocabulary& folder) {
  if (!folder.rules) return false;
  for (const TextStep& step : folder.rules->pretokenizer)
    if (step.kind == TextStep::begin_with) return true;
  return false;
}

class Comparison {
 public:
  Comparison(const Vocabulary& folder, const Vocabulary& gguf)
      : folder_(folder), gguf_(gguf), soft_prefix_(has_soft_prefix(folder)) {}

  void run() const {
    const int32_t n = gguf_.vocabulary().size();
    for (int32_t id = 0; id < n; ++id) {
      // Neighbours in the vocabulary are much alike: the second one is from anywhere.
      const auto other = static_cast<int32_t>((static_cast<int64_t>(id) * 7919 + 13) % n);
      if (!is_text(id)) continue;
      compare(folder_.piece(id));
      if (is_text(other)) compare(folder_.piece(id) + folder_.piece(other));
    }
  }

  /// Ids that end an answer in the folder and not in the file.
  std::vector<int32_t> lost_ends() const {
    std::vector<int32_t> out;
    for (const int32_t id : folder_.eog_ids())
      if (!gguf_.is_eog(id) && id < gguf_.vocabulary().size()) out.push_back(id);
    return out;
  }
  const Tokenizer& gguf() const { return gguf_; }

 private:
  bool is_text(int32_t id) const {
    return folder_.type(id) == TokenType::normal && gguf_.type(id) == TokenType::normal;
  }

  void compare(const std::string& text) const {
    if (utf8_first_bad(text) != text.size() || (soft_prefix_ && text.starts_with(' '))) return;
    const std::vector<int32_t> want = folder_.encode(text, false, false), got = gguf_.encode(text, false, false);
    if (want == got || has_special(want)) return;
    throw Error(ErrorKind::bad_file, escaped(folder_.vocabulary().source),
                "the tokenizer is not the same in a GGUF file: \"" + escaped(text) + "\" is encoded differently",
                ids_text(got), ids_text(want));
  }

  // A token that is looked for in all texts: what stands beside it is another matter in the two forms.
  bool has_special(const std::vector<int32_t>& ids) const {
    for (const int32_t id : ids)
      if (folder_.type(id) != TokenType::normal && folder_.type(id) != TokenType::byte) return true;
    return false;
  }

  static std::string ids_text(const std::vector<int32_t>& ids) {
    std::string out;
    for (size_t i = 0; i < ids.size() && i < 12; ++i) out += (i ? " " : "") + std::to_string(ids[i]);
    return out;
  }

  Tokenizer folder_, gguf_;
  bool soft_prefix_;
};

}  // namespace

void check_converted(const Vocabulary& folder, Vocabulary& gguf, std::vector<std::string>& notes) {
  Checkpoint file;  // what a reader will find
  file.path = gguf.source;
  put_vocabulary(gguf, file);
  const Comparison comparison(folder, *vocabulary_from(file));
  comparison.run();
  const Vocabulary& completed = comparison.gguf().vocabulary();
  for (const int32_t id : comparison.lost_ends()) {
    if (completed.eot < 0 && gguf.eot < 0) {
      gguf.eot = id;
    } else if (completed.eom < 0 && gguf.eom < 0) {
      gguf.eom = id;
    } else {
      notes.push_back("token " + std::to_string(id) + " \"" + escaped(completed.tokens[static_cast<size_t>(id)]) +
                      "\" ends answers too, and GGUF files have no key left for it");
    }
  }
}

}  // namespace infer
