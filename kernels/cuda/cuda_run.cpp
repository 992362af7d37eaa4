// Recording and replaying steps: programs for the persistent kernel, CUDA graphs for other small steps, plain launches
// for prompts. A key is looked at once; nothing is allocated or captured for it again.
#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/decode_launch.h"

namespace infer::cuda {
namespace {

constexpr int64_t kMaxGraphRows = 128;  // of steps worth capturing: launches cost more than they compute
constexpr int64_t kSoonGraphRows = 64;  // of those captured at first sight; larger ones are so when they come again
constexpr size_t kProgramMemory = size_t{48} << 20;  // all programs of a backend
constexpr size_t kMaxRecorded = 4096;                // keys remembered; prompts of every length pass by
constexpr double kUsualTokens = 4096;                // of a step, for which the watchdog's patience is meant

size_t align(size_t n) { return (n + 255) / 256 * 256; }

const char* stage_name(const DecodeStage& s) {
  if (s.kind == StageKind::attention) return "attention";
  if (s.output == StageOutput::logits) return "logits";
  if (s.output == StageOutput::hidden) return "ffn (gate, up)";
  if (s.input == StageInput::hidden) return "ffn (down)";
  return s.input == StageInput::residual ? "attn_in" : "attn_out";
}
int stage_layer(const DecodeStage& s) { return s.output == StageOutput::logits ? -1 : s.out_layer; }

}  // namespace

ProgramLimits decode_limits() {
  // Asked once for each device: the driver takes a millisecond to find its memory's clock.
  static std::mutex mutex;
  static std::map<int, ProgramLimits> known;
  int device = 0, n_sms = 0, shared = 0, clock_khz = 0, bus_bits = 0;
  check(cudaGetDevice(&device), "device attributes");
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(device); found != known.end()) return found->second;
  const auto get = [&](int& value, cudaDeviceAttr attribute) {
    check(cudaDeviceGetAttribute(&value, attribute, device), "device attributes");
  };
  get(n_sms, cudaDevAttrMultiProcessorCount), get(shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  get(clock_khz, cudaDevAttrMemoryClockRate), get(bus_bits, cudaDevAttrGlobalMemoryBusWidth);
  return known[device] = {n_sms, shared - kFixedShared, 2.0 * clock_khz * 1e3 * bus_bits / 8 / 1e9};
}

void launch_decode(const DecodeLaunch& launch, int n_ctas, bool cooperative, cudaStream_t stream) {
  if (launch.shared.experts) return launch_decode_1_experts(launch, n_ctas, cooperative, stream);
  if (launch.shared.kernel_rows == 1) return launch_decode_1(launch, n_ctas, cooperative, stream);
  if (launch.shared.kernel_rows == 2) return launch_decode_2(launch, n_ctas, cooperative, stream);
  launch_decode_4(launch, n_ctas, cooperative, stream);
}

void CudaBackend::check_activations(const Needs& asked) const {
  const Needs needs = held_needs(asked, act_);
  const std::string name = act_name(act_);
  const std::vector<DType> formats = asked.all_matrix_formats();
  if (const DType* plain = without_kernel(formats, act_))
    throw Error(ErrorKind::usage, "act", "only quantised weights have kernels for such activations",
                name + " with " + format_name(*plain), "auto");
  if (mode_ == Mode::persistent && !all_decode_packed(needs.matrix_formats, act_))
    throw Error(ErrorKind::usage, "act", "one kernel for a whole step has no such activations for these weights", name,
                "auto, or mode auto, graph, eager");
  if (act_ == Act::fp8) require_fp8(needs.matrix_formats);
  if (!needs.deterministic) return;
  if (mode_ == Mode::persistent)
    throw Error(ErrorKind::usage, "deterministic", "the kernel for a whole step sums by its number of rows",
                "mode persistent", "mode auto, graph, eager");
  for (const DType format : needs.matrix_formats)
    if (!has_fixed_products(format, act_))
      throw Error(ErrorKind::usage, "deterministic", "no kernel for such activations with " + format_name(format), name,
                  "act auto");
}

void CudaBackend::require_fp8(const std::vector<DType>& weights) const {
  std::string why = why_no_fp8(weights, device_.major, device_.minor);
  if (why.empty()) {
    use_device();
    const auto lt = MatmulLt::open(why);
    if (lt) why = lt->why_no_e4m3();
  }
  if (!why.empty()) throw Error(ErrorKind::usage, "act", "fp8 cannot be used: " + why, "fp8", "auto");
}

void CudaBackend::prepare(const Needs& needs) {
  check_activations(needs);
  use_device();
  needs_ = held_needs(needs, act_);
  watch_.expect(static_cast<double>(needs.max_tokens) / kUsualTokens);
  prepare_ops(needs_);
  prepare_programs();
}

void CudaBackend::prepare_programs() {
  if (!program_memory_) program_memory_ = allocate(kProgramMemory);
}

std::unique_ptr<Program> CudaBackend::record(const std::function<void()>& fn, int64_t& n_tokens) {
  Recorder recorder(decode_limits(), few_by_format(act_));
  if (!fusion_.all()) recorder.unsupported("stages that are not fused");
  if (needs_.deterministic) recorder.unsupported("sums that do not depend on the step");
  if (!all_decode_packed(needs_.matrix_formats, act_))
    recorder.unsupported("activations that the program has no kernel for");
  recorder_ = &recorder;
  try {
    fn();
  } catch (...) {
    recorder_ = nullptr;
    throw;
  }
  recorder_ = nullptr;
  n_tokens = recorder.n_tokens();
  auto program = recorder.finish();
  if (mode_ == Mode::automatic && n_tokens > crossovers_.program_most(needs_.matrix_formats)) program = nullptr;
  if (program && !place_program(*program)) program = nullptr;
  return program;
}

/// Lays a program out in device memory. False when there is no room: the step then runs as a graph.
bool CudaBackend::place_program(Program& p) {
  const size_t x_bytes = align(static_cast<size_t>(p.n_rows * p.dim) * 4),
               stage_bytes = p.stages.size() * sizeof(DecodeStage);
  const size_t sizes[] = {align(p.exchange_bytes), x_bytes, align(stage_bytes), align(stage_bytes)};
  size_t total = 0;
  for (size_t bytes : sizes) total += bytes;
  if (!program_memory_ || program_used_ + total > kProgramMemory) return false;
  uint8_t* base = static_cast<uint8_t*>(program_memory_.get()) + program_used_;
  program_used_ += total;
  std::vector<uint8_t*> parts;
  for (size_t bytes : sizes) parts.push_back(base), base += bytes;

  p.memory = program_memory_;
  p.exchange = parts[0];
  empty_exchange(p);
  for (uint32_t parity : {0U, 1U}) {
    const std::vector<DecodeStage> stages = p.placed(p.exchange, parity);
    DecodeLaunch& launch = p.launch[parity];
    upload(parts[2 + parity], stages.data(), stage_bytes);
    launch.stages = reinterpret_cast<const DecodeStage*>(parts[2 + parity]);
    launch.n_rows = p.n_rows, launch.dim = p.dim;
    for (size_t i = 0; i < stages.size() && !launch.rows; ++i)
      if (stages[i].kind == StageKind::attention) launch.rows = &launch.stages[i].attention;
    launch.shared = p.shared;
    launch.x_save = reinterpret_cast<float*>(parts[1]);
    launch.end = static_cast<int32_t>(stages.size());
  }
  return true;
}

/// As it is before the first step.
void CudaBackend::empty_exchange(const Program& p) {
  const std::vector<uint32_t> empty(p.exchange_bytes / 4, 0x80000000u);  // -0.0 everywhere
  upload(p.exchange, empty.data(), empty.size() * 4);
  for (const DecodeStage& s : p.stages) {
    if (s.output != StageOutput::hidden || s.hidden_form != ActForm::int8) continue;
    const std::vector<uint8_t> codes(static_cast<size_t>(2 * p.n_rows * s.w[0].rows), 0x80);
    upload(p.exchange + reinterpret_cast<uintptr_t>(s.out_codes), codes.data(), codes.size());
    break;
  }
}

void CudaBackend::launch_stages(const Program& p, int32_t n_stages) {
  for (int32_t i = 0; i < n_stages; ++i) {
    DecodeLaunch one = p.launch[p.parity];
    one.begin = i, one.end = i + 1;
    one.single_stage = 1;
    watch_.during(
        stage_name(p.stages[static_cast<size_t>(i)]), stream_.get(),
        [&] { launch_decode(one, p.n_ctas, false, stream_.get()); }, stage_layer(p.stages[static_cast<size_t>(i)]));
    ++counters_.launches;
  }
}

/// Whether one kernel walks a program.
bool CudaBackend::persists() const {
  const bool can = device_.cooperative && device_.major >= 9;
  return mode_ == Mode::persistent || (mode_ == Mode::automatic && can);
}

/// The first n_stages stages. All of them leave the exchange ready for the next step; some of them do not, since what
/// they end before still holds what the layer before wrote.
void CudaBackend::run_program(Recorded& recorded, int32_t n_stages) {
  Program& p = *recorded.program;
  const bool whole = n_stages == static_cast<int32_t>(p.stages.size());
  if (n_stages == 0) return;
  if (p.was_cut) empty_exchange(p);
  p.was_cut = !whole;
  if (persists()) {
    DecodeLaunch launch = p.launch[p.parity];
    launch.end = n_stages;
    launch_decode(launch, p.n_ctas, true, stream_.get());
    ++counters_.launches;
  } else if (mode_ == Mode::eager) {
    launch_stages(p, n_stages);
  } else {
    GraphExec& graph = whole ? recorded.graph[p.parity] : recorded.prefixes[int64_t{2} * n_stages + p.parity];
    if (!graph) graph = capture([&] { launch_stages(p, n_stages); });
    replay(graph);
  }
  if (whole) p.parity = (p.parity + static_cast<uint32_t>(p.n_layers)) & 1;
}

void CudaBackend::replay(const GraphExec& graph) {
  check(cudaGraphLaunch(graph.get(), stream_.get()), "replay a graph");
  ++counters_.launches;
}

GraphExec CudaBackend::capture(const std::function<void()>& fn) {
  ++counters_.captures;
  const Graph graph = captured(fn);
  GraphExec exec;
  check(cudaGraphInstantiate(exec.out(), graph.get(), 0), "instantiate a graph");
  return exec;
}

/// The launches of fn, none of which is made.
Graph CudaBackend::captured(const std::function<void()>& fn) {
  const int64_t launches = counters_.launches;
  Graph graph;
  check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "begin a capture");
  try {
    fn();
  } catch (...) {
    cudaStreamEndCapture(stream_.get(), graph.out());
    throw;
  }
  check(cudaStreamEndCapture(stream_.get(), graph.out()), "end a capture");
  counters_.launches = launches;
  return graph;
}

void CudaBackend::run_ops(const std::function<void()>& fn, bool whole) {
  struct Scope {  // left by an exception too
    CudaBackend& b;
    explicit Scope(CudaBackend& backend) : b(backend) { b.heads_.reset(), b.heads_may_wait_ = true; }
    ~Scope() { b.heads_.reset(), b.heads_may_wait_ = false, b.norm_passed_ = {}; }
  } const scope(*this);
  fn();
  if (whole) store_heads();
}

void CudaBackend::run(uint64_t key, const std::function<void()>& fn) {
  use_device();
  ++counters_.runs;
  if (key == 0) return fn();
  if (recorded_.size() > kMaxRecorded) recorded_.clear(), program_used_ = 0;
  Recorded& r = recorded_[key];
  if (!r.seen) {
    r.program = record(fn, r.n_tokens);
    if (r.program && mode_ != Mode::eager) ++counters_.captures;
  }
  const bool worth = r.n_tokens <= (r.seen ? kMaxGraphRows : kSoonGraphRows);
  r.seen = true;
  if (!r.program && !r.graph[0] && worth && mode_ != Mode::eager) r.graph[0] = capture([&] { run_ops(fn, true); });
  if (r.program) return run_program(r, static_cast<int32_t>(r.program->stages.size()));
  if (!r.graph[0]) return run_ops(fn, true);
  replay(r.graph[0]);
}

void CudaBackend::run_prefix(uint64_t key, int64_t n_ops, const std::function<void()>& fn) {
  use_device();
  ++counters_.runs;
  const auto found = recorded_.find(key);
  if (found == recorded_.end()) return run_ops(fn, false);
  Recorded& r = found->second;
  if (r.program) return run_program(r, r.program->stages_of(n_ops));
  if (!r.graph[0]) return run_ops(fn, false);
  GraphExec& graph = r.prefixes[n_ops];
  if (!graph) graph = capture([&] { run_ops(fn, false); });
  replay(graph);
}

void matvec(const MatmulArgs& args, bool accumulate, cudaStream_t stream) {
  const ProgramLimits limits = decode_limits();
  const auto stage = product_stage(args, accumulate);
  if (!stage) throw Error(ErrorKind::run, "matmul", "no CUDA kernel for this product", format_name(args.w.dtype));
  DecodeLaunch launch;
  launch.end = 1, launch.single_stage = 1;
  launch.n_rows = static_cast<int32_t>(args.x.rows());
  std::vector<DecodeStage> stages{*stage};
  launch.shared = plan_shared(stages, launch.n_rows, 0, limits.n_sms, limits);
  launch.single = stages[0];
  if (launch.shared.n_slots < 2 && launch.n_rows > 1) {  // activations of fewer rows leave more room for weights
    const int64_t first = args.x.rows() / 2, k = args.x.cols(), n = args.out.cols();
    for (int64_t row = 0; row < args.x.rows(); row += first) {
      const int64_t rows = std::min(first, args.x.rows() - row);
      matvec({Tensor(args.x.as<float>() + row * k, DType::F32, {rows, k}), args.w, args.bias,
              Tensor(args.out.as<float>() + row * n, DType::F32, {rows, n})},
             accumulate, stream);
    }
    return;
  }
  if (launch.shared.n_slots < 2)
    throw Error(ErrorKind::run, "matmul", "rows too long for the CUDA kernel", std::to_string(args.w.cols()));
  launch_decode(launch, std::min(limits.n_sms, stage->n_units), false, stream);
}

}  // namespace infer::cuda
