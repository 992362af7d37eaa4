// See startup_phases.h.
#include "tools/startup_phases.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "infer/error.h"
#include "tools/compare.h"

namespace infer::tools {
namespace {

double median(std::vector<double> values) { return median_interval(std::move(values)).middle; }

double median_of(const std::vector<Start>& starts, double Start::*field) {
  std::vector<double> values;
  for (const Start& s : starts) values.push_back(s.*field);
  return values.empty() ? 0 : median(values);
}

}  // namespace

std::vector<StartPhase> start_phases(const std::vector<Start>& cold, const std::vector<Start>& warm) {
  const auto both = [&](const char* name, double Start::*field) {
    return StartPhase{name, median_of(cold, field), median_of(warm, field)};
  };
  StartPhase parse = both("parse", &Start::open);
  const StartPhase tokenizer = both("tokenizer", &Start::tokenizer);
  parse.cold += tokenizer.cold, parse.warm += tokenizer.warm;
  StartPhase convert = both("convert", &Start::convert), pack = both("pack", &Start::weights), read{"read", 0, 0};
  // A cold cache makes each of these wait; what is left is what they take by themselves.
  for (StartPhase* p : {&parse, &convert, &pack}) {
    if (cold.empty() || p->cold <= p->warm) continue;
    read.cold += p->cold - p->warm;
    p->cold = p->warm;
  }
  std::vector<StartPhase> out = {both("exec", &Start::exec),
                                 parse,
                                 both("device", &Start::device),
                                 read,
                                 convert,
                                 pack,
                                 both("engine", &Start::engine),
                                 both("capture", &Start::capture),
                                 both("prefill", &Start::prefill),
                                 both("first token", &Start::first_token)};
  out.push_back(both("in all", &Start::total));
  return out;
}

Start parse_marks(const std::string& text, int64_t started_ns) {
  try {
    const auto j = nlohmann::json::parse(text);
    const auto ms = [&](const char* key) { return j.at(key).get<double>() * 1e3; };
    Start s;
    s.exec = static_cast<double>(j.at("main_ns").get<int64_t>() - started_ns) / 1e6;
    s.open = ms("open"), s.convert = ms("convert"), s.tokenizer = ms("tokenizer"), s.device = ms("device"),
    s.weights = ms("weights");
    s.engine = ms("engine"), s.capture = ms("capture"), s.prefill = ms("prefill"), s.first_token = ms("first_token");
    s.total = static_cast<double>(j.at("first_token_ns").get<int64_t>() - started_ns) / 1e6;
    return s;
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorKind::run, "--startup", "the program that was started printed no marks", escaped(text, 60));
  }
}

}  // namespace infer::tools
