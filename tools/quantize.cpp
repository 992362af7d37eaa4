// `infer quantize`: a model with its weights in another format. The table of tensors is the answer of a dry run and
// goes to stdout then; else only what is unusual is printed, beside a progress bar.
#include <fmt/format.h>

#include <map>

#include "tools/common.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

constexpr double kMib = 1048576.0;

std::pair<std::string, std::string> parse_tensor_type(const std::string& text) {
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
    throw Error(ErrorKind::usage, "--tensor-type", "bad value", "'" + escaped(text) + "'", "NAME=TYPE");
  return {text.substr(0, equals), text.substr(equals + 1)};
}

std::string line_of(const QuantizedTensor& t) {
  const double before = static_cast<double>(t.bytes) / kMib, after = static_cast<double>(t.new_bytes) / kMib;
  const std::string shape = fmt::format("[{}]", listed(t.dims));
  if (t.from == t.to)
    return fmt::format("{:36} {:>20} {:>6}           {:10.2f} MiB\n", escaped(t.name), shape, t.from, before);
  return fmt::format("{:36} {:>20} {:>6} -> {:6} {:10.2f} -> {:.2f} MiB\n", escaped(t.name), shape, t.from, t.to,
                     before, after);
}

std::string summary_of(const QuantizeReport& r) {
  const auto bits = [&](size_t bytes) {
    return 8.0 * static_cast<double>(bytes) / static_cast<double>(std::max<int64_t>(1, r.n_weights));
  };
  return fmt::format("model size {:.2f} MiB ({:.2f} bits a weight) -> {:.2f} MiB ({:.2f})\n",
                     static_cast<double>(r.bytes) / kMib, bits(r.bytes), static_cast<double>(r.new_bytes) / kMib,
                     bits(r.new_bytes));
}

std::string types() {
  std::string out, line = "  ";
  for (const std::string& name : quantize_types()) {
    if (line.size() + name.size() > 100) out += line + "\n", line = "  ";
    line += name + " ";
  }
  return out + line + "\n";
}

struct Command {
  QuantizeOptions options;
  std::string in, out;
  bool verbose = false;
  int64_t n_threads = -1;

  Arguments arguments();
  void take(const std::string& text) {
    if (in.empty()) return in = text, void();
    // With --dry-run OUT may be missing: what is known as a type is one.
    if (!options.type.empty()) {
      if (!out.empty()) throw Error(ErrorKind::usage, "'" + escaped(text) + "'", "one argument too many; see --help");
      out = options.type;
    }
    options.type = text;
  }
};

Arguments Command::arguments() {
  Arguments a(
      "infer quantize IN OUT.gguf TYPE",
      "Writes a model, a GGUF file or a Hugging Face folder, as a GGUF file with its weights in TYPE. OUT gets "
      "its name when\nit is complete. TYPE, in upper or lower case, is a format or one of llama.cpp's mixtures:\n" +
          types());
  a.positional("IN OUT TYPE", [this](const std::string& t) { take(t); });
  a.group("What");
  a.flag({"--allow-requantize"}, "also go from weights that are quantised already (errors add up)",
         &options.allow_requantize);
  a.flag({"--pure"}, "all tensors in one format, no mixture", &options.pure);
  a.add({"--tensor-type"}, "NAME=TYPE", "a format for tensors whose name holds NAME (a regular expression); repeatable",
        [this](const std::string& t) { options.tensor_types.push_back(parse_tensor_type(t)); });
  a.text({"--output-tensor-type"}, "TYPE", "format of the output head", &options.output_tensor_type);
  a.text({"--token-embedding-type"}, "TYPE", "format of the token embedding", &options.token_embedding_type);
  a.flag({"--leave-output-tensor"}, "leave output.weight as it is", &options.leave_output_tensor);
  a.text({"--imatrix"}, "FILE", "importance matrix (GGUF): errors go where the model notices them least",
         &options.imatrix);
  a.group("How");
  a.flag({"--dry-run"}, "print the sizes, compute and write nothing; OUT may be left out", &options.dry_run);
  a.integer({"-t", "--threads"}, "N", "threads (default: one per physical core)", &n_threads, -1, 1024);
  a.flag({"-v", "--verbose"}, "print every tensor", &verbose);
  return a;
}

/// "blk.0.attn_q.weight", "blk.0.attn_q.weight and 89 more".
std::string first_of(const std::vector<std::string>& names) {
  return escaped(names.front()) + (names.size() > 1 ? fmt::format(" and {} more", names.size() - 1) : "");
}

void check(const Command& c) {
  const char* missing = c.in.empty()                          ? "IN"
                        : c.options.type.empty()              ? "TYPE"
                        : c.out.empty() && !c.options.dry_run ? "OUT"
                                                              : nullptr;
  if (missing) throw Error(ErrorKind::usage, missing, "is missing: infer quantize IN OUT.gguf TYPE; see --help");
}

}  // namespace

int quantize_command(const Args& args) {
  Command c;
  Arguments a = c.arguments();
  if (!parse_or_help(a, args)) return 0;
  check(c);
  c.options.n_threads = c.n_threads > 0 ? static_cast<int>(c.n_threads) : 0;
  install_terminate_as_interrupt();
  explain_bus_error(c.in);
  ProgressBar bar("quantizing", true);
  c.options.progress = [&](double fraction) {
    bar.update(fraction);
    return !interrupted();
  };
  std::map<std::string, std::vector<std::string>> replaced;
  c.options.on_tensor = [&](const QuantizedTensor& t) {
    if (c.options.dry_run) {
      write_out(line_of(t));
    } else if (c.verbose) {
      bar.clear();
      note("{}", line_of(t));
    }
    if (!t.note.empty()) replaced[t.note].push_back(t.name);
  };
  const QuantizeReport report = quantize(c.in, c.out, c.options);
  bar.clear();
  for (const auto& [text, names] : replaced) note("warning: {}: {}\n", first_of(names), text);
  for (const std::string& n : report.notes) note("note: {}\n", n);
  write_out(summary_of(report));
  if (c.options.dry_run) return write_out(fmt::format("the file would take {} bytes\n", report.file_bytes)), 0;
  note("{}: {} in {:.1f} s, {:.0f} million weights/s\n", escaped(c.out, 4096),
       human_bytes(static_cast<double>(report.file_bytes)), report.seconds,
       static_cast<double>(report.n_weights) / 1e6 / report.seconds);
  return 0;
}

}  // namespace infer::tools
