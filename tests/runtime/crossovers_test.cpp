// Crossovers as callers give them: checked by name before anything is loaded, and without effect on a CPU.
#include "runtime/crossovers.h"

#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/tiny_model.h"

using namespace infer;

TEST_CASE("crossovers: what is out of range or unknown is refused by name") {
  const Crossover good{"NVIDIA H200", "q4_k", 4, 129, 1};
  CHECK_NOTHROW(validate(std::vector<Crossover>()));
  CHECK_NOTHROW(validate(std::vector<Crossover>{good}));
  const auto refused = [&](auto change, const char* says) {
    Crossover bad = good;
    change(bad);
    INFO(says);
    CHECK_THROWS_WITH(validate(std::vector<Crossover>{good, bad}), Catch::Contains(says));
  };
  refused([](Crossover& c) { c.format = "Q9_Z"; }, "no such format");
  refused([](Crossover& c) { c.program_most = 5; }, "program_most");
  refused([](Crossover& c) { c.program_most = -1; }, "program_most");
  refused([](Crossover& c) { c.few_least = 0; }, "few_least");
  refused([](Crossover& c) { c.wide_least = 130; }, "wide_least");
}

TEST_CASE("crossovers: names go to formats and back") {
  const std::vector<FormatCrossovers> rows = checked_crossovers({{"", "q4_k", 4, 129, 1}, {"G", "BF16", 0, 1, 2}});
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].format == DType::Q4_K);
  CHECK(rows[1].at == Crossovers{0, 1, 2});
  const std::vector<Crossover> back = public_crossovers(rows);
  CHECK(back[0].format == "Q4_K");
  CHECK(back[1].device == "G");
  CHECK(back[0].few_least == 129);
}

TEST_CASE("crossovers: a CPU has none, and an engine checks those that it is given") {
  const test::Folder folder;
  const std::string path = folder / "tiny.gguf";
  test::write_tiny_model(path, {});
  LoadOptions load;
  load.device = "cpu", load.n_threads = 1;
  load.crossovers = {{"", "F32", 4, 129, 3}};
  const Model model = Model::load(path, load);
  EngineOptions options;
  options.n_ctx = 64, options.n_threads = 1;
  CHECK(Engine(model, options).crossovers().empty());
  options.crossovers = {{"", "F32", 4, 3, 777}};
  CHECK_THROWS_WITH(Engine(model, options), Catch::Contains("wide_least"));
  load.crossovers[0].format = "nothing";
  CHECK_THROWS_WITH(Model::load(path, load), Catch::Contains("no such format"));
}
