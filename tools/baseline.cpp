// See baseline.h.
#include "tools/baseline.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tools/terminal.h"

namespace infer::tools {
namespace {

using nlohmann::json;

constexpr size_t kMostRecords = 10'000, kMostSamples = 1'000;
constexpr int64_t kMostInteger = int64_t{1} << 60;

/// One record, whose fields are asked for by name and kind.
class Record {
 public:
  Record(const std::string& path, size_t index, const json& j) : path_(path), index_(index), j_(j) {
    if (!j.is_object()) refuse("", "not an object");
  }
  std::string text(const char* key) const {
    const json& v = at(key);
    if (!v.is_string()) refuse(key, "not a text");
    return v.get<std::string>();
  }
  int64_t integer(const char* key) const {
    const json& v = at(key);
    if (!v.is_number_integer()) refuse(key, "not an integer");
    // A number beyond int64 is kept as unsigned, and would come out negative.
    if (v.is_number_unsigned() && v.get<uint64_t>() > static_cast<uint64_t>(kMostInteger)) refuse(key, "out of range");
    const auto n = v.get<int64_t>();
    if (n < 0 || n > kMostInteger) refuse(key, "out of range");
    return n;
  }
  bool flag(const char* key) const {
    const json& v = at(key);
    if (!v.is_boolean()) refuse(key, "neither true nor false");
    return v.get<bool>();
  }
  bool flag_if_there(const char* key) const { return j_.contains(key) && flag(key); }
  std::vector<double> rates(const char* key) const {
    const json& v = at(key);
    if (!v.is_array() || v.empty() || v.size() > kMostSamples)
      refuse(key, fmt::format("not a list of 1 to {} numbers", kMostSamples));
    std::vector<double> out;
    for (const json& n : v) {
      if (!n.is_number() || !std::isfinite(n.get<double>()) || n.get<double>() <= 0) refuse(key, "not numbers above 0");
      out.push_back(n.get<double>());
    }
    return out;
  }

 private:
  const json& at(const char* key) const {
    if (!j_.contains(key)) refuse(key, "is missing");
    return j_.at(key);
  }
  [[noreturn]] void refuse(const char* key, const std::string& why) const {
    throw Error(ErrorKind::usage, escaped(path_),
                fmt::format("record {}{}{}: {}", index_ + 1, *key ? ", " : "", key, why), "",
                "the output of infer bench -o json, or of --save");
  }
  const std::string& path_;
  size_t index_;
  const json& j_;
};

BenchRow read_row(const Record& r) {
  BenchRow row;
  row.model_type = r.text("model_type");
  row.backend = r.text("backends");
  row.gpu_info = r.text("gpu_info");
  row.cpu_info = r.text("cpu_info");
  row.model_size = static_cast<size_t>(r.integer("model_size"));
  row.n_params = r.integer("model_n_params");
  row.n_threads = static_cast<int>(std::min<int64_t>(r.integer("n_threads"), 1 << 20));
  BenchCase& c = row.c;
  c.n_prompt = r.integer("n_prompt"), c.n_gen = r.integer("n_gen"), c.depth = r.integer("n_depth");
  c.n_batch = r.integer("n_batch"), c.n_ubatch = r.integer("n_ubatch");
  c.k_type = r.text("type_k"), c.v_type = r.text("type_v");
  c.mode = r.text("mode"), c.act = r.text("act"), c.fusion = r.flag("fusion");
  row.deterministic = r.flag_if_there("deterministic");
  return row;
}

bool same_model(const BenchRow& a, const BenchRow& b) {
  return a.model_type == b.model_type && a.model_size == b.model_size && a.n_params == b.n_params;
}

/// On a GPU its name counts, on a CPU that of the CPU.
std::string device_of(const BenchRow& r) { return r.backend + ' ' + (r.on_gpu() ? r.gpu_info : r.cpu_info); }

bool same_test(const BenchRow& a, const BenchRow& b) {
  const BenchCase &x = a.c, &y = b.c;
  const bool threads = a.on_gpu() || a.n_threads == 0 || b.n_threads == 0 || a.n_threads == b.n_threads;
  return threads && x.n_prompt == y.n_prompt && x.n_gen == y.n_gen && x.depth == y.depth && x.n_batch == y.n_batch &&
         x.n_ubatch == y.n_ubatch && x.k_type == y.k_type && x.v_type == y.v_type && x.mode == y.mode &&
         x.act == y.act && x.fusion == y.fusion && (!a.on_gpu() || a.deterministic == b.deterministic);
}

std::string model_text(const BenchRow& r) {
  return fmt::format("{} of {} bytes and {} weights", escaped(r.model_type), r.model_size, r.n_params);
}

std::string test_text(const BenchRow& r) {
  std::string out = fmt::format("{} -b {} -ub {} -ctk {} -ctv {}", r.test_name(), r.c.n_batch, r.c.n_ubatch,
                                escaped(r.c.k_type), escaped(r.c.v_type));
  if (r.c.mode != "auto") out += " --mode " + escaped(r.c.mode);
  if (r.c.act != "auto") out += " --act " + escaped(r.c.act);
  if (!r.c.fusion) out += " --no-fusion";
  if (r.on_gpu() && r.deterministic) out += " --deterministic";
  return !r.on_gpu() && r.n_threads > 0 ? out + fmt::format(" -t {}", r.n_threads) : out;
}

}  // namespace

Baseline::Baseline(const std::string& path) : path_(path) {
  json all;
  try {
    // Deep nesting costs the parser memory only; records are as flat as they must be, or refused.
    all = json::parse(read_text_file(path));
  } catch (const json::exception& e) {
    throw Error(ErrorKind::usage, escaped(path), "no JSON: " + escaped(e.what(), 200));
  }
  if (!all.is_array() || all.empty() || all.size() > kMostRecords)
    throw Error(ErrorKind::usage, escaped(path), fmt::format("not a list of 1 to {} records", kMostRecords), "",
                "the output of infer bench -o json, or of --save");
  for (size_t i = 0; i < all.size(); ++i) {
    const Record record(path, i, all[i]);
    Test test{read_row(record), record.rates("samples_ts")};
    for (const Test& other : tests_)
      if (same_model(other.row, test.row) && device_of(other.row) == device_of(test.row) &&
          same_test(other.row, test.row))
        throw Error(ErrorKind::usage, escaped(path), fmt::format("record {}: the same test twice", i + 1),
                    test_text(test.row));
    tests_.push_back(std::move(test));
  }
}

const std::vector<double>& Baseline::samples_of(const BenchRow& row) const {
  const auto refuse = [&](const std::string& why, const std::string& found, const std::string& allowed) {
    return Error(ErrorKind::usage, escaped(path_), why, found, allowed);
  };
  std::string models, devices, tests;
  const auto list = [](std::string& to, const std::string& text) {
    if (to.find(text) == to.npos && to.size() < 400) to += (to.empty() ? "" : "; ") + text;
  };
  for (const Test& t : tests_) {
    list(models, model_text(t.row));
    if (!same_model(t.row, row)) continue;
    list(devices, escaped(device_of(t.row)));
    if (device_of(t.row) != device_of(row)) continue;
    list(tests, test_text(t.row));
    if (!same_test(t.row, row)) continue;
    if (t.rates.size() < kFewestSamples)
      throw refuse(t.row.test_name() + " has too few repetitions to know its noise", std::to_string(t.rates.size()),
                   fmt::format("{} or more: -r", kFewestSamples));
    return t.rates;
  }
  if (devices.empty()) throw refuse("holds no test of this model", model_text(row), models);
  if (tests.empty()) throw refuse("was measured on another device", escaped(device_of(row)), devices);
  throw refuse("does not hold this test", test_text(row), tests);
}

void require_folder_writable(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == path.npos ? "." : path.substr(0, slash + 1);
  if (access(folder.c_str(), W_OK | X_OK) != 0) throw Error(ErrorKind::run, escaped(path), std::strerror(errno));
}

void save_records(const std::string& path, const nlohmann::ordered_json& records) {
  const std::string temporary = path + ".part";
  const std::string text = records.dump(1, ' ', false, json::error_handler_t::replace) + '\n';
  const auto fail = [&] {
    const int error = errno;
    std::remove(temporary.c_str());
    throw Error(ErrorKind::run, escaped(path), std::strerror(error));
  };
  std::FILE* file = std::fopen(temporary.c_str(), "wb");
  if (!file) fail();
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (std::fclose(file) != 0 || !written) fail();
  if (std::rename(temporary.c_str(), path.c_str()) != 0) fail();
}

}  // namespace infer::tools
