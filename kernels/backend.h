// The backend seam: memory, a few primitives, a few fused stages, and run(). Backends know arithmetic on tensors; they
// have never heard of models, files or text. `ref` is the oracle (float32, naive); `cpu` and later ones must agree with
// it. A stage's default body is composed of primitives: that composition is its definition, and the test of every
// fusion.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "infer/error.h"
#include "kernels/column_codes.h"
#include "kernels/crossovers.h"
#include "kernels/make_rows.h"
#include "kernels/ops.h"

namespace infer {

/// Memory of a backend, which it may outlive (weights are shared by the backends of many engines). Zeroed; pages that
/// are never written cost nothing where the system allows it (KV caches).
using Buffer = std::shared_ptr<void>;

/// How a weight is used, hence how it is stored.
enum class WeightRole {
  /// Right side of matmul: packed. A stack [n_experts, rows, cols] is packed matrix by matrix, at equal
  /// strides.
  matrix,
  /// The same where more of the activations is to be kept than a backend would keep of its own accord, if it can: of
  /// quantised weights of a checkpoint that is made for activations of 16 bits, and of BF16 and MXFP4 in a model with
  /// experts, whose choice turns on small differences.
  fine_matrix,
  embedding,  ///< rows looked up by id
  vector,     ///< norm weights, biases, factors: becomes f32
};

constexpr bool is_matrix(WeightRole role) { return role == WeightRole::matrix || role == WeightRole::fine_matrix; }

/// What a model asks of a backend; require() refuses by name what it has no kernel for.
struct Needs {
  std::vector<DType> matrix_formats, embedding_formats;
  std::vector<DType> fine_formats;  ///< of matrices that are WeightRole::fine_matrix; matrix_formats: of the others
  int64_t head_dim = 0;
  DType k_type = DType::F16, v_type = DType::F16;  ///< of the KV cache
  int64_t max_tokens = 0;                          ///< rows of the largest step
  int64_t max_seqs = 0;
  int64_t max_context = 0;  ///< positions of the longest sequence
  int64_t max_width = 0;    ///< widest activation row (max of dim, ffn_dim, n_heads * head_dim)
  int64_t n_heads = 0;
  int64_t n_experts = 0, n_active = 0;  ///< of MoeFfnArgs; 0: the model has no experts
  std::vector<DType> expert_formats;    ///< those that experts have
  int64_t expert_width = 0;             ///< wider of dim and expert_dim
  bool whole_qk_norm = false;           ///< RopeStoreArgs::q_norm spans all heads
  bool silu_clamped = false;            ///< Activation::silu_clamped
  bool deterministic = false;           ///< bits of a row that do not depend on the step's other rows, or on chance

  std::vector<DType> all_matrix_formats() const {
    std::vector<DType> all = matrix_formats;
    all.insert(all.end(), fine_formats.begin(), fine_formats.end());
    return all;
  }
};

/// Counters that only grow; tests and --perf read them.
struct BackendStats {
  int64_t runs = 0;         ///< calls of run()
  int64_t stages = 0;       ///< parallel regions (cpu)
  int64_t launches = 0;     ///< of kernels and graphs (cuda)
  int64_t captures = 0;     ///< steps recorded as a program or a graph (cuda)
  int64_t syncs = 0;        ///< times the host waited for the device (cuda)
  int64_t allocations = 0;  ///< buffers and scratch blocks ever allocated
  int64_t bytes = 0;        ///< currently allocated through allocate() and reserve()
};

/// A kernel of a device with kernels, as it is launched.
struct KernelUse {
  std::string name;                      ///< without parameters
  int64_t n_launches = 0, n_blocks = 0;  ///< n_blocks: of a launch
  int n_threads = 0, registers = 0;      ///< of a block, of a thread
  int64_t local_bytes = 0;               ///< of a thread, in memory: what registers had no room for
  int64_t shared_bytes = 0;              ///< of a block
  int blocks_per_sm = 0;                 ///< that there is room for
  double occupancy = 0;                  ///< the same as a share of the threads that an SM has room for
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const char* name() const = 0;      ///< "ref", "cpu"
  virtual std::string describe() const = 0;  ///< one line: instruction set, threads
  virtual int n_threads() const { return 1; }

  /// Throws Error(usage) naming the first weight format that does not meet the activations asked for (BackendOptions),
  /// or what is not deterministic where that is asked for. Before anything is loaded: only that and the formats count.
  virtual void check_activations(const Needs& needs) const = 0;

  /// Throws Error(usage or bad_file) naming the first thing that has no kernel, then allocates all scratch that steps
  /// of this size will ever use. Called once before the first step.
  virtual void prepare(const Needs& needs) = 0;

  // Memory. Pointers are host memory on ref and cpu.
  virtual Buffer allocate(size_t bytes) = 0;
  virtual void upload(void* dst, const void* src, size_t bytes) = 0;
  virtual void download(void* dst, const void* src, size_t bytes) = 0;
  /// Returns when everything asked for so far is done. upload() and run() may return earlier, download() never does.
  virtual void wait() {}
  /// Memory of the host that the device writes to; zeroed.
  virtual Buffer allocate_pinned(size_t bytes) { return allocate(bytes); }
  /// Names the work asked for so far; wait_for() returns when it is done, whatever was asked for since. A mark holds
  /// until the second one after it is made.
  virtual uint64_t mark() { return 0; }
  virtual void wait_for(uint64_t) { wait(); }
  // For profilers: stamp() names the moment when all work asked for so far is done, seconds_between() waits for both of
  // two and tells the time from one to the other, by the clock of the device where it has one. Not while run() records.
  // forget_stamps() ends the life of all of them.
  virtual uint64_t stamp();
  virtual double seconds_between(uint64_t first, uint64_t second);
  virtual void forget_stamps() {}
  /// The kernels that `fn`'s ops launch, of which nothing is computed; none where there are no kernels, or none are
  /// told. Not within another call.
  virtual std::vector<KernelUse> kernels_of(const std::function<void()>&) { return {}; }
  /// The one that walks the whole step recorded as `key`; none where there is no such step.
  virtual std::vector<KernelUse> kernels_of_step(uint64_t) { return {}; }
  /// Of the largest cache that all of the device shares; 0: not known.
  virtual size_t cache_bytes() const;
  /// Bytes that allocate() can still give on a device with memory of its own; nothing: host memory.
  virtual std::optional<size_t> memory_left() const { return std::nullopt; }

  /// Bytes that pack() writes for this weight; 0: pack() returns a view of the host bytes (which must then outlive it).
  virtual size_t packed_bytes(const Tensor& host, WeightRole role) const = 0;
  /// Brings a weight (host memory, layout 0) into this backend's form at `dst`. Deterministic, and the same for every
  /// instance of a backend in one process: engines share a model's weights. Thread-safe.
  /// A weight that is packed, and is no vector, may come in parts: some matrices of a stack, or rows from a multiple of
  /// kRowsApart to another one or the end. They lie in the whole where packed_bytes() of what is before them end.
  static constexpr int64_t kRowsApart = 64;
  virtual Tensor pack(const Tensor& host, WeightRole role, void* dst) const = 0;
  /// The same of a weight that does not lie in memory yet: `host` has no data, `make` writes its rows.
  virtual Tensor pack_made(const Tensor& host, WeightRole role, void* dst, const MakeRows& make) const;
  /// Whether this backend makes a matrix like `host` of its columns by itself; then pack_columns() is pack_made() of
  /// the same rows. All of it at once: there are no parts.
  virtual bool packs_columns(const Tensor& /*host*/, const ColumnCodes&) const { return false; }
  virtual Tensor pack_columns(const Tensor& host, WeightRole role, void* dst, const ColumnCodes& columns) const;

  // Primitives.
  virtual void embed(const EmbedArgs&) = 0;
  virtual void norm(const NormArgs&) = 0;
  virtual void matmul(const MatmulArgs&) = 0;
  virtual void activate(const ActivateArgs&) = 0;
  virtual void add(const AddArgs&) = 0;
  virtual void rope_store(const RopeStoreArgs&) = 0;
  virtual void attention(const AttentionArgs&) = 0;
  virtual void gather(const Tensor& x, const Tensor& rows, const Tensor& out) = 0;  ///< out[i] = x[rows[i]]
  virtual void scale_softcap(const Tensor& x, float scale, float softcap) = 0;      ///< in place
  // Of models with experts; a backend without them refuses such Needs.
  virtual void route(const RouteArgs&) { throw Error(ErrorKind::run, name(), "has no experts"); }
  virtual void expert_matmul(const ExpertMatmulArgs&) { throw Error(ErrorKind::run, name(), "has no experts"); }
  virtual void combine(const CombineArgs&) { throw Error(ErrorKind::run, name(), "has no experts"); }

  /// Whether sample() can draw with these settings; where it cannot, the host draws from downloaded logits.
  virtual bool samples(const SampleRow&) const { return false; }
  virtual void sample(const SampleArgs&) { throw Error(ErrorKind::run, name(), "draws no tokens"); }

  // Stages.
  virtual void attn_in(const AttnInArgs&);
  virtual void attn_out(const AttnOutArgs&);
  virtual void ffn(const FfnArgs&);
  virtual void moe_ffn(const MoeFfnArgs&);
  virtual void logits(const LogitsArgs&);

  /// Runs one step. `key` names its shape (everything that changes which kernels run, and the addresses they get); a
  /// backend may record `fn`'s calls at the first sight of a key and replay them afterwards. Key 0: `fn` runs now, call
  /// by call, as for a step that is looked into. The step may still be under way on return: see wait().
  virtual void run(uint64_t key, const std::function<void()>& fn) = 0;
  /// For profilers: runs the first `n_ops` (at least 1) ops of a step that run() knows as `key`, in the way in which it
  /// runs all of them. `fn` asks for these ops and no more. What is computed is of no use; the next run() is sound.
  virtual void run_prefix(uint64_t, int64_t, const std::function<void()>& fn) { run(0, fn); }

  virtual BackendStats stats() const = 0;
  /// What steps go by with the formats it was prepared for; empty where there is only one way.
  virtual std::vector<FormatCrossovers> crossovers() const { return {}; }
};

struct BackendOptions {
  int n_threads = 0;             ///< 0: one per physical core
  std::string isa = {};          ///< cpu: "" best of this machine, else "scalar", "avx2", "avx512"
  int device_index = 0;          ///< cuda: which GPU
  std::string mode = {};         ///< cuda: "" or "auto", "persistent", "graph", "eager"; others only check the name
  bool debug_sync = false;       ///< cuda: eager, and waits for every launch, so that an error names its kernel
  double watchdog_seconds = 60;  ///< cuda: without an answer, after which the device counts as hung
  bool fusion = true;            ///< false: stages run as their definition, one primitive after another
  std::vector<std::string> unfused = {};  ///< the same for these stages alone, by name: see fused_stages()
  std::string act = {};  ///< activations in products: "" or "auto" as the weights' format, "f16", "bf16", "int8", "fp8"
  std::vector<FormatCrossovers> crossovers = {};  ///< cuda: instead of the built-in ones, where device and format match
};

/// Which stages a backend may fuse; the others run as their definition. moe_ffn goes with ffn.
struct FusedStages {
  bool attn_in = true, attn_out = true, ffn = true, logits = true;
  bool all() const { return attn_in && attn_out && ffn && logits; }
  /// ", no fusion", ", no fusion of ffn, logits", or nothing: for Backend::describe().
  std::string note() const;
};
/// Throws Error(usage) for a stage that there is not.
FusedStages fused_stages(const BackendOptions& options);

/// What can be asked about a backend whose devices have memory of their own, before one is made and where there is
/// none.
struct DeviceRow {
  int (*count)();                                               ///< devices to think of; some may be unusable
  std::string (*unusable_reason)(int index);                    ///< for people; empty when the device can be used
  std::string (*describe)(int index);                           ///< of a usable one, as Backend::describe()
  std::string (*refusal)(const Needs&);                         ///< what there is no kernel for; empty when all is well
  size_t (*packed_bytes)(const Tensor& host, WeightRole role);  ///< as Backend::packed_bytes()
  size_t (*scratch_bytes)(const Needs&);                        ///< at most what prepare() allocates
  size_t context_bytes;                                         ///< what the system's driver takes before all else
  std::string (*slow_cache)(const Needs&);  ///< for people: why its KV cache is slow, and what is not; mostly empty
};

/// One row per backend: the table is in backends.cpp.
struct BackendRow {
  const char* name;
  const char* summary;
  std::unique_ptr<Backend> (*make)(const BackendOptions&);
  const DeviceRow* devices = nullptr;  ///< null: computes in host memory
};
const std::vector<BackendRow>& backends();
/// Throws Error(usage) naming the known ones when `name` is not in the table.
const BackendRow& find_backend(const std::string& name);

/// Throws Error(usage) when `name` or an option is unknown, Error(run) when the device cannot be used.
std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& options = {});

}  // namespace infer
