// What becomes of a device that fails or does not answer. The failure is made in a process of its own, since CUDA is of
// no use to one after it.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "tests/kernels/cuda_side.h"

using namespace infer;
using namespace infer::cuda_test;

extern char** environ;

namespace {

std::string message_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::run);
    return error.what();
  }
  FAIL("no error");
  return {};
}

/// Tools that look for errors need not be shown one.
bool under_a_tool() {
  for (char** e = environ; *e; ++e)
    if (std::strstr(*e, "INJECTION") || std::strstr(*e, "SANITIZER")) return true;
  return false;
}

}  // namespace

TEST_CASE("cuda: a device that does not answer in time is given up, once and for all") {
  if (skipped()) return;
  BackendOptions options;
  options.watchdog_seconds = 1e-6;
  const auto backend = make_backend("cuda", options);
  const Bytes bytes(size_t{64} << 20);
  const Buffer buffer = backend->allocate(bytes.size());
  backend->upload(buffer.get(), bytes.data(), bytes.size());
  const std::string first = message_of([&] { backend->wait(); });
  CHECK_THAT(first, Catch::Contains("cuda: no answer from the device for 1e-06 s"));
  CHECK(message_of([&] { backend->wait(); }) == first);
  CHECK(message_of([&] { backend->allocate(1); }) == first);
  CHECK(message_of([&] { backend->run(1, [] {}); }) == first);
  CHECK_FALSE(ref().describe().empty());
  // The others go on.
  gpu().wait();
}

TEST_CASE("a kernel that fails, in a process of its own", "[.][cuda-fault]") {
  if (skipped()) return;
  BackendOptions options;
  options.debug_sync = true;
  const auto backend = make_backend("cuda", options);
  backend->prepare(needs_of_these_tests());
  Side side(*backend);
  Floats values(256), out(256);
  const Tensor x = side.in(values, {1, 256}), to = side.in(out, {1, 256});
  const Tensor nowhere(reinterpret_cast<void*>(uintptr_t{0x1000}), DType::F32, {256});
  const std::string first = message_of([&] { backend->run(0, [&] { backend->norm({x, nowhere, 1e-5f, to}); }); });
  CHECK_THAT(first, Catch::Contains("cuda: norm: ") && Catch::Contains("illegal memory access") &&
                        Catch::Contains("later calls fail the same way"));
  CHECK(message_of([&] { backend->wait(); }) == first);
  CHECK(message_of([&] { backend->upload(x.data, out.data(), 4); }) == first);
  CHECK(message_of([&] { backend->download(out.data(), x.data, 4); }) == first);
}

TEST_CASE("cuda: after an error every call gives the op and the same error") {
  if (skipped() || under_a_tool()) return;
  char self[4096] = {};
  REQUIRE(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
  const int status = std::system(("'" + std::string(self) + "' '[cuda-fault]' -w NoTests").c_str());
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}
