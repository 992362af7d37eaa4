// `infer perplexity`: the number that llama.cpp's tool of that name prints, and with a reference the statistics that
// its
// --kl-divergence prints, without a file of logits in between.
#include <fmt/format.h>

#include <memory>
#include <optional>

#include "tools/common.h"
#include "tools/quality.h"
#include "tools/terminal.h"

namespace infer::tools {
namespace {

struct Flags {
  ModelFlags model;
  EngineFlags engine;
  std::string file, reference;
  int64_t n_windows = -1, first = -1;
  bool divergence = false;
};

Arguments arguments(Flags& f) {
  f.engine.n_ctx = 512;
  f.engine.n_ubatch = 0;  // until the device is known
  Arguments a(
      "infer perplexity -m MODEL -f TEXT [-c 512] [--kl-divergence --reference M0]",
      "Perplexity over windows of -c tokens (512 as in llama.cpp), second half of each scored.\nAs many windows as fit "
      "into -b are computed together.\n");
  f.model.add_to(a);
  add_quant_flags(a, f.model.load);
  f.engine.add_to(a);
  a.text({"-f", "--file"}, "TEXT", "the text", &f.file);
  a.text({"--reference"}, "M0", "also the KL divergence from this model, computed beside the other", &f.reference);
  a.flag({"--kl-divergence"}, "the same; needs --reference", &f.divergence);
  a.add({"--kl-divergence-base"}, "FILE", "", [](const std::string&) {
    throw Error(ErrorKind::usage, "--kl-divergence-base",
                "no file of logits is written or read: --reference MODEL computes them beside the model's");
  });
  a.integer({"--chunks"}, "N", "windows to score (default: all)", &f.n_windows, -1, 1 << 30);
  a.integer({"--first"}, "N", "first position of a window whose prediction counts (default: half of -c)", &f.first, 0,
            1 << 24);
  return a;
}

/// The model to compare with: computed as usual, in other formats and ways than the model.
std::optional<Model> open_reference(const Flags& f, const Model& model, ModelFlags& flags) {
  if (f.reference.empty()) return std::nullopt;
  flags.path = f.reference;
  flags.load.act.clear(), flags.load.unfused.clear(), flags.load.fusion = true;
  flags.load.overrides.clear(), flags.load.rope = {};
  flags.load.quant.clear();
  Model reference = flags.open();
  require_same_vocabulary(model, reference, "--reference");
  return reference;
}

std::string signed_line(const char* label, const Estimate& e) {
  return fmt::format("{:30}: {:10.6f} ± {:10.6f}\n", label, e.value, e.error);
}

// Labels, order and digits of llama.cpp's tool, which scripts look for.
std::string statistics(const Quality& q) {
  std::string out = "\n====== Perplexity statistics ======\n";
  out += signed_line("Mean PPL(Q)", q.ppl()) + signed_line("Mean PPL(base)", q.base_ppl());
  out += fmt::format("{:30}: {:6.2f}%\n", "Cor(ln(PPL(Q)), ln(PPL(base)))", 100 * q.correlation());
  out += signed_line("Mean ln(PPL(Q)/PPL(base))", q.log_ratio()) + signed_line("Mean PPL(Q)/PPL(base)", q.ratio());
  out += signed_line("Mean PPL(Q)-PPL(base)", q.difference());

  out += fmt::format("\n====== KL divergence statistics ======\nMean    KLD: {:10.6f} ± {:10.6f}\n", q.kl().value,
                     q.kl().error);
  for (const auto& [label, p] : {std::pair("Maximum", 1.0),
                                 {"99.9%  ", 0.999},
                                 {"99.0%  ", 0.99},
                                 {"95.0%  ", 0.95},
                                 {"90.0%  ", 0.9},
                                 {"Median ", 0.5},
                                 {"10.0%  ", 0.1},
                                 {" 5.0%  ", 0.05},
                                 {" 1.0%  ", 0.01},
                                 {" 0.1%  ", 0.001},
                                 {"Minimum", 0.0}})
    out += fmt::format("{} KLD: {:10.6f}\n", label, q.kl_percentile(p));

  out += fmt::format("\n====== Token probability statistics ======\nMean    Δp: {:6.3f} ± {:5.3f} %\n",
                     100 * q.delta_p().value, 100 * q.delta_p().error);
  for (const auto& [label, p] : {std::pair("Maximum", 1.0),
                                 {"99.9%  ", 0.999},
                                 {"99.0%  ", 0.99},
                                 {"95.0%  ", 0.95},
                                 {"90.0%  ", 0.9},
                                 {"75.0%  ", 0.75},
                                 {"Median ", 0.5},
                                 {"25.0%  ", 0.25},
                                 {"10.0%  ", 0.1},
                                 {" 5.0%  ", 0.05},
                                 {" 1.0%  ", 0.01},
                                 {" 0.1%  ", 0.001},
                                 {"Minimum", 0.0}})
    out += fmt::format("{} Δp: {:6.3f}%\n", label, 100 * q.delta_p_percentile(p));
  const Estimate rms = q.rms_delta_p(), same = q.same_top();
  out += fmt::format("RMS Δp    : {:6.3f} ± {:5.3f} %\n", 100 * rms.value, 100 * rms.error);
  return out + fmt::format("Same top p: {:6.3f} ± {:5.3f} %\n\n", 100 * same.value, 100 * same.error);
}

}  // namespace

int perplexity_command(const Args& args) {
  Flags f;
  Arguments a = arguments(f);
  if (!parse_or_help(a, args)) return 0;
  if (f.file.empty()) throw Error(ErrorKind::usage, "-f", "no text file given");
  if (f.divergence && f.reference.empty())
    throw Error(ErrorKind::usage, "--kl-divergence", "needs a model to compare with: --reference M0");

  const Model model = f.model.open();
  ModelFlags reference_flags = f.model;
  const std::optional<Model> reference = open_reference(f, model, reference_flags);
  const Windows windows = cut_windows(model, f.file, f.engine.n_ctx, f.first, f.n_windows);
  if (f.engine.n_ubatch == 0) f.engine.n_ubatch = default_ubatch(model);
  EngineOptions options = f.engine.options(f.model);
  fit_to_windows(options, windows, model.vocab());
  Engine engine(model, options);
  announce_device(model, engine, f.model.load);
  std::unique_ptr<Engine> base;
  if (reference) {
    EngineOptions usual = options;
    usual.act.clear(), usual.unfused.clear(), usual.fusion = true;
    base = std::make_unique<Engine>(*reference, usual);
  }

  const Quality quality =
      measure_quality(engine, base.get(), windows, options.n_seqs, [](int64_t n_done, const Quality& so_far) {
        write_out(fmt::format("[{}]{:.4f},", n_done, so_far.ppl().value), true);
        return !interrupted();
      });
  if (quality.n() == 0) return 0;  // Ctrl-C came first
  write_out("\n");
  if (quality.has_base()) write_out(statistics(quality));
  const Estimate ppl = quality.ppl();
  write_out(fmt::format("Final estimate: PPL = {:.4f} +/- {:.5f}\n", ppl.value, ppl.error));
  return 0;
}

}  // namespace infer::tools
