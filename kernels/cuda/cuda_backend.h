// The CUDA backend: one device, one stream, kernels behind the same seam as `ref` and `cpu`. Three ways to run a step:
//
//   program  up to kMaxDecodeRows sequences that decode one token each, fewer where crossovers.h says so: run() lets
//            the stage calls write a program (program.h) once, and one persistent kernel walks it for every token
//            after that (decode.cu).
//   graph    other steps of at most kMaxGraphRows tokens: the launches are captured once per key and replayed.
//   eager    prompts, and everything in --mode eager: the launches are made call by call.
//
// Where a row's bits may depend on nothing but its own sequence (Needs::deterministic) there are graphs and eager steps
// only, and each op has one kernel for any number of rows: see cuda_ops.cpp.
//
// Files: cuda_memory.cpp allocates, moves and packs; cuda_ops.cpp launches primitives, cuda_stages.cpp, cuda_few.cpp
// and cuda_experts.cpp stages of the graph and eager ways; cuda_run.cpp records and replays; cuda_sample.cpp draws
// tokens; cuda_stamps.cpp tells the time of a step's parts and cuda_kernels.cpp what they launch; watched_backend.h
// names what fails. Nothing here knows models, files or text.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/activations.h"
#include "kernels/cuda/crossovers.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/matmul_16bit.h"
#include "kernels/cuda/matmul_int8.h"
#include "kernels/cuda/matmul_lt.h"
#include "kernels/cuda/matmul_mma.h"
#include "kernels/cuda/matmul_wgmma.h"
#include "kernels/cuda/program.h"
#include "kernels/cuda/unpack_ahead.h"
#include "kernels/cuda/watch.h"
#include "kernels/cuda/wide.h"

namespace infer::cuda {

struct Lane;  // staging.h

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

/// The kernels of Way::few, by what activations they want.
enum class FewWay {
  mma,    ///< matmul_mma: f32 or bf16
  wgmma,  ///< matmul_wgmma: an operand, see operand.h
  int8,   ///< matmul_int8: f32, of which it takes the norm along, or bf16
  plain,  ///< matmul_16bit: of the weights' type
};

/// Whether an Int8Operand of so many columns fits into a tensor's memory of 16-bit numbers.
template <int kScales>
bool int8_fits(int64_t cols, const Tensor& memory) {
  return Int8Operand<kScales>::bytes(cols) <= memory.n_elements() * static_cast<int64_t>(sizeof(uint16_t));
}

enum class Mode { automatic, persistent, graph, eager };

/// What WatchedBackend is made of, which is what make_cuda_backend() makes.
class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const BackendOptions& options);
  ~CudaBackend() override;

  const char* name() const override { return "cuda"; }
  std::string describe() const override;
  int n_threads() const override;  ///< of loading: copies into pinned memory

  void check_activations(const Needs& needs) const override;
  void prepare(const Needs& needs) override;

  Buffer allocate(size_t bytes) override;
  void upload(void* dst, const void* src, size_t bytes) override;
  void download(void* dst, const void* src, size_t bytes) override;
  void wait() override;
  std::optional<size_t> memory_left() const override;

  size_t packed_bytes(const Tensor& host, WeightRole role) const override;
  Tensor pack(const Tensor& host, WeightRole role, void* dst) const override;
  Tensor pack_made(const Tensor& host, WeightRole role, void* dst, const MakeRows& make) const override;
  bool packs_columns(const Tensor& host, const ColumnCodes& columns) const override;
  Tensor pack_columns(const Tensor& host, WeightRole role, void* dst, const ColumnCodes& columns) const override;

  void embed(const EmbedArgs&) override;
  void norm(const NormArgs&) override;
  void matmul(const MatmulArgs&) override;
  void activate(const ActivateArgs&) override;
  void add(const AddArgs&) override;
  void rope_store(const RopeStoreArgs&) override;
  void attention(const AttentionArgs&) override;
  void gather(const Tensor& x, const Tensor& rows, const Tensor& out) override;
  void scale_softcap(const Tensor& x, float scale, float softcap) override;

  // cuda_experts.cpp
  void route(const RouteArgs&) override;
  void expert_matmul(const ExpertMatmulArgs&) override;
  void combine(const CombineArgs&) override;
  void moe_ffn(const MoeFfnArgs&) override;

  // cuda_sample.cpp
  bool samples(const SampleRow&) const override;
  void sample(const SampleArgs&) override;
  Buffer allocate_pinned(size_t bytes) override;
  uint64_t mark() override;
  void wait_for(uint64_t mark) override;

  // cuda_stamps.cpp
  uint64_t stamp() override;
  double seconds_between(uint64_t first, uint64_t second) override;
  void forget_stamps() override { n_stamps_ = 0; }
  size_t cache_bytes() const override { return device_.l2_bytes; }

  // cuda_kernels.cpp
  std::vector<KernelUse> kernels_of(const std::function<void()>& fn) override;
  std::vector<KernelUse> kernels_of_step(uint64_t key) override;
  std::vector<FormatCrossovers> crossovers() const override;

  void attn_in(const AttnInArgs&) override;
  void attn_out(const AttnOutArgs&) override;
  void ffn(const FfnArgs&) override;
  void logits(const LogitsArgs&) override;

  void run(uint64_t key, const std::function<void()>& fn) override;
  void run_prefix(uint64_t key, int64_t n_ops, const std::function<void()>& fn) override;
  BackendStats stats() const override;

 protected:
  DeviceInfo device_;
  Watch watch_;
  Stream stream_;
  Recorder* recorder_ = nullptr;  ///< not null while run() records

  /// Does what attn_in has left, if anything: before any op but the attention that takes it along.
  void store_heads();

 private:
  void begin_pack(Lane& lane) const;
  void end_pack(Lane& lane) const;
  Tensor pack_from(const Tensor& host, WeightRole role, void* dst, const MakeRows* make) const;
  struct Recorded {
    std::unique_ptr<Program> program;  ///< a step of one token per sequence; else captured, or call by call
    GraphExec graph[2];                ///< of the program's stages by the parity of its layers, or of the calls (first)
    std::map<int64_t, GraphExec> prefixes;  ///< of run_prefix(), by ops, or by stages and parity
    bool seen = false;
    int64_t n_tokens = 0;
  };

  // cuda_memory.cpp
  /// Makes the device current in the calling thread; throws what has gone wrong for good.
  void use_device() const;
  /// Throws Error(usage) saying why not, where products of e4m3 are of no use to these weights or not to be had.
  void require_fp8(const std::vector<DType>& weights) const;
  void abandon();  ///< gives up what cannot be freed without waiting for a device that does not answer
  char* scratch_block(size_t bytes);

  // cuda_ops.cpp
  void prepare_ops(const Needs& needs);
  void prepare_fixed(const Needs& needs);  ///< the same for Needs::deterministic
  void place_mma_scratch();
  Wide wide();
  Wide wide(Act act);  ///< with other activations than the backend's
  /// out [m, n] (+)= x [m, k] * w^T + bias with x in f32; accumulate adds to what out holds.
  void product(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out, bool accumulate);
  void product(const Wide&, const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out, bool accumulate);
  void product_fixed(const MatmulArgs&, bool accumulate);
  /// x in narrow_a_ as f16, bf16 or e4m3, where attention may have left it already.
  Tensor narrowed(const Tensor& x, DType type);
  /// Where attention may leave its result a second time, for the product that follows, and how.
  void place_attention_copy(const AttentionArgs&);
  /// What attention and the projection have left is no more.
  void forget_copies() { attention_copy_ = {}, norm_passed_ = {}; }
  /// Whether attention has left x so.
  bool copied(const Tensor& x, PassedForm form) const;
  /// Whether products of m rows with all of these are Way::few.
  bool few(int64_t m, std::initializer_list<const Tensor*> weights);
  // cuda_stages.cpp
  /// The end of attn_in: at once, or where attention may take it along, left to it.
  void finish_heads(const MergedHeads&);
  // cuda_few.cpp
  /// By which kernel products of m rows with all of these go. gated: see int8_takes().
  FewWay few_way(int64_t m, std::initializer_list<const Tensor*> weights, bool gated = false) const;
  /// The better one for a product that may choose what its activations are.
  FewWay free_way(int64_t m, const Tensor& w) const;
  /// The projection with half of the ffn's norm. False, and nothing done, where matmul_int8 does not do it.
  bool attn_out_with_norm(const AttnOutArgs&);
  MmaArgs norm_few(FewWay, const Tensor& x, const Tensor& weight, float eps, MmaArgs to, bool whole = false);
  void product_few(FewWay, const MmaArgs&);
  void attn_in_few(const AttnInArgs&);
  /// passed: of the norm of a.add.x, where the projection has made half of it.
  void ffn_few(const FfnArgs&, const Tensor& out, bool accumulate, const NormPassed& passed);
  // cuda_tokens.cpp
  /// Whether products of m rows with all of these go token by token.
  bool by_token(int64_t m, std::initializer_list<const Tensor*> weights);
  bool experts_by_token(const MoeFfnArgs&) const;
  void attn_in_by_token(const AttnInArgs&);
  void attn_out_by_token(const AttnOutArgs&);
  void moe_ffn_by_token(const MoeFfnArgs&);
  void shared_expert(const MoeFfnSteps&);

  // cuda_run.cpp
  void prepare_programs();
  std::unique_ptr<Program> record(const std::function<void()>& fn, int64_t& n_tokens);
  bool place_program(Program& program);
  void empty_exchange(const Program& program);
  bool persists() const;
  void run_program(Recorded& recorded, int32_t n_stages);
  void replay(const GraphExec& graph);
  Graph captured(const std::function<void()>& fn);
  GraphExec capture(const std::function<void()>& fn);
  void launch_stages(const Program& program, int32_t n_stages);
  /// Runs fn, in which attn_in may leave work to attention. Of a step that ends between the two nobody uses the rest.
  void run_ops(const std::function<void()>& fn, bool whole);

  Mode mode_ = Mode::automatic;
  FusedStages fusion_;
  bool has_wgmma_ = false;
  Act act_ = Act::automatic;
  std::vector<FormatCrossovers> told_crossovers_;  ///< BackendOptions::crossovers
  CrossoverTable crossovers_;                      ///< what of them is for this device; made by prepare()
  std::unique_ptr<MatmulLt> lt_;
  std::string why_no_lt_;  ///< for people; empty when there is one, or no need of it
  Needs needs_;
  std::vector<Buffer> scratch_;
  Tensor narrow_a_, narrow_b_;  ///< 16-bit activations of the products of prompts
  UnpackAhead unpacked_;        ///< 16-bit weights of products
  AttentionScratch attention_scratch_;
  /// Whose result narrow_a_ holds as the next product wants it, until anything else is written to either.
  struct {
    const void* of = nullptr;
    PassedForm form = PassedForm::rows;
    int tokens = 0;  ///< of an operand
  } attention_copy_;
  /// Which x has its next norm half made in narrow_a_, for an ffn that comes next: nothing else was launched since.
  struct {
    const void* of = nullptr;
    NormPassed norm;
    int64_t launches = 0;
  } norm_passed_;
  std::optional<MergedHeads> heads_;  ///< what attn_in has left to attention
  bool heads_may_wait_ = false;       ///< the ops under way are those of a step, and will be followed by others
  MmaScratch mma_scratch_;
  WgmmaLimits wgmma_limits_;
  Buffer program_memory_;  ///< stages and exchange buffers of all programs
  size_t program_used_ = 0;
  std::map<uint64_t, Recorded> recorded_;
  std::shared_ptr<std::atomic<int64_t>> live_bytes_;
  mutable std::atomic<int64_t> allocations_{0};
  mutable std::atomic<int64_t> packs_{0};  ///< what unpacks weights ahead must not be ahead of
  BackendStats counters_;
  std::array<Event, 4> marks_;  ///< of the last marks; made when first used
  uint64_t n_marks_ = 0;
  std::vector<Event> stamps_;  ///< made when first used, and kept
  uint64_t n_stamps_ = 0;

  struct Staging;  // pinned memory, see cuda_memory.cpp
  std::unique_ptr<Staging> staging_;
};

}  // namespace infer::cuda
