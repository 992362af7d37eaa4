// `infer doctor`: what it finds out of facts that are made up, and what it prints about the machine it runs on.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/tools/program.h"
#include "tools/doctor.h"

using namespace infer::test;
using namespace infer::tools;
using nlohmann::json;

namespace {

const Finding& finding(const Section& section, const std::string& key) {
  for (const Finding& f : section.findings)
    if (f.key == key) return f;
  FAIL("no finding called " << key);
  return section.findings[0];
}

bool has(const Section& section, const std::string& key) {
  for (const Finding& f : section.findings)
    if (f.key == key) return true;
  return false;
}

Call doctor(std::vector<std::string> more) {
  Call call;
  call.args = {"doctor"};
  call.args.insert(call.args.end(), more.begin(), more.end());
  call.environment = {"LD_LIBRARY_PATH=" + std::filesystem::path(FAKE_NVML).parent_path().string()};
  return call;
}

json object(std::vector<std::string> more, int status = 0) {
  more.insert(more.end(), {"-o", "json"});
  const Outcome o = run(doctor(more));
  INFO(o.out << o.err);
  REQUIRE(o.status == status);
  return json::parse(o.out);
}

/// The fake GPU with these troubles, as JSON.
json gpu(const std::string& troubles) {
  Call call = doctor({"--no-measure", "-o", "json"});
  call.environment.push_back("FAKE_NVML=" + troubles);
  const Outcome o = run(call);
  INFO(o.err);
  REQUIRE(o.status == 0);
  return json::parse(o.out).at("gpu0");
}

MachineFacts good_machine() {
  MachineFacts m;
  m.cpu = "Test CPU";
  m.n_cpus = 16, m.n_cores = 8, m.n_nodes = 1;
  m.memory_bytes = size_t{64} << 30, m.available_bytes = size_t{60} << 30;
  m.huge_pages = "madvise";
  m.load = 0.1;
  return m;
}

infer::HostInfo good_host() { return {"avx512", 8, size_t{60} << 30, "optimised"}; }

void check_all_good(const Section& section) {
  for (const Finding& f : section.findings) {
    INFO(f.key << ": " << f.text);
    CHECK((f.mark == Mark::good || f.mark == Mark::plain));
    CHECK(f.advice.empty());
  }
}

}  // namespace

TEST_CASE("a machine that is well gets no advice") {
  check_all_good(judge_cpu(good_machine(), good_host(), 8));
  check_all_good(judge_memory(good_machine(), good_host()));
}

TEST_CASE("each thing that is off with the host is marked, with advice") {
  MachineFacts m = good_machine();
  infer::HostInfo host = good_host();
  m.cpu_quota = 2.5;
  host.isa = "scalar", host.build = "not optimised";
  m.n_nodes = 2, m.load = 7;
  const Section cpu = judge_cpu(m, host, 8);
  for (const char* key : {"isa", "threads", "quota", "numa", "build", "load"}) {
    INFO(key);
    CHECK(finding(cpu, key).mark == Mark::warn);
    CHECK_FALSE(finding(cpu, key).advice.empty());
  }
  CHECK(contains(finding(cpu, "threads").advice, "-t 2"));
  CHECK(finding(judge_cpu(good_machine(), good_host(), 12), "threads").mark == Mark::warn);

  m.huge_pages = "never", m.swap_used_bytes = size_t{1} << 30;
  host.available_bytes = size_t{512} << 20;
  const Section memory = judge_memory(m, host);
  for (const char* key : {"available", "limit", "swap", "huge_pages"}) {
    INFO(key);
    CHECK(finding(memory, key).mark == Mark::warn);
  }
}

TEST_CASE("what is off with a GPU is marked, and nothing else") {
  const json well = gpu("");
  for (const char* key : {"memory", "clock", "power_limit", "temperature", "ecc", "pcie"}) {
    INFO(key);
    CHECK(well.at(key).at("mark") == "ok");
    CHECK_FALSE(well.at(key).contains("advice"));
  }
  CHECK(well.at("name").at("value").at("compute_capability") == "9.0");
  CHECK(well.at("pcie").at("value").at("width") == 16);
  const struct {
    const char *trouble, *key, *advice;
  } kTroubles[] = {{"narrow", "pcie", "fewer lanes"},           {"capped", "power_limit", "-pl 700"},
                   {"hot", "temperature", "cooling"},           {"ecc", "ecc", "results may be wrong"},
                   {"throttled", "clock", "cooling and power"}, {"full", "memory", "other programs"}};
  for (const auto& t : kTroubles) {
    INFO(t.trouble);
    const json off = gpu(t.trouble);
    CHECK(off.at(t.key).at("mark") == "warning");
    CHECK(contains(off.at(t.key).at("advice"), t.advice));
    int n_off = 0;
    for (const auto& [key, f] : off.items()) n_off += f.at("mark") == "warning" && key != "name";
    CHECK(n_off == 1);
  }
}

TEST_CASE("a link that is slow counts under load only: idle ones save power") {
  GpuState slow, quick;
  slow.pcie_generation = 1, slow.max_pcie_generation = 5, slow.pcie_width = slow.max_pcie_width = 16;
  quick = slow;
  quick.pcie_generation = 5;
  CHECK(finding(judge_gpu(nullptr, &slow, nullptr), "pcie").mark == Mark::good);
  CHECK(contains(finding(judge_gpu(nullptr, &slow, nullptr), "pcie").text, "idle links slow down"));
  CHECK(finding(judge_gpu(nullptr, &slow, &quick), "pcie").mark == Mark::good);
  CHECK(finding(judge_gpu(nullptr, &slow, &slow), "pcie").mark == Mark::warn);
}

TEST_CASE("a GPU that the program cannot reach is named, with the reason") {
  const json j = object({"--no-measure"});
  CHECK(contains(j.at("gpu0").at("name").at("text"), "Fake GPU"));
  CHECK(j.at("gpu0").at("name").at("mark") == "warning");
  CHECK(j.at("gpu").at("cuda").at("mark") == "warning");
  CHECK(j.at("gpu").at("nvml").at("value") == "999.12");
}

TEST_CASE("a machine without a GPU and without NVML is no reason for trouble") {
  Call call = doctor({"--no-measure", "-o", "json"});
  call.environment.push_back("FAKE_NVML=no-driver");
  const Outcome o = run(call);
  REQUIRE(o.status == 0);
  const json j = json::parse(o.out);
  CHECK_FALSE(j.contains("gpu0"));
  CHECK(contains(j.at("gpu").at("nvml").at("text"), "does not start"));
  CHECK(j.at("gpu").at("cuda").at("mark") == "fact");
}

TEST_CASE("copies that are slower than the link are marked") {
  GpuState link;
  link.pcie_generation = 4, link.pcie_width = 16;  // 31.5 GB/s
  Section good, slow;
  judge_copies({25, 26, 9, 8, 1500}, &link, good);
  judge_copies({25, 12, 9, 8, 1500}, &link, slow);
  CHECK(finding(good, "copy_pinned").mark == Mark::good);
  CHECK(finding(slow, "copy_pinned").mark == Mark::warn);
  Section unknown;
  judge_copies({1, 1, 1, 1, 1}, nullptr, unknown);
  CHECK(finding(unknown, "copy_pinned").mark == Mark::good);
}

TEST_CASE("what CUDA knows of a GPU is enough where NVML is not there") {
  const infer::GpuInfo cuda = {.index = 0,
                               .name = "Test GPU",
                               .unusable = "its architecture is not in this program",
                               .pci_bus_id = "0000:01:00.0",
                               .major = 8,
                               .minor = 6,
                               .n_sms = 82,
                               .driver_version = 12080,
                               .runtime_version = 13000,
                               .total_bytes = size_t{24} << 30,
                               .free_bytes = size_t{23} << 30};
  const Section s = judge_gpu(&cuda, nullptr, nullptr);
  CHECK(contains(finding(s, "name").text, "Test GPU, compute capability 8.6, 82 SMs"));
  CHECK(contains(finding(s, "name").advice, "not in this program"));
  CHECK(contains(finding(s, "driver").text, "CUDA 12.8; runtime 13.0"));
  CHECK(finding(s, "memory").mark == Mark::good);
  CHECK_FALSE(has(s, "pcie"));
}

TEST_CASE("measured, with a model: what it reaches, what bounds it, whether it fits") {
  const json j = object({"-m", tiny_bpe(), "-t", "1", "--device", "cpu"});
  CHECK(j.at("status") == 0);
  const double gbps = j.at("memory").at("read_bandwidth").at("value");
  const double gops = j.at("cpu").at("int8_peak").at("value");
  CHECK(gbps > 0);
  CHECK(gops > 0);
  CHECK(j.at("storage").at("page_cache").at("value") > 0);
  CHECK(j.at("storage").at("cached").at("value") >= 0);
  const json& model = j.at("model");
  CHECK(model.at("runs").at("mark") == "ok");
  const json &empty = model.at("generation").at("value"), &full = model.at("generation_full").at("value");
  CHECK(empty.at("tok_s").get<double>() == Approx(gbps * 1e9 / empty.at("stream_bytes").get<double>()));
  CHECK(full.at("tok_s").get<double>() ==
        Approx(gbps * 1e9 / (empty.at("stream_bytes").get<double>() + full.at("kv_bytes").get<double>())));
  CHECK(model.at("prompt").at("value").at("tok_s").get<double>() ==
        Approx(gops * 1e9 / model.at("prompt").at("value").at("operations_per_token").get<double>()));
  CHECK(model.at("context").at("value").at("trained") == 512);
  // The bytes that are announced are those that a loaded model reads.
  const json bench = json::parse(
      run({"bench", "-m", tiny_bpe(), "-p", "0", "-n", "2", "-r", "1", "-t", "1", "--bw", "-o", "json"}).out);
  CHECK(empty.at("stream_bytes") == bench[0].at("stream_bytes"));
}

TEST_CASE("a model that cannot run is a cross and an exit status") {
  const json absent = object({"--no-measure", "-m", path_in_folder("absent.gguf")}, 1);
  CHECK(absent.at("model").at("runs").at("mark") == "impossible");
  const std::string broken = write_file("broken.gguf", "GGUF\3\0\0\0 and no more");
  CHECK(object({"--no-measure", "-m", broken}, 3).at("status") == 3);
  TinyModel deep;  // 64 KiB of cache to a position
  deep.n_layers = 128, deep.n_kv_heads = 4;
  write_tiny_model(path_in_folder("deep.gguf"), deep);
  const json large = object({"--no-measure", "-m", path_in_folder("deep.gguf"), "-c", "16777216", "-ctk", "f32", "-ctv",
                             "f32", "--device", "cpu"},
                            4);
  CHECK(contains(large.at("model").at("runs").at("text"), "16777216"));
  const Outcome text = run(doctor({"--no-measure", broken}));
  CHECK(text.status == 3);
  CHECK(contains(text.out, "\u2718 runs"));
  CHECK(contains(text.out, "the model cannot run here"));
}

TEST_CASE("the text has a sign, a name and a figure to a line, and colour at a terminal only") {
  const Outcome o = run(doctor({"--no-measure"}));
  REQUIRE(o.status == 0);
  CHECK(o.err.empty());
  CHECK(is_utf8(o.out));
  CHECK_FALSE(contains(o.out, "\x1b"));
  for (const char* part : {"\nCPU\n", "\nMemory\n", "\u2714 isa", "threads", "available", "huge pages"}) {
    INFO(part);
    CHECK(contains(o.out, part));
  }
  Terminal colours({"doctor", "--no-measure"});
  CHECK(colours.shows("\x1b[32m\u2714\x1b[0m"));
  CHECK(colours.ends() == 0);
  Terminal none({"doctor", "--no-measure"}, false, {"NO_COLOR=1"});
  CHECK(none.shows("\u2714 isa"));
  CHECK(none.ends() == 0);
  CHECK_FALSE(contains(none.screen(), "\x1b["));
}

TEST_CASE("doctor refuses what it does not know, by name") {
  check_refusals({{{"doctor", "--device", "abacus"}, 2, "abacus"},
                  {{"doctor", "--device", "cuda:x"}, 2, "cuda:x"},
                  {{"doctor", "-o", "xml"}, 2, "text, json"},
                  {{"doctor", "-m", tiny_bpe(), "-ctk", "q9", "--no-measure"}, 2, "q9"}},
                 "never");
}
