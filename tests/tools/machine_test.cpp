// What is made of /proc and /sys, energy counters and NVML; on files and a library that are made for it.
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "tests/catch.h"
#include "tests/tools/program.h"
#include "tools/energy.h"
#include "tools/machine.h"
#include "tools/storage.h"

using namespace infer::test;
using namespace infer::tools;

namespace {

/// A folder that stands for the root of a machine.
class Root {
 public:
  explicit Root(const std::string& name) : path_(path_in_folder(name)) {}
  Root& put(const std::string& file, const std::string& text) {
    const std::filesystem::path path = path_ + file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
    return *this;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct Troubles {
  explicit Troubles(const char* names) { setenv("FAKE_NVML", names, 1); }
  ~Troubles() { unsetenv("FAKE_NVML"); }
};

}  // namespace

TEST_CASE("cores, features and nodes of a machine with two packages") {
  Root root("two_packages");
  std::string cpuinfo;
  for (int i = 0; i < 8; ++i)
    cpuinfo += "processor\t: " + std::to_string(i) +
               "\nmodel name\t: Test CPU @ 2 GHz\ncpu MHz\t\t: 2000.5\nphysical id\t: " + std::to_string(i / 4) +
               "\ncore id\t\t: " + std::to_string(i % 2) +
               "\nflags\t\t: fpu sse2 avx2 fma avx512f avx512_vnni amx_int8x\n\n";
  root.put("/proc/cpuinfo", cpuinfo)
      .put("/proc/meminfo",
           "MemTotal:       1048576 kB\nMemFree:  1024 kB\nMemAvailable:    524288 kB\n"
           "SwapTotal: 4096 kB\nSwapFree: 1024 kB\nHugePages_Total:    7\n")
      .put("/proc/loadavg", "1.25 0.5 0.1 1/100 42\n")
      .put("/sys/devices/system/node/node0/x", "")
      .put("/sys/devices/system/node/node1/x", "")
      .put("/sys/devices/system/node/nodes", "")
      .put("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
      .put("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
      .put("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "3600000\n")
      .put("/sys/devices/system/cpu/cpu0/cache/index0/size", "48K\n")
      .put("/sys/devices/system/cpu/cpu0/cache/index3/size", "32768K\n")
      .put("/sys/devices/system/cpu/cpu0/cache/index2/size", "2M\n")
      .put("/sys/class/thermal/thermal_zone3/type", "x86_pkg_temp\n")
      .put("/sys/class/thermal/thermal_zone3/temp", "61500\n");
  const MachineFacts m = read_machine(root.path());
  CHECK(m.cpu == "Test CPU @ 2 GHz");
  CHECK(m.n_cpus == 8);
  CHECK(m.n_cores == 4);
  CHECK(m.n_nodes == 2);
  CHECK(m.features == std::vector<std::string>{"avx2", "fma", "avx512f", "avx512_vnni"});
  CHECK(m.memory_bytes == size_t{1} << 30);
  CHECK(m.available_bytes == size_t{1} << 29);
  CHECK(m.swap_used_bytes == 3072 * 1024);
  CHECK(m.cache_bytes == size_t{32} << 20);
  CHECK(m.reserved_huge_pages == 7);
  CHECK(m.huge_pages == "madvise");
  CHECK(m.load == 1.25);
  CHECK(m.governor == "powersave");
  CHECK(m.mhz == 2000.5);
  CHECK(m.max_mhz == 3600);
  CHECK_FALSE(m.cpu_quota);
  CHECK(cpu_celsius(root.path()) == 61.5);
}

TEST_CASE("the least CPU quota of the groups above counts, in both hierarchies") {
  Root v2("quota_v2");
  v2.put("/proc/self/cgroup", "0::/a/b\n")
      .put("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
      .put("/sys/fs/cgroup/a/cpu.max", "150000 100000\n")
      .put("/sys/fs/cgroup/cpu.max", "800000 100000\n");
  CHECK(read_machine(v2.path()).cpu_quota == 1.5);
  Root v1("quota_v1");
  v1.put("/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:cpuset:/\n0::/\n")
      .put("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "300000\n")
      .put("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n")
      .put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
      .put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  CHECK(read_machine(v1.path()).cpu_quota == 3);
}

TEST_CASE("a machine that tells nothing is no error") {
  const MachineFacts m = read_machine(path_in_folder("nowhere"));
  CHECK(m.cpu.empty());
  CHECK(m.n_cpus == 0);
  CHECK(m.n_nodes == 1);
  CHECK_FALSE(m.cpu_quota);
  CHECK_FALSE(m.load);
  CHECK_FALSE(m.mhz);
  Root odd("odd");
  odd.put("/proc/cpuinfo", "model name\nflags\t:\n: :\ncpu MHz : x\n")
      .put("/proc/meminfo", "MemTotal: many\n")
      .put("/proc/self/cgroup", "x\n1:\n::\n");
  CHECK(read_machine(odd.path()).memory_bytes == 0);
}

TEST_CASE("energy counters of packages and memory are summed, and wrap") {
  Root root("rapl");
  root.put("/intel-rapl:0/name", "package-0\n")
      .put("/intel-rapl:0/energy_uj", "900000\n")
      .put("/intel-rapl:0/max_energy_range_uj", "1000000\n")
      .put("/intel-rapl:0:0/name", "core\n")
      .put("/intel-rapl:0:0/energy_uj", "5\n")
      .put("/intel-rapl:0:1/name", "dram\n")
      .put("/intel-rapl:0:1/energy_uj", "1000\n")
      .put("/dtpm/name", "package\n");
  Rapl rapl(root.path());
  REQUIRE(rapl.why_not().empty());
  CHECK(rapl.joules() == 0);
  root.put("/intel-rapl:0/energy_uj", "200000\n")
      .put("/intel-rapl:0:0/energy_uj", "99999999\n")
      .put("/intel-rapl:0:1/energy_uj", "1001000\n");
  CHECK(rapl.joules() == Approx(0.3 + 1.0));
  root.put("/intel-rapl:0/energy_uj", "250000\n");
  CHECK(rapl.joules() == Approx(1.35));
  EnergyMeter meter(rapl);
  CHECK(meter.why_not().empty());
  CHECK(meter.joules() == Approx(1.35));
  CHECK_FALSE(meter.sample());

  EnergyMeter none{Rapl(path_in_folder("nowhere"))};
  CHECK(contains(none.why_not(), "no energy counters"));
  CHECK_FALSE(none.joules());
  CHECK_FALSE(PowerAverage(&none).watts());
  CHECK_FALSE(PowerAverage(nullptr).watts());
}

TEST_CASE("NVML is opened when it is there, and its absence is told") {
  std::string why_not;
  CHECK_FALSE(Nvml::open(why_not, path_in_folder("libnvidia-ml.so.1")));
  CHECK(contains(why_not, "is not there"));
  {
    const Troubles troubles("no-driver");
    CHECK_FALSE(Nvml::open(why_not, FAKE_NVML));
    CHECK(contains(why_not, "does not start: Driver Not Loaded"));
  }
  const auto nvml = Nvml::open(why_not, FAKE_NVML);
  REQUIRE(nvml);
  CHECK(nvml->driver_version() == "999.12");
  REQUIRE(nvml->devices().size() == 1);
  CHECK_FALSE(nvml->find("0000:18:00.0"));
  const Nvml::Device gpu = nvml->find("0000:17:00.0");
  REQUIRE(gpu);
  const GpuState s = nvml->state(gpu);
  CHECK(s.name == "Fake GPU");
  CHECK(s.pci_bus_id == "00000000:17:00.0");
  CHECK(s.major == 9);
  CHECK(s.now.sm_mhz == 1755u);
  CHECK(s.max_sm_mhz == 1980u);
  CHECK(s.now.memory_mhz == 2619u);
  CHECK(s.limit_watts == 700.0);
  CHECK(s.now.watts == 350.0);
  CHECK(s.slowdown_celsius == 87u);
  CHECK(s.ecc == true);
  CHECK(s.uncorrected_errors == 0u);
  CHECK(s.pcie_width == 16u);
  CHECK(s.total_bytes == size_t{80} << 30);
  CHECK_FALSE(s.mig);  // which the library lacks
  CHECK(throttle_reasons(s.now.throttle).empty());
  CHECK(throttle_reasons(0x4 | 0x20) == std::vector<std::string>{"power cap", "thermal slowdown"});
}

TEST_CASE("a GPU's energy comes from its counter, else from its power, else it is not told") {
  std::string why_not;
  const auto nvml = Nvml::open(why_not, FAKE_NVML);
  REQUIRE(nvml);
  const Nvml::Device gpu = nvml->find("0000:17:00.0");
  EnergyMeter counter(nvml, gpu);
  const double first = counter.joules().value();
  CHECK(counter.joules().value() == Approx(first + 5));
  CHECK(counter.sample()->celsius == 41u);
  {
    const Troubles troubles("no-counter");
    EnergyMeter power(nvml, gpu);
    CHECK(power.joules() == 0.0);
    CHECK(power.joules().value() > 0);
  }
  const Troubles troubles("no-counter no-power");
  EnergyMeter neither(nvml, gpu);
  CHECK_FALSE(neither.joules());
  CHECK(contains(neither.why_not(), "neither its energy nor its power"));
}

TEST_CASE("the files of a model are itself, its parts, or the weights of a folder") {
  CHECK(model_files("some/model.gguf") == std::vector<std::string>{"some/model.gguf"});
  const std::string first = write_file("m-00001-of-00003.gguf", "1"), third = write_file("m-00003-of-00003.gguf", "3");
  CHECK(model_files(first) == std::vector<std::string>{first, third});
  Root folder("weights");
  folder.put("/b.safetensors", "b").put("/a.safetensors", "a").put("/config.json", "{}");
  CHECK(model_files(folder.path()) ==
        std::vector<std::string>{folder.path() + "/a.safetensors", folder.path() + "/b.safetensors"});
}

TEST_CASE("a file that was read is in memory, and what is no file tells nothing") {
  const std::string file = write_file("cached", std::string(1 << 20, 'x'));
  read_into_cache(file);
  const auto share = cached_share(file);
  REQUIRE(share);
  CHECK(*share == 1);
  drop_from_cache(file);  // may have no effect, but must do no harm
  CHECK(read_file(file) == std::string(1 << 20, 'x'));
  CHECK_FALSE(cached_share(path_in_folder("absent")));
  CHECK_FALSE(cached_share(folder()));
  CHECK_FALSE(measure_disk(path_in_folder("absent")));
  drop_from_cache(path_in_folder("absent"));
  CHECK(measure_page_cache(0.01) > 0);
}
