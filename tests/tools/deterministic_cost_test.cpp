// What `infer bench --deterministic` says of its cost.
#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/tools/program.h"
#include "tools/baseline.h"
#include "tools/bench_records.h"
#include "tools/deterministic_cost.h"

using namespace infer;

TEST_CASE("deterministic: the cost is both speeds and their ratio") {
  LoadOptions load;
  load.deterministic = true;
  tools::DeterministicCost cost(load);
  CHECK(cost.wanted());
  CHECK_FALSE(load.deterministic);  // a model that had it would make all its engines so
  cost.add({"pp512", 4000, 30000});
  cost.add({"tg128", 250, 500});
  CHECK(cost.text() ==
        "cost of --deterministic:\n"
        "  pp512: 4000.00 t/s, without it 30000.00 (7.50 times the time)\n"
        "  tg128: 250.00 t/s, without it 500.00 (2.00 times the time)\n");
  CHECK(tools::DeterministicCost(load).text().empty());
}

TEST_CASE("deterministic: bench says on a CPU that nothing is slower") {
  const std::string line = "deterministic: always so on this device, at no cost";
  const std::vector<std::string> tests = {"bench", "-m", test::tiny_bpe(), "-t", "1", "-p", "8", "-n", "4", "-r", "1"};
  const std::vector<std::string> batches = {"bench", "-m", test::tiny_bpe(), "-t",  "1",  "-npp", "8",
                                            "-ntg",  "4",  "-npl",           "1,2", "-r", "1"};
  for (std::vector<std::string> args : {tests, batches}) {
    CHECK_FALSE(test::contains(test::run(args).out, "deterministic"));
    args.push_back("--deterministic");
    const test::Outcome asked = test::run(args);
    INFO(asked.err);
    CHECK(asked.status == 0);
    CHECK(test::contains(asked.out, line));
    args.insert(args.end(), {"-o", "json"});
    const std::string json = test::run(args).out;
    CHECK(test::contains(json, "\"deterministic\": true"));
    CHECK_FALSE(test::contains(json, line));
    CHECK_FALSE(test::contains(json, "without_deterministic"));
  }
}

TEST_CASE("deterministic: a GPU's speeds are not held against those without it") {
  const std::string path = test::path_in_folder("base.json");
  tools::BenchRow row;
  row.model_type = "llama", row.backend = "CUDA", row.gpu_info = "a GPU", row.c.n_gen = 4;
  row.seconds = {1, 1, 1}, row.deterministic = true, row.rate_without = 8;
  const nlohmann::ordered_json record = tools::bench_record(row);
  CHECK(record.at("deterministic") == true);
  CHECK(record.at("avg_ts_without_deterministic") == 8);
  tools::save_records(path, nlohmann::ordered_json::array({record}));
  const tools::Baseline base(path);
  CHECK(base.samples_of(row) == std::vector<double>{4, 4, 4});
  row.deterministic = false;
  CHECK_THROWS_WITH(base.samples_of(row), Catch::Contains("--deterministic"));
}
