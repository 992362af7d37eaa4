// Parsing, help and suggestions for the flag tables of arguments.h.
#include "tools/arguments.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace infer::tools {
namespace {

// Flags that llama.cpp knows and infer does not have: refused by name, so that nobody believes they had an effect.
const char kForeignFlags[] =
    " "
    "--xtc-probability --xtc-threshold --dry-multiplier --dry-base --dry-allowed-length --dry-penalty-last-n "
    "--dry-sequence-breaker --mirostat --mirostat-lr --mirostat-ent --dynatemp-range --dynatemp-exp --samplers "
    "--sampler-seq --sampling-seq --top-nsigma --top-n-sigma --adaptive-target --adaptive-decay --grammar "
    "--grammar-file -j --json-schema -jf --json-schema-file --keep --context-shift --no-context-shift -np "
    "--parallel -cb --cont-batching -kvu --kv-unified --swa-full -ctxcp -hf -hfr --hf-repo -hff --hf-file -hft "
    "--hf-token -mu --model-url -dr --docker-repo --offline -sm --split-mode -ts --tensor-split -mg --main-gpu "
    "-fit --fit -fitt --fit-target -fitc --fit-ctx -ot --override-tensor -cmoe --cpu-moe -ncmoe --n-cpu-moe -md "
    "--model-draft --spec-type --spec-draft-n-max --draft --draft-max --draft-min --draft-p-min --lora "
    "--lora-scaled --control-vector --control-vector-scaled "
    "-rea --reasoning --reasoning-budget --reasoning-format --no-jinja --skip-chat-parsing --mlock -dio "
    "--direct-io --numa --poll --prio -C --cpu-mask -Cr --cpu-range --cpu-strict -nkvo --no-kv-offload -nr "
    "--no-repack -dt --defrag-thold --slot-save-path --slots --port --host --api-key -gan --grp-attn-n -gaw "
    "--grp-attn-w --image -mm --mmproj --audio --prompt-cache --prompt-cache-all --prompt-cache-ro --in-prefix "
    "--in-suffix --in-prefix-bos --infill --embedding --embeddings --pooling --rerank -mli --multiline-input "
    "--simple-io -if --interactive-first -sp -ptc --print-token-count --verbose-prompt --log-file --log-jsonl "
    "--log-disable --log-prefix --log-timestamps -lv --verbosity --log-verbosity -bf --binary-file -oe "
    "--output-err -npp -ntg -npl -pps -rpc --rpc --kl-divergence-base --hellaswag --winogrande --multiple-choice "
    "--ppl-stride ";

// Insertions, deletions, substitutions and swaps of neighbours, which fingers like best.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> before, above(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    before = above, above = row;
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1])});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row[b.size()];
}

// "--ctx-size" to "INFER_CTX_SIZE"; "" for a short name, which has none.
std::string environment_name(const std::string& flag) {
  if (flag.rfind("--", 0) != 0) return "";
  std::string name = "INFER_" + flag.substr(2);
  for (char& c : name) c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

}  // namespace

std::string nearest(const std::string& name, const std::vector<std::string>& known) {
  std::string best;
  size_t least = std::max<size_t>(2, name.size() / 3) + 1;
  for (const std::string& k : known) {
    const size_t d = edit_distance(name, k);
    if (d < least) least = d, best = k;
  }
  return best;
}

int64_t parse_integer(const std::string& what, const std::string& text, int64_t min, int64_t max) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const bool plus = text.size() > 1 && text[0] == '+' && text[1] != '-';
  const char* begin = text.data() + (plus ? 1 : 0);
  const auto [stop, error] = std::from_chars(begin, end, value);
  const bool number = error == std::errc() && stop == end && !text.empty();
  if (number && value >= min && value <= max) return value;
  std::string allowed = "an integer";
  if (min > std::numeric_limits<int64_t>::min() && max < std::numeric_limits<int64_t>::max())
    allowed = fmt::format("an integer from {} to {}", min, max);
  else if (min > std::numeric_limits<int64_t>::min())
    allowed = fmt::format("an integer from {} up", min);
  throw Error(ErrorKind::usage, what, "bad value", "'" + escaped(text) + "'", allowed);
}

double parse_real(const std::string& what, const std::string& text, double min, double max) {
  char* stop = nullptr;
  const double value = std::strtod(text.c_str(), &stop);
  const bool number = !text.empty() && stop == text.c_str() + text.size() && std::isfinite(value);
  if (number && value >= min && value <= max) return value;
  throw Error(ErrorKind::usage, what, "bad value", "'" + escaped(text) + "'",
              fmt::format("a number from {:g} to {:g}", min, max));
}

std::vector<int32_t> parse_ids(const std::string& what, const std::string& text) {
  std::vector<int32_t> ids;
  std::string item;
  auto take = [&] {
    if (!item.empty()) ids.push_back(static_cast<int32_t>(parse_integer(what, item, 0, INT32_MAX)));
    item.clear();
  };
  for (char c : text) {
    if (c == ',' || c == ' ' || c == '\n' || c == '[' || c == ']')
      take();
    else
      item += c;
  }
  take();
  return ids;
}

Arguments& Arguments::group(const std::string& title) {
  group_ = title;
  return *this;
}

Arguments& Arguments::add(std::vector<std::string> names, std::string value, std::string help,
                          std::function<void(const std::string&)> set) {
  flags_.push_back({std::move(names), std::move(value), std::move(help), std::move(set), group_, false});
  return *this;
}

Arguments& Arguments::text(std::vector<std::string> names, std::string value, std::string help, std::string* target) {
  return add(std::move(names), std::move(value), std::move(help), [target](const std::string& t) { *target = t; });
}

Arguments& Arguments::integer(std::vector<std::string> names, std::string value, std::string help, int64_t* target,
                              int64_t min, int64_t max) {
  const std::string name = names.back();
  return add(std::move(names), std::move(value), std::move(help),
             [=](const std::string& t) { *target = parse_integer(name, t, min, max); });
}

Arguments& Arguments::real(std::vector<std::string> names, std::string value, std::string help, float* target,
                           float min, float max) {
  const std::string name = names.back();
  return add(std::move(names), std::move(value), std::move(help),
             [=](const std::string& t) { *target = static_cast<float>(parse_real(name, t, min, max)); });
}

Arguments& Arguments::flag(std::vector<std::string> names, std::string help, bool* target, bool becomes) {
  return add(std::move(names), "", std::move(help), [=](const std::string&) { *target = becomes; });
}

Arguments& Arguments::switch_or(std::vector<std::string> names, std::string value, std::string help,
                                std::function<void(const std::string&)> set) {
  add(std::move(names), std::move(value), std::move(help), std::move(set));
  flags_.back().optional = true;
  return *this;
}

Arguments& Arguments::ignored(std::vector<std::string> names, bool takes_value) {
  return add(std::move(names), takes_value ? "X" : "", "", [](const std::string&) {});
}

Arguments& Arguments::positional(std::string name, std::function<void(const std::string&)> set) {
  positional_name_ = std::move(name);
  positional_ = std::move(set);
  return *this;
}

const Flag* Arguments::find(const std::string& name) const {
  for (const Flag& f : flags_)
    if (std::find(f.names.begin(), f.names.end(), name) != f.names.end()) return &f;
  return nullptr;
}

std::vector<std::string> Arguments::flag_names() const {
  std::vector<std::string> all = {"-h", "--help"};
  for (const Flag& f : flags_) all.insert(all.end(), f.names.begin(), f.names.end());
  return all;
}

void Arguments::unknown(const std::string& name) const {
  if (name.find(' ') == std::string::npos && std::strstr(kForeignFlags, (" " + name + " ").c_str()))
    throw Error(ErrorKind::usage, name, "this flag of llama.cpp is not available in infer; see --help for what is");
  const std::string near = nearest(name, flag_names());
  throw Error(ErrorKind::usage, escaped(name),
              near.empty() ? "unknown flag; see --help" : "unknown flag; did you mean " + near + "?");
}

void Arguments::read_environment() const {
  for (const Flag& f : flags_)
    for (const std::string& flag_name : f.names) {
      const std::string name = environment_name(flag_name);
      const char* value = name.empty() ? nullptr : std::getenv(name.c_str());
      if (!value) continue;
      // A switch is on for anything but 0, off, no, false and the empty text, which leaves things as they are. The
      // others give the opposite of a pair, where there is one: INFER_MMAP=0 is --no-mmap.
      const std::string v = value;
      const bool off = v.empty() || v == "0" || v == "off" || v == "no" || v == "false";
      const bool on = v == "1" || v == "on" || v == "yes" || v == "true";
      const bool is_switch = f.value.empty() || (f.optional && (on || off));
      const Flag* meant = &f;
      if (is_switch && off) meant = v.empty() ? nullptr : find("--no-" + flag_name.substr(2));
      if (!meant) continue;
      try {
        meant->set(is_switch ? "" : v);
      } catch (const Error& e) {
        throw Error(ErrorKind::usage, "environment variable " + name + ": " + e.what());
      }
    }
}

bool Arguments::parse(const std::vector<std::string>& args) {
  read_environment();
  for (size_t i = 0; i < args.size(); ++i) {
    std::string name = args[i], value;
    if (name == "-h" || name == "--help") return false;
    const bool is_flag = name.size() > 1 && name[0] == '-';
    if (!is_flag) {
      if (!positional_) throw Error(ErrorKind::usage, "'" + escaped(name) + "'", "unexpected argument; see --help");
      positional_(name);
      continue;
    }
    const size_t equals = name.rfind("--", 0) == 0 ? name.find('=') : std::string::npos;
    const bool joined = equals != std::string::npos;
    if (joined) value = name.substr(equals + 1), name.resize(equals);
    const Flag* f = find(name);
    if (!f) unknown(name);
    if (f->value.empty()) {
      if (joined) throw Error(ErrorKind::usage, name, "this flag takes no value", "'" + escaped(value) + "'");
    } else if (!joined && !f->optional) {
      if (i + 1 >= args.size()) throw Error(ErrorKind::usage, name, "needs a value: " + f->value);
      value = args[++i];
    }
    f->set(value);
  }
  return true;
}

std::string Arguments::help() const {
  std::string out = "usage: " + usage_ + "\n" + summary_;
  std::string group = "\x01";
  for (const Flag& f : flags_) {
    if (f.help.empty()) continue;
    if (f.group != group) {
      group = f.group;
      out += "\n" + (group.empty() ? "Flags" : group) + ":\n";
    }
    std::string names = f.names[0];
    for (size_t i = 1; i < f.names.size(); ++i) names += ", " + f.names[i];
    if (f.optional)
      names += "[=" + f.value + "]";
    else if (!f.value.empty())
      names += " " + f.value;
    out += names.size() > 32 ? fmt::format("  {}\n  {:32} {}\n", names, "", f.help)
                             : fmt::format("  {:32} {}\n", names, f.help);
  }
  return out;
}

}  // namespace infer::tools
