// Sampling flags; see generation_flags.h.
#include "tools/generation_flags.h"

#include <fmt/format.h>

#include <cctype>
#include <cstdlib>
#include <limits>

#include "tools/terminal.h"

namespace infer::tools {
namespace {

// "15043-1.5", "15043+1", "15043-inf" (forbid).
std::pair<TokenId, float> parse_bias(const std::string& text) {
  const size_t sign = text.find_first_of("+-");
  if (sign == std::string::npos || sign == 0)
    throw Error(ErrorKind::usage, "--logit-bias", "bad value", "'" + escaped(text) + "'", "ID+BIAS or ID-BIAS");
  const auto id = static_cast<TokenId>(parse_integer("--logit-bias", text.substr(0, sign), 0, INT32_MAX));
  if (text.substr(sign) == "-inf") return {id, -std::numeric_limits<float>::infinity()};
  return {id, static_cast<float>(parse_real("--logit-bias", text.substr(sign), -1e9, 1e9))};
}

void take_author_value(Sampling& s, const std::string& key, double value) {
  const auto real = static_cast<float>(value);
  if (key == "temp" || key == "temperature") s.temperature = real;
  if (key == "top_k") s.top_k = static_cast<int>(value);
  if (key == "top_p") s.top_p = real;
  if (key == "min_p") s.min_p = real;
  if (key == "typ_p" || key == "typical_p") s.typical_p = real;
  if (key == "penalty_last_n") s.repeat_last_n = static_cast<int>(value);
  if (key == "penalty_repeat" || key == "repeat_penalty") s.repeat_penalty = real;
  if (key == "penalty_freq") s.frequency_penalty = real;
  if (key == "penalty_present") s.presence_penalty = real;
}

}  // namespace

void GenerationFlags::add_to(Arguments& a) {
  a.group("Sampling");
  auto real = [&](std::vector<std::string> names, std::string help, float* target, float min, float max) {
    const std::string name = names.back();
    a.add(std::move(names), "X", std::move(help), [=, this](const std::string& t) {
      given = true;
      *target = static_cast<float>(parse_real(name, t, min, max));
    });
  };
  auto integer = [&](std::vector<std::string> names, std::string help, int64_t* target, int64_t min, int64_t max) {
    const std::string name = names.back();
    a.add(std::move(names), "N", std::move(help), [=, this](const std::string& t) {
      given = true;
      *target = parse_integer(name, t, min, max);
    });
  };
  a.integer({"-s", "--seed"}, "N", "-1: random (default); else the same tokens every time", &sampling.seed, -1,
            UINT32_MAX);
  real({"--temp", "--temperature"}, "randomness; 0: always the likeliest token (default 0.80)", &sampling.temperature,
       0, 1e6f);
  integer({"--top-k"}, "draw from the N likeliest tokens; 0: off (default 40)", &top_k, 0, 1 << 24);
  real({"--top-p"}, "from the likeliest that together have probability X; 1: off (default 0.95)", &sampling.top_p, 0,
       1);
  real({"--min-p"}, "from those at least X times as likely as the likeliest; 0: off (default 0.05)", &sampling.min_p, 0,
       1);
  real({"--typical", "--typical-p"}, "from those of typical information, probability X in all; 1: off (default)",
       &sampling.typical_p, 0, 1);
  integer({"--repeat-last-n"}, "tokens that penalties look at (default 64; -1: all)", &repeat_last_n, -1, 1 << 24);
  real({"--repeat-penalty"}, "makes tokens seen lately less likely; 1: off (default)", &sampling.repeat_penalty, 0.01f,
       100);
  real({"--presence-penalty"}, "taken off the logits of tokens seen lately; 0: off (default)",
       &sampling.presence_penalty, -100, 100);
  real({"--frequency-penalty"}, "the same times how often they were seen; 0: off (default)",
       &sampling.frequency_penalty, -100, 100);
  a.add({"-l", "--logit-bias"}, "ID(+/-)B", "add B to a token's logit; -inf forbids it; may be repeated",
        [this](const std::string& t) { sampling.logit_bias.push_back(parse_bias(t)); });
  a.flag({"--ignore-eos"}, "go on past the end of the answer", &sampling.ignore_eos);
  a.group("Generation");
  a.integer({"-n", "--n-predict", "--predict"}, "N", "new tokens at most (default -1: until the end)", &n_predict, -2,
            1 << 30);
  a.add({"-r", "--reverse-prompt"}, "TEXT", "stop before this text; may be repeated",
        [this](const std::string& t) { stop.push_back(t); });
}

Sampling GenerationFlags::resolve(const Model& model) const {
  Sampling s = sampling;
  s.top_k = static_cast<int>(top_k);
  s.repeat_last_n = static_cast<int>(repeat_last_n);
  if (!given && !model.info().author_sampling.empty()) {
    note("sampling as the model's author set it:");
    for (const auto& [key, value] : model.info().author_sampling) {
      take_author_value(s, key, value);
      note(" {} {:g}", escaped(key), value);
    }
    note("\n");
  }
  validate(s);
  return s;
}

std::string unescape(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      out += text[i];
      continue;
    }
    const char c = text[++i];
    auto hex = [&](size_t k) { return k < text.size() && std::isxdigit(static_cast<unsigned char>(text[k])); };
    if (c == 'n')
      out += '\n';
    else if (c == 't')
      out += '\t';
    else if (c == 'r')
      out += '\r';
    else if (c == '"' || c == '\'' || c == '\\')
      out += c;
    else if (c == 'x' && hex(i + 1) && hex(i + 2))
      out += static_cast<char>(std::strtol(text.substr(i + 1, 2).c_str(), nullptr, 16)), i += 2;
    else
      out += '\\', out += c;
  }
  return out;
}

}  // namespace infer::tools
