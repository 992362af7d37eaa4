// The polling waits and the messages of watch.h. The first fault is remembered for the process, as CUDA does.
#include "kernels/cuda/watch.h"

#include <chrono>
#include <cstdio>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#else
static int nvtxRangePushA(const char*) { return 0; }
static int nvtxRangePop() { return 0; }
#endif

#include "kernels/cuda/device.h"

namespace infer::cuda {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kSpin(10);  // longer than a decoded token takes
constexpr std::chrono::microseconds kNap(50);
const char* const kForGood = "; later calls fail the same way";

struct FirstFault {
  std::mutex mutex;
  std::string text;
  bool placed = false;  ///< the text says where
};

FirstFault& first_fault() {
  static FirstFault fault;
  return fault;
}

/// The text of the first fault; this one's if there was none, or none that said where.
std::string remembered(const std::string& text, bool placed) {
  FirstFault& first = first_fault();
  const std::lock_guard lock(first.mutex);
  if (first.text.empty() || (placed && !first.placed)) {
    first.text = text;
    first.placed = placed;
  }
  return first.text;
}

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%g s", seconds);
  return text;
}

template <class Query>
void poll(Query query, const char* what, double patience) {
  const auto start = Clock::now();
  const std::chrono::duration<double> limit(patience);
  cudaError_t status = query();
  bool waited = false;
  for (; status == cudaErrorNotReady; status = query()) {
    waited = true;
    const auto waiting = Clock::now() - start;
    if (waiting > limit) {
      cudaGetLastError();
      throw Silence(what, patience);
    }
    if (waiting > kSpin) std::this_thread::sleep_for(kNap);
  }
  if (waited && status == cudaSuccess) cudaGetLastError();  // "not ready" was an answer and no error
  check(status, what);
}

}  // namespace

Fault::Fault(const std::string& call, const std::string& cuda_text)
    : Error(ErrorKind::run, remembered("cuda: " + call + ": " + cuda_text, false)), cuda_text_(cuda_text) {}

Silence::Silence(const std::string& what, double seconds)
    : Error(ErrorKind::run, "cuda: no answer from the device for " + seconds_text(seconds) + " (" + what + ")"),
      seconds_(seconds) {}

void await(cudaEvent_t event, const char* what, double seconds) {
  poll([event] { return cudaEventQuery(event); }, what, seconds);
}

void await(cudaStream_t stream, const char* what, double seconds) {
  poll([stream] { return cudaStreamQuery(stream); }, what, seconds);
}

Watch::Scope::Scope(Watch& w, const char* op, int layer) : watch(w), outer_part(w.part_) {
  if (w.depth_++ == 0) {
    const std::string_view name = op;
    w.op_ = op;
    w.part_ = nullptr;
    if (layer != kCount) {
      w.layer_ = layer;
    } else if (name == "embed") {
      w.layer_ = kNone;
    } else if (name == "attn_in") {
      ++w.layer_;
    }
    w.in_layer_ = w.layer_ >= 0 && name != "logits" && name != "sample";
  } else {
    w.part_ = op;
  }
  char text[64];
  if (w.depth_ == 1 && w.in_layer_) {
    std::snprintf(text, sizeof text, "layer %d %s", w.layer_, op);
  } else {
    std::snprintf(text, sizeof text, "%s", op);
  }
  nvtxRangePushA(text);
}

Watch::Scope::~Scope() {
  nvtxRangePop();
  if (--watch.depth_ > 0) watch.part_ = outer_part;
}

void Watch::begin_step() {
  op_ = "a recorded step";
  part_ = nullptr;
  in_layer_ = false;
  layer_ = kNone;
}

std::string Watch::place() const {
  std::string text = part_ ? std::string(part_) + " in " + op_ : op_;
  if (in_layer_) text += ", layer " + std::to_string(layer_);
  return text;
}

void Watch::settle(cudaStream_t stream) {
  guarded([&] { await(stream, "debug-sync", patience_); });
}

void Watch::wait(cudaEvent_t event) {
  require_alive();
  guarded([&] { await(event, "wait for a step", patience_); });
}

void Watch::wait(cudaStream_t stream) {
  require_alive();
  guarded([&] { await(stream, "wait", patience_); });
}

void Watch::fail(const Fault& fault) {
  const char* const doubt = sync_ ? "" : " (or what was launched before it: --debug-sync tells)";
  failure_ = remembered("cuda: " + place() + ": " + fault.cuda_text() + doubt + kForGood, true);
  throw Error(ErrorKind::run, failure_);
}

void Watch::fail(const Silence& silence) {
  *hung_ = true;
  failure_ = "cuda: no answer from the device for " + seconds_text(silence.seconds()) + " (" + place() + ')' + kForGood;
  throw Error(ErrorKind::run, failure_);
}

}  // namespace infer::cuda
