// What a person needs to know when a device fails or falls silent: which op was launched last, in which layer, and that
// nothing more is to be had of it. Ops pass through during(), which also names them for profilers (NVTX) and, with
// debug-sync, waits for each, so that the kernel that failed is known and not guessed. Waits poll, and give up. One
// Watch belongs to one backend and, like it, to one thread at a time.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <memory>
#include <string>

#include "infer/error.h"

namespace infer::cuda {

/// Seconds without an answer after which a device counts as hung.
inline constexpr double kPatience = 60;

/// An error after which CUDA answers everything in this process with an error. Its text is that of the first one.
class Fault : public Error {
 public:
  Fault(const std::string& call, const std::string& cuda_text);
  const std::string& cuda_text() const { return cuda_text_; }  ///< of this one

 private:
  std::string cuda_text_;
};

/// No answer within the time allowed.
class Silence : public Error {
 public:
  Silence(const std::string& what, double seconds);
  double seconds() const { return seconds_; }

 private:
  double seconds_;
};

/// Returns when the device is done. Polls for some milliseconds, then sleeps between looks, so that a step costs no
/// latency and a long prompt no core. Throws Fault, or Silence after `seconds`.
void await(cudaEvent_t event, const char* what, double seconds = kPatience);
void await(cudaStream_t stream, const char* what, double seconds = kPatience);

class Watch {
 public:
  /// `sync`: wait for every op.
  Watch(bool sync, double patience) : sync_(sync), usual_(patience), patience_(patience) {}

  /// Steps of more than this many times the usual size are given as much more time.
  void expect(double times_usual) { patience_ = usual_ * (times_usual > 1 ? times_usual : 1); }
  /// What is launched until the next during() is a step recorded earlier.
  void begin_step();
  /// Runs `fn`, which launches `op` on `stream`. Layers are counted from "embed" on unless `layer` says which it is.
  template <class Fn>
  void during(const char* op, cudaStream_t stream, Fn fn, int layer = kCount) {
    if (sync_ && depth_ > 0) settle(stream);  // what the enclosing op has launched by itself
    const Scope scope(*this, op, layer);
    guarded(fn);
    if (sync_) settle(stream);
  }
  /// Runs `fn`; a Fault or a Silence in it becomes the answer to this call and, by require_alive(), to all later ones.
  template <class Fn>
  void guarded(Fn fn) {
    try {
      fn();
    } catch (const Fault& fault) {
      fail(fault);
    } catch (const Silence& silence) {
      fail(silence);
    }
  }
  void wait(cudaEvent_t event);
  void wait(cudaStream_t stream);

  /// Throws what has been told once.
  void require_alive() const {
    if (!failure_.empty()) throw Error(ErrorKind::run, failure_);
  }
  bool syncs() const { return sync_; }
  /// Whether the device has fallen silent: nothing may then be freed, since CUDA would wait for the device.
  const std::shared_ptr<std::atomic<bool>>& hung() const { return hung_; }
  /// "norm in attn_in, layer 3"
  std::string place() const;

 private:
  static constexpr int kCount = -2, kNone = -1;
  struct Scope {
    Scope(Watch& watch, const char* op, int layer);
    ~Scope();
    Watch& watch;
    const char* outer_part;
  };
  void settle(cudaStream_t stream);
  [[noreturn]] void fail(const Fault& fault);
  [[noreturn]] void fail(const Silence& silence);

  bool sync_;
  double usual_, patience_;
  int depth_ = 0, layer_ = kNone;
  const char *op_ = "start", *part_ = nullptr;  ///< of the last launch: a stage, and the primitive within it
  bool in_layer_ = false;
  std::string failure_;
  std::shared_ptr<std::atomic<bool>> hung_ = std::make_shared<std::atomic<bool>>(false);
};

}  // namespace infer::cuda
