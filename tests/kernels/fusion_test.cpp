// Fusions that are switched off one by one: which stages that means, and that each then has the bits of its primitives.
#include "kernels/backend.h"
#include "tests/catch.h"

using namespace infer;

namespace {

std::string message_of(const BackendOptions& options) {
  try {
    make_backend("cpu", options);
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::usage);
    return error.what();
  }
  return {};
}

}  // namespace

TEST_CASE("fusion: all, none, or all but some, and the device says which") {
  BackendOptions options;
  options.n_threads = 1;
  CHECK(fused_stages(options).all());
  CHECK(fused_stages(options).note().empty());
  options.unfused = {"logits", "ffn"};
  const FusedStages some = fused_stages(options);
  CHECK(some.attn_in);
  CHECK(some.attn_out);
  CHECK_FALSE(some.ffn);
  CHECK_FALSE(some.logits);
  CHECK_FALSE(some.all());
  CHECK(make_backend("cpu", options)->describe().find(", no fusion of ffn, logits") != std::string::npos);
  options.unfused = {"attn_in", "attn_out", "ffn", "logits"};
  CHECK(fused_stages(options).note() == ", no fusion");
  options.unfused = {"attn_in"}, options.fusion = false;
  CHECK(fused_stages(options).note() == ", no fusion");
}

TEST_CASE("fusion: a stage that there is not is refused by name, on every backend") {
  BackendOptions options;
  options.n_threads = 1;
  options.unfused = {"attn_in", "attention"};
  CHECK(message_of(options).find("attention") != std::string::npos);
  CHECK_THROWS_AS(make_backend("ref", options), Error);
  options.unfused = {"ffn"}, options.mode = "persistent";
  CHECK(message_of(options).find("fused stages") != std::string::npos);
}
