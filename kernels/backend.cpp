// Default bodies: of the stages, the primitives of ops.cpp's steps(), in order, whose numbers a backend that fuses a
// stage must give; of loading, weights that are made before they are packed.
#include "kernels/backend.h"

#include <atomic>
#include <memory>

#include "kernels/cpu/memory.h"
#include "quant/formats.h"

namespace infer {
namespace {

/// Memory of this thread, which keeps it until it ends: those that load weights do so with loading.
std::byte* scratch(size_t bytes) {
  thread_local std::shared_ptr<void> memory;
  thread_local size_t size = 0;
  if (bytes > size) {
    memory.reset();
    memory = cpu::map_memory(bytes, std::make_shared<std::atomic<int64_t>>(0));
    size = bytes;
  }
  return static_cast<std::byte*>(memory.get());
}

}  // namespace

Tensor Backend::pack_made(const Tensor& host, WeightRole role, void* dst, const MakeRows& make) const {
  const int64_t rows = host.n_elements() / host.cols();
  Tensor made = host;
  std::byte* const memory = scratch(static_cast<size_t>(tensor_bytes(host.dtype, rows, host.cols())));
  make(0, rows, memory);
  made.data = memory;
  return pack(made, role, dst);
}

Tensor Backend::pack_columns(const Tensor&, WeightRole, void*, const ColumnCodes&) const {
  throw Error(ErrorKind::run, "weights", std::string("columns are not packed by ") + name());
}

void Backend::attn_in(const AttnInArgs& args) {
  const AttnInSteps s = steps(args);
  norm(s.norm);
  matmul(s.q);
  matmul(s.k);
  matmul(s.v);
  rope_store(s.rope_store);
}

void Backend::attn_out(const AttnOutArgs& args) {
  const AttnOutSteps s = steps(args);
  matmul(s.project);
  add(s.add);
}

void Backend::ffn(const FfnArgs& args) {
  const FfnSteps s = steps(args);
  norm(s.norm);
  matmul(s.gate);
  matmul(s.up);
  activate(s.activate);
  matmul(s.down);
  add(s.add);
}

void Backend::moe_ffn(const MoeFfnArgs& args) {
  const MoeFfnSteps s = steps(args);
  norm(s.norm);
  matmul(s.router);
  route(s.route);
  expert_matmul(s.gate);
  expert_matmul(s.up);
  activate(s.activate);
  expert_matmul(s.down);
  if (args.w_shared_gate) {
    matmul(s.shared_gate);
    matmul(s.shared_up);
    activate(s.shared_activate);
    matmul(s.shared_down);
  }
  combine(s.combine);
  add(s.add);
}

void Backend::logits(const LogitsArgs& args) {
  const LogitsSteps s = steps(args);
  gather(args.x, args.rows, args.normed);
  norm(s.norm);
  matmul(s.head);
  scale_softcap(args.out, args.scale, args.softcap);
}

}  // namespace infer
