// `infer imatrix`: measures on a text which inputs of a model's matrices matter, for `infer quantize --imatrix`. Flags
// as in llama.cpp's llama-imatrix. All it says goes to stderr; the file is the answer.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "tools/common.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

struct Command {
  ModelFlags model;
  ImatrixOptions options;
  std::string file, out = "imatrix.gguf";
  int64_t ignored_batch = 0;

  Arguments arguments();
};

Arguments Command::arguments() {
  Arguments a("infer imatrix -m MODEL -f TEXT [-o imatrix.gguf]",
              "Computes an importance matrix: for every matrix of the model, the sum of squares of each column of its "
              "inputs.\n`infer quantize --imatrix` then puts errors where the model notices them least. Take the model "
              "in F16 or Q8_0\nand a text like those it will read; some 100 chunks are enough.\n");
  model.add_to(a);
  a.group("What");
  a.text({"-f", "--file"}, "TEXT", "the text", &file);
  a.text({"-o", "--output", "--output-file"}, "FILE", "the importance matrix (default imatrix.gguf)", &out);
  a.integer({"-c", "--ctx-size"}, "N", "tokens to a chunk (default 512)", &options.n_ctx, 8, 1 << 20);
  a.integer({"--chunks"}, "N", "chunks to take (default -1: all)", &options.n_chunks, -1, 1 << 30);
  a.integer({"--chunk", "--from-chunk"}, "N", "chunks to pass over first", &options.first_chunk, 0, 1 << 30);
  a.flag({"--process-output"}, "measure the output head too", &options.process_output);
  a.flag({"--parse-special"}, "recognise control tokens inside the text", &options.parse_special);
  a.add({"--in-file"}, "FILE", "add the sums of this importance matrix; repeatable; without -f only merge",
        [this](const std::string& t) { options.in_files.push_back(t); });
  a.group("How");
  a.integer({"-ofreq", "--output-frequency"}, "N", "write FILE every N chunks (default 10; 0: at the end only)",
            &options.save_every, 0, 1 << 30);
  a.integer({"-ub", "--ubatch-size"}, "N", "tokens computed at a time (default 512)", &options.n_ubatch, 1, 1 << 16);
  a.integer({"-b", "--batch-size"}, "N", "", &ignored_batch, 1, 1 << 20);
  a.ignored({"--no-ppl"}, false);  // there is no perplexity here: infer perplexity computes it
  a.add({"--output-format"}, "FORMAT", "", [](const std::string& t) {
    if (t != "gguf")
      throw Error(ErrorKind::usage, "--output-format", "cannot be written", "'" + escaped(t) + "'", "gguf");
  });
  return a;
}

/// The CPU unless a device was named: sums are taken in host memory, whatever computes.
void choose_device(LoadOptions& load) {
  if (load.device != "auto") return;
  load.device = "cpu";
  const std::vector<std::string> devices = list_devices();
  const bool gpu =
      std::any_of(devices.begin(), devices.end(), [](const std::string& d) { return d.starts_with("cuda"); });
  if (gpu) note("device: cpu, where the inputs are looked at; --device cuda computes on the GPU\n");
}

void say(const ImatrixReport& r, const std::string& out) {
  note("{}: {} tensors, {} chunks", escaped(out, 4096), r.n_tensors, r.all_chunks);
  if (r.all_chunks != r.n_chunks && r.n_chunks > 0) note(", {} of them new", r.n_chunks);
}

int merge(const Command& c) {
  say(merge_imatrix(c.options.in_files, c.out), c.out);
  note("\n");
  return 0;
}

int collect(Command& c) {
  std::error_code not_there;
  if (std::filesystem::equivalent(c.file, c.out, not_there))
    throw Error(ErrorKind::usage, "-o", "is the text itself; write to another file");
  const std::string text = read_text_file(c.file);
  choose_device(c.model.load);
  const Model model = c.model.open();
  c.options.dataset = c.file;
  c.options.n_threads = c.model.load.n_threads;
  c.options.isa = c.model.load.isa;
  ProgressBar bar("measuring", true);
  c.options.progress = [&](double fraction) {
    bar.update(fraction);
    return !interrupted();
  };
  const ImatrixReport report = collect_imatrix(model, text, c.out, c.options);
  bar.clear();
  if (report.cancelled) {
    if (report.n_chunks == 0) return note("interrupted; nothing was written\n"), 130;
    say(report, c.out);
    note("; interrupted, to go on: --in-file {} --chunk {}\n", escaped(c.out, 4096),
         c.options.first_chunk + report.n_chunks);
    return 130;
  }
  say(report, c.out);
  note(", {:.1f} s, {:.0f} tokens/s\n", report.seconds,
       static_cast<double>(report.n_chunks * c.options.n_ctx) / report.seconds);
  return 0;
}

}  // namespace

int imatrix_command(const Args& args) {
  Command c;
  Arguments a = c.arguments();
  if (!parse_or_help(a, args)) return 0;
  install_terminate_as_interrupt();
  if (c.file.empty() && !c.options.in_files.empty()) return merge(c);
  if (c.file.empty()) throw Error(ErrorKind::usage, "-f", "no text file given");
  return collect(c);
}

}  // namespace infer::tools
