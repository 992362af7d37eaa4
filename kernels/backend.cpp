// The default bodies of the stages: the primitives of ops.cpp's steps(), in order. A backend that fuses a stage must
// give the same numbers as these few lines do.
#include "kernels/backend.h"

namespace infer {

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
