// `infer doctor`: what this machine can do, what holds it back, and what a model will reach on it.
#include "tools/doctor.h"

#include <fmt/format.h>

#include <cstdlib>

#include "tools/terminal.h"

namespace infer::tools {
namespace {

using nlohmann::ordered_json;

const char* name_of(Mark mark) {
  switch (mark) {
    case Mark::plain:
      return "fact";
    case Mark::good:
      return "ok";
    case Mark::warn:
      return "warning";
    case Mark::bad:
      return "impossible";
  }
  return "?";
}

// Colours of stdout: colour() of terminal.h asks about stderr.
std::string painted(Mark mark) {
  static const bool colours = is_terminal(1) && !std::getenv("NO_COLOR");
  const auto with = [](const char* sequence, const char* sign) {
    return colours ? std::string(sequence) + sign + "\033[0m" : std::string(sign);
  };
  switch (mark) {
    case Mark::good:
      return with("\033[32m", "✔");
    case Mark::warn:
      return with("\033[33m", "!");
    case Mark::bad:
      return with("\033[31m", "✘");
    case Mark::plain:
      break;
  }
  return " ";
}

std::string title_of(std::string key) {
  for (char& c : key)
    if (c == '_') c = ' ';
  return key;
}

std::string as_text(const Section& section) {
  std::string out = section.title + '\n';
  for (const Finding& f : section.findings) {
    out += fmt::format("  {} {:15} {}\n", painted(f.mark), title_of(f.key), f.text);
    if (!f.advice.empty()) out += fmt::format("    {:15} -> {}\n", "", f.advice);
  }
  return out;
}

ordered_json as_json(const Section& section) {
  ordered_json out = ordered_json::object();
  for (const Finding& f : section.findings) {
    ordered_json j = {{"mark", name_of(f.mark)}, {"text", f.text}, {"value", f.value}};
    if (!f.advice.empty()) j["advice"] = f.advice;
    // What there is several times is numbered: nothing is lost.
    std::string key = f.key;
    for (int n = 2; out.contains(key); ++n) key = f.key + '_' + std::to_string(n);
    out[key] = std::move(j);
  }
  return out;
}

int count(const std::vector<Section>& sections, Mark mark) {
  int n = 0;
  for (const Section& s : sections)
    for (const Finding& f : s.findings) n += f.mark == mark;
  return n;
}

void print(const std::vector<Section>& sections, bool with_model) {
  for (const Section& s : sections)
    if (!s.findings.empty()) fmt::print("{}", as_text(s));
  const int n_bad = count(sections, Mark::bad), n_warn = count(sections, Mark::warn);
  const char* const what = with_model ? "the model runs here" : "models can run here";
  if (n_bad)
    fmt::print("\n{} the model cannot run here\n", painted(Mark::bad));
  else if (n_warn)
    fmt::print("\n{} {}; {} thing{} to look at\n", painted(Mark::warn), what, n_warn, n_warn == 1 ? "" : "s");
  else
    fmt::print("\n{} {}; nothing is off\n", painted(Mark::good), what);
}

void print_json(const std::vector<Section>& sections, int status) {
  ordered_json out = {
      {"version", fmt::format("{}.{}.{}", INFER_VERSION_MAJOR, INFER_VERSION_MINOR, INFER_VERSION_PATCH)},
      {"status", status},
      {"n_warnings", count(sections, Mark::warn)}};
  for (const Section& s : sections) out[s.key] = as_json(s);
  fmt::print("{}\n", out.dump(1, ' ', false, ordered_json::error_handler_t::replace));
}

// Without a model nobody else looks at the name.
void check_device(const std::string& device) {
  const bool number = device.starts_with("cuda:") && device.size() > 5 && device.size() < 9 &&
                      device.find_first_not_of("0123456789", 5) == device.npos;
  if (number || device == "auto" || device == "cuda" || device == "cpu" || device == "ref") return;
  throw Error(ErrorKind::usage, "device", "no such device", '"' + escaped(device) + '"',
              "auto, cuda, cuda:N, cpu, ref");
}

void declare(Arguments& a, DoctorFlags& f) {
  a.positional("MODEL", [&f](const std::string& t) { f.model.path = t; });
  a.group("Model");
  f.model.add_to(a);
  f.engine.add_to(a);
  a.group("Output");
  a.add({"-o", "--output"}, "FORM", "text (default) or json: one object", [&f](const std::string& t) {
    if (t != "text" && t != "json")
      throw Error(ErrorKind::usage, "-o", "unknown form", "'" + escaped(t) + "'", "text, json");
    f.form = t;
  });
  a.flag({"--no-measure"}, "only what the system says: no bandwidth, no peaks", &f.measure, false);
}

}  // namespace

int doctor_command(const Args& args) {
  DoctorFlags f;
  Arguments a(
      "infer doctor [-m MODEL] [-o json]",
      "What this machine can do, measured, and what holds it back; with a model also whether it fits and how quick\n"
      "it can be. Exit status 0 unless something makes running impossible: then that of infer run.\n");
  declare(a, f);
  if (!parse_or_help(a, args)) return 0;
  check_device(f.model.load.device);
  Measured measured;
  int status = 0;
  // The host first: what is measured on a GPU leaves threads of the driver behind.
  std::vector<Section> sections = check_host(f, measured);
  const std::vector<Section> gpus = check_gpus(f, measured);
  sections.insert(sections.begin(), gpus.begin(), gpus.end());
  sections.push_back(check_storage(f));
  if (!f.model.path.empty()) sections.push_back(check_model(f, measured, status));
  if (interrupted()) return 130;
  if (f.form == "json")
    print_json(sections, status);
  else
    print(sections, !f.model.path.empty());
  return status;
}

}  // namespace infer::tools
