// The flags of RopeOptions: llama.cpp's names, ranges and values that mean "as in the file".
#include <algorithm>

#include "tools/common.h"

namespace infer::tools {
namespace {

constexpr double kMostScale = 1e6;

/// A number in [min, max], or `unset`.
double parse_or_unset(const char* flag, const std::string& text, double unset, double min, double max) {
  const double value = parse_real(flag, text, std::min(unset, min), max);
  if (value != unset && value < min) parse_real(flag, text, min, max);  // throws with the range in its message
  return value;
}

}  // namespace

void add_rope_flags(Arguments& a, RopeOptions& rope) {
  a.add({"--rope-scaling"}, "TYPE", "scaling of rotations instead of the model's: none, linear, yarn, dynamic",
        [&rope](const std::string& t) {
          for (const char* known : {"none", "linear", "yarn", "dynamic"})
            if (t == known) return rope.scaling = t, void();
          throw Error(ErrorKind::usage, "--rope-scaling", "unknown", "'" + escaped(t) + "'",
                      "none, linear, yarn, dynamic");
        });
  a.add({"--rope-scale"}, "N", "stretch the context by this factor", [&rope](const std::string& t) {
    rope.freq_scale = 1 / parse_real("--rope-scale", t, 1 / kMostScale, kMostScale);
  });
  const auto number = [&](const char* flag, const char* help, double* target, double unset, double min, double max) {
    a.add({flag}, "N", help, [=](const std::string& t) { *target = parse_or_unset(flag, t, unset, min, max); });
  };
  number("--rope-freq-base", "base of the frequencies (default 0: the model's)", &rope.freq_base, 0, 1, 1e12);
  number("--rope-freq-scale", "factor on positions, 1 / --rope-scale (default 0: the model's)", &rope.freq_scale, 0,
         1 / kMostScale, kMostScale);
  a.integer({"--yarn-orig-ctx"}, "N", "context that yarn and dynamic stretch (default 0: the model's)",
            &rope.yarn_orig_ctx, 0, 1 << 24);
  number("--yarn-ext-factor", "yarn: share of frequencies that stay, 0 is linear (default -1: the model's, or 1)",
         &rope.yarn_ext_factor, -1, 0, 1);
  number("--yarn-attn-factor", "factor on rotated q and k (default -1: the model's, or 1)", &rope.yarn_attn_factor, -1,
         1e-3, 1e3);
  number("--yarn-beta-fast", "yarn: turns from which frequencies stay (default -1: the model's, or 32)",
         &rope.yarn_beta_fast, -1, 1e-3, 1e6);
  number("--yarn-beta-slow", "yarn: turns up to which they are stretched whole (default -1: the model's, or 1)",
         &rope.yarn_beta_slow, -1, 1e-3, 1e6);
}

}  // namespace infer::tools
