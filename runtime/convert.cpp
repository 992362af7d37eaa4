// The order of the steps, and the proof that what comes out can be read back.
#include "runtime/convert.h"

#include "models/arch.h"
#include "models/weights.h"
#include "runtime/hf_folder.h"

namespace infer {
namespace {

Checkpoint read_folder(const std::string& folder, const ConvertOptions& options) {
  LoadOptions load;
  load.n_threads = options.n_threads;
  load.progress = options.progress;
  load.device = options.exact ? "ref" : "cpu";
  return read_hf_folder(folder, load);
}

void require_runnable(const Checkpoint& checkpoint) {
  Weights unused;
  bind_weights(checkpoint, read_config(checkpoint), unused);
}

void add_vocabulary(const std::string& folder, Converted& out) {
  const std::optional<Vocabulary> vocabulary = read_hf_vocabulary(folder);
  if (!vocabulary) {
    out.checkpoint.metadata.insert_or_assign("tokenizer.ggml.model", Value{std::string("no_vocab"), "string"});
    out.notes.push_back("the folder has neither tokenizer.json nor tokenizer.model: a file without a vocabulary");
    return;
  }
  out.notes.insert(out.notes.end(), vocabulary->warnings.begin(), vocabulary->warnings.end());
  const HostTensor* embedding = out.checkpoint.find_tensor("token_embd.weight");
  put_vocabulary(convert_vocabulary(*vocabulary, embedding->dims[0], out.notes), out.checkpoint);
}

}  // namespace

Converted convert_folder(const std::string& folder, const ConvertOptions& options) {
  Converted out;
  out.checkpoint = read_folder(folder, options);
  for (const std::string& warning : out.checkpoint.warnings)  // less what the person at `run` could do about it
    out.notes.push_back(warning.substr(0, warning.find("; --quant")));
  require_runnable(out.checkpoint);  // sizes and shapes are what they should be from here on
  convert_tensors(out.checkpoint);
  convert_metadata(out.checkpoint, out.notes);
  add_vocabulary(folder, out);
  require_runnable(out.checkpoint);
  return out;
}

}  // namespace infer
