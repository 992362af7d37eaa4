// infer: a transformer inference runtime. This is the whole public interface.
//
//   infer::Model model = infer::Model::load("model.gguf");
//   infer::Engine engine(model);
//   infer::Request request;
//   request.prompt = "The capital of France is";
//   engine.generate(request, [](const infer::Token& t) { fwrite(t.text.data(), 1, t.text.size(), stdout); return true;
//   });
//
// A Model is immutable and may be shared by engines on different threads. An Engine and what it returns belong to one
// thread at a time; only cancel() may be called from any thread. Nothing here prints, exits or keeps global state.
// Every failure is an infer::Error (infer/error.h) whose kind says what the caller can do about it.
#pragma once

#define INFER_VERSION_MAJOR 0
#define INFER_VERSION_MINOR 1
#define INFER_VERSION_PATCH 0

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "infer/error.h"

namespace infer {

using TokenId = int32_t;

/// A metadata value that replaces the file's: KEY=TYPE:VALUE, TYPE one of int, float, bool, str.
struct MetadataOverride {
  std::string key, type, value;
};

/// Replaces what the file says of the rotation of q and k, to reach contexts that the model was not trained for; names
/// and meaning as in llama.cpp. Tables of divisors in a file (Llama 3.x, longrope) and the rope of windowed layers that
/// have one of their own stay. Scalings that depend on the length of a text go by EngineOptions::n_ctx.
struct RopeOptions {
  std::string scaling;        ///< "none", "linear", "yarn", "dynamic"; empty: as in the file
  double freq_base = 0;       ///< 0: as in the file
  double freq_scale = 0;      ///< on positions: 0.25 for a context four times as long; 0: as in the file
  int64_t yarn_orig_ctx = 0;  ///< context that yarn and dynamic stretch; 0: as in the file
  double yarn_ext_factor = -1, yarn_attn_factor = -1, yarn_beta_fast = -1, yarn_beta_slow = -1;  ///< -1: as in the file
};

/// How a GPU multiplies, by the rows of a step (one of each sequence that generates) and the weights' format. Measured
/// by `infer bench --autotune`; there are built-in ones.
struct Crossover {
  static constexpr int64_t most_program = 4, most_rows = 128, never = most_rows + 1;
  std::string device;        ///< name of the GPUs that it holds for, "NVIDIA H200"; empty: of all
  std::string format;        ///< of weights: "Q4_K"
  int64_t program_most = 0;  ///< rows up to which one kernel takes the whole step, 0 to 4; of several formats the least
  int64_t few_least = 0;     ///< from which tensor cores read weights as they lie, for few rows; 1 to 129: never
  int64_t wide_least = 0;    ///< from which they are unpacked in memory, for cuBLASLt; 1 to 129
};
/// Throws Error(usage) naming the first field that is out of range, or a format that there is not.
void validate(const std::vector<Crossover>& crossovers);

struct LoadOptions {
  std::string device =
      "auto";        ///< "auto": the first GPU that the model fits on, else "cpu"; "cuda", "cuda:1", "cpu", "ref"
  bool mmap = true;  ///< false: read the file into memory instead of mapping it
  bool vocab_only = false;     ///< tokenizer, template and metadata; such a model makes no engine
  bool check_tensors = false;  ///< decode every weight once and refuse NaN and Inf by tensor name
  int n_threads = 0;           ///< for packing; 0: one per physical core
  std::string isa;             ///< cpu: "" best of this machine; "scalar", "avx2", "avx512" force a level
  std::string mode;            ///< cuda, how steps run: "" or "auto", "persistent", "graph", "eager"
  bool debug_sync = false;     ///< cuda: eager, waiting for every kernel, so that an error names the one that failed
  std::string act;     ///< activations in products: "" or "auto" by the weights' format, "f16", "bf16", "int8", "fp8"
  bool fusion = true;  ///< false: one simple op after another instead of fused stages, to see what these gain
  /// The same logits to the bit whatever else is computed beside them, in whatever chunks and on however many threads.
  /// On cpu and ref it is so anyway; cuda takes slower kernels, and no mode "persistent".
  bool deterministic = false;
  std::vector<std::string> unfused;   ///< the same for these stages alone: attn_in, attn_out, ffn (experts too), logits
  std::vector<Crossover> crossovers;  ///< cuda: instead of the built-in ones, where device and format match
  std::vector<MetadataOverride> overrides;
  RopeOptions rope;
  std::string quant;  ///< one of quantize_types(): quantise while loading, to the weights that quantize() writes
  bool allow_requantize = false;  ///< as in QuantizeOptions
  /// Called from the loading thread with a fraction in [0, 1]; returning false cancels the load (Error run).
  std::function<bool(double)> progress;
};

/// A tensor of the file, for inspection.
struct TensorInfo {
  std::string name, type;
  std::vector<int64_t> dims;  ///< row-major, outermost first
  size_t bytes = 0;
};

struct ModelInfo {
  std::string path, format, arch, name, file_type;  ///< file_type as people say it: "Q4_K - Medium"
  std::string device;                               ///< what computes: "cpu (avx512 vnni bf16, 2 threads)"
  std::string device_note;                          ///< why "auto" left a GPU alone that is there
  size_t file_bytes = 0;
  int64_t n_params = 0, n_layers = 0, dim = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0, ffn_dim = 0, vocab = 0;
  int64_t n_experts = 0, n_active = 0;  ///< of a layer with experts, and those that a token meets; 0: dense
  int64_t n_active_params = 0;          ///< weights that a token meets: n_params less the experts it does not choose
  int64_t context_length = 0;           ///< the file's ceiling
  size_t mapped_bytes = 0;              ///< weights used where they lie in the file
  size_t packed_bytes = 0;              ///< weights repacked for the device
  size_t stream_bytes = 0;              ///< weight bytes that one decoded token reads
  size_t tensor_bytes = 0;              ///< all tensors as stored in the file
  double load_seconds = 0;
  /// What load_seconds went into, in order: "open", "convert", "tokenizer", "device", "weights".
  std::vector<std::pair<std::string, double>> load_phases;
  bool has_tokenizer = false, has_chat_template = false;
  std::vector<std::pair<std::string, std::string>> metadata;  ///< key, escaped one-line text
  std::vector<std::pair<std::string, std::string>> metadata_types;
  std::vector<TensorInfo> tensors;
  std::vector<std::string> warnings;
  /// Sampling defaults that the model's author put into the file: "temp" -> 0.6 and so on; empty when there are none.
  std::vector<std::pair<std::string, double>> author_sampling;
};

/// What inspect() learns without loading weights: whether the model will run here, and what it needs.
struct Inspection {
  ModelInfo info;
  std::string refusal;  ///< empty when it will run, else the error that load() would give
  size_t packed_bytes = 0, kv_bytes_per_token = 0, scratch_bytes = 0;
  size_t peak_bytes = 0;  ///< planned peak of a CPU run at context `n_ctx`
  int64_t n_ctx = 0;
};

/// What an engine will take of the memory of a device, by purpose; from headers alone.
struct MemoryPlan {
  std::string device;   ///< "cuda (NVIDIA H200, sm_90, 132 SMs)", or the name alone where none was asked
  std::string refusal;  ///< empty when all of it fits, else why not, with the largest context that would fit
  std::string k_type, v_type;
  std::string cache_note;  ///< as in EngineStats
  int64_t n_ctx = 0, n_seqs = 1;
  int64_t context_length = 0;  ///< the file's ceiling
  int64_t largest_ctx = 0;     ///< that would fit; 0: none
  size_t available_bytes = 0;
  size_t mapped_bytes = 0;                                         ///< weights used where they lie in the file
  size_t matrix_bytes = 0, embedding_bytes = 0, vector_bytes = 0;  ///< packed weights
  size_t expert_bytes = 0;                                         ///< of the matrices, those of experts
  size_t kv_bytes_per_token = 0, kv_bytes = 0;
  size_t rope_bytes = 0, activation_bytes = 0, scratch_bytes = 0;
  size_t program_bytes = 0;  ///< the program itself, or the driver's context on a device
  size_t total_bytes = 0;
};

struct ChatMessage {
  std::string role, content;
};

struct ChatOptions {
  bool add_generation_prompt = true;
  std::string template_source;                ///< Jinja source or the name of a built-in one; empty: the model's own
  std::string tools_json, variables_json;     ///< JSON array / object, or empty
  std::optional<std::string> date, bos, eos;  ///< date: what strftime_now returns
};

/// A rendered chat: the text, and its ids with control tokens recognised only where the template wrote them.
struct ChatPrompt {
  std::string text;
  std::vector<TokenId> ids;
};

struct EngineOptions;

class Model {
 public:
  /// Throws Error: bad_file, does_not_fit, run (unreadable, cancelled), usage (unknown device).
  static Model load(const std::string& path, const LoadOptions& options = {});
  /// A model in the shape of a published one, with random weights in the formats that quantize() would choose for
  /// options.quant (empty: F16), and without a tokenizer: to measure speed where there is no file. Throws Error: usage
  /// (not one of shapes(), type), does_not_fit.
  static Model random(const std::string& shape, const LoadOptions& options = {});
  /// "135m", "1b", "8b" ...
  static std::vector<std::string> shapes();
  /// Reads headers only and never throws for a model that merely will not run: see Inspection::refusal.
  static Inspection inspect(const std::string& path, int64_t n_ctx = 0, const LoadOptions& options = {});

  /// What an engine with these options needs. `memory_bytes` plans for a device with that much, which need not be there
  /// (device "auto" is then a GPU); 0: what is free here now. Throws Error for a model or options that cannot run at
  /// all.
  static MemoryPlan plan(const std::string& path, const EngineOptions& engine, const LoadOptions& options = {},
                         size_t memory_bytes = 0);

  const ModelInfo& info() const;

  /// Text to ids. add_special: BOS and EOS as the file says; parse_special: control tokens inside the text are
  /// recognised.
  std::vector<TokenId> tokenize(std::string_view text, bool add_special = true, bool parse_special = true) const;
  /// The exact bytes of the tokens; special tokens print their text.
  std::string detokenize(std::span<const TokenId> ids) const;
  /// What one token adds to a streamed answer; empty for control tokens.
  std::string token_text(TokenId id) const;
  bool is_end_of_generation(TokenId id) const;
  int64_t vocab() const;

  /// Renders messages with the model's template. Throws Error(usage) naming the choices when there is none.
  ChatPrompt apply_template(const std::vector<ChatMessage>& messages, const ChatOptions& options = {}) const;
  /// Same for messages given as a JSON array (tool calls, content lists).
  ChatPrompt apply_template_json(const std::string& messages_json, const ChatOptions& options = {}) const;
  const std::string& chat_template() const;  ///< Jinja source of the file's own template, or ""
  static std::vector<std::string> chat_template_names();

  struct Impl;
  explicit Model(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  const Impl& impl() const { return *impl_; }

 private:
  std::shared_ptr<const Impl> impl_;
};

/// Renders a template without a model. Throws Error(run) with line and column when the template fails.
std::string render_template(const std::string& source, const std::string& messages_json, const ChatOptions& options);

struct Sampling {
  float temperature = 0.8f;  ///< 0: greedy
  int top_k = 40;            ///< 0: off
  float top_p = 0.95f, min_p = 0.05f, typical_p = 1.0f;
  int repeat_last_n = 64;  ///< 0: none, -1: whole context
  float repeat_penalty = 1.0f, presence_penalty = 0.0f, frequency_penalty = 0.0f;
  std::vector<std::pair<TokenId, float>> logit_bias;  ///< -infinity forbids a token
  bool ignore_eos = false;                            ///< go on past end-of-generation tokens; they are still drawn
  int64_t seed = -1;  ///< -1: random; else the same request gives the same tokens every time
};
/// Throws Error(usage) naming the field that is out of range.
void validate(const Sampling& sampling);

enum class FinishReason {
  stop,       ///< end-of-generation token or a stop string
  length,     ///< max_tokens reached
  context,    ///< the context is full
  cancelled,  ///< callback returned false, or cancel()
  error,      ///< see Result::error; other requests go on
};
const char* to_string(FinishReason reason);

struct Token {
  TokenId id = -1;
  std::string text;   ///< complete UTF-8 characters only; may be empty while a character is incomplete
  float logprob = 0;  ///< natural log of its probability under the unmodified logits; see Request::logprobs
  std::vector<std::pair<TokenId, float>> top_logprobs;  ///< Request::n_top_logprobs of them
};

/// Times of one request, in seconds; forward passes only, without tokenisation and sampling unless the name says so. A
/// forward pass that computes several requests counts in full for each of them.
struct Timings {
  int64_t n_prompt = 0;  ///< tokens of the prompt
  int64_t n_reused = 0;  ///< of these, taken from the prefix index
  int64_t n_generated = 0;
  double prompt_seconds = 0;  ///< forward time of the n_prompt - n_reused tokens that were computed
  double decode_seconds = 0;  ///< forward time of the n_generated - 1 steps after the first token
  double sample_seconds = 0;
  double first_token_seconds = 0;  ///< wall time from submit to the first token
  double total_seconds = 0;
};

struct Result {
  FinishReason reason = FinishReason::stop;
  std::string error;         ///< for FinishReason::error
  std::string stop_string;   ///< which one ended it, if one did
  std::string text;          ///< all text that was given to the callback
  std::vector<TokenId> ids;  ///< all new ids, the end-of-generation token included
  Timings timings;
};

/// Receives every token; returning false ends the request with FinishReason::cancelled.
using TokenCallback = std::function<bool(const Token&)>;
using DoneCallback = std::function<void(const Result&)>;

struct Request {
  std::string prompt;  ///< used when `ids` is empty: tokenised with special tokens added and parsed
  std::vector<TokenId> ids;
  int64_t max_tokens = -1;  ///< -1: until a stop or the end of the context; 0: compute the prompt only
  Sampling sampling;
  std::vector<std::string> stop;  ///< stop strings; never part of the text
  std::vector<TokenId> stop_ids;
  bool logprobs = false;     ///< fill Token::logprob
  int n_top_logprobs = 0;    ///< likeliest tokens to report with each token; at most 1000; implies logprobs
  bool reuse_prefix = true;  ///< false: neither take prefixes from the index nor leave any there
};

struct EngineOptions {
  int64_t n_ctx = 0;                       ///< positions per sequence; 0: the model's, or what fits
  int64_t n_seqs = 1;                      ///< sequences that can be in flight at once
  int64_t n_batch = 2048, n_ubatch = 512;  ///< tokens scheduled, computed at a time
  int64_t n_outputs = 0;  ///< rows of logits that logits() and score() compute at a time, 4 * vocab bytes each; 0: 64
  int n_threads = 0;      ///< 0: one per physical core
  std::string k_type, v_type;         ///< KV cache: f32 f16 bf16 q8_0 q4_0; empty: f16, on ref f32
  std::string isa, mode, act;         ///< as in LoadOptions; empty: as the model was loaded with
  bool debug_sync = false;            ///< the same; on when either is
  bool fusion = true;                 ///< the same; off when either is
  bool deterministic = false;         ///< the same; on when either is
  std::vector<std::string> unfused;   ///< the same; off where either names a stage
  std::vector<Crossover> crossovers;  ///< the same; empty: as the model was loaded with
  /// Positions of all sequences together; 0: n_seqs * n_ctx. With fewer, the newest sequence gives way when all are
  /// taken and is computed again later, with the same tokens.
  int64_t n_pool = 0;
};

struct EngineStats {
  int64_t n_ctx = 0, n_pages = 0, n_free_pages = 0, n_cached_pages = 0;
  size_t kv_bytes = 0, kv_bytes_per_token = 0, scratch_bytes = 0;
  int64_t n_steps = 0, n_tokens = 0;     ///< forward passes, and tokens computed in them
  int64_t n_steps_ahead = 0;             ///< of the passes, started before the tokens of the one before were known
  double forward_seconds = 0;            ///< in these passes
  int64_t n_preempted = 0;               ///< times a sequence gave its pages to an older one
  int64_t n_running = 0, n_waiting = 0;  ///< requests that hold pages, and that wait for some
  int64_t n_allocations = 0, n_parallel_regions = 0;    ///< of the backend, ever
  int64_t n_launches = 0, n_captures = 0, n_syncs = 0;  ///< of a GPU, ever: launches, recorded steps, waits of the host
  size_t device_free_bytes = 0;  ///< on a device with memory of its own, when the engine had been made
  int n_threads = 0;
  std::string backend;
  std::string cache_note;  ///< one line where attention over these two types of the KV cache is slow, and what is not
};

using RequestId = int64_t;

/// Several texts on their way through an engine, to learn the logits after their positions: Engine::score() makes one.
/// It holds pages of the KV cache, and must not outlive its engine.
class Scoring {
 public:
  /// Gets the index of the text, the position and [vocab] floats that are valid during the call.
  using RowCallback = std::function<void(size_t text, int64_t position, std::span<const float> row)>;

  /// Computes one step and hands out its rows: the positions of a text in ascending order, at most
  /// EngineOptions::n_outputs rows in all. Two engines with the same options go through the same texts in the same
  /// steps, so that models can be compared while only one step's rows are kept. False when nothing was left to compute.
  /// Throws Error(run) for logits that are not finite, naming the stage where that begins.
  bool step(const RowCallback& on_row);

  Scoring(Scoring&&) noexcept;
  ~Scoring();
  struct Impl;
  explicit Scoring(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

class Engine {
 public:
  /// Throws Error: usage (bad option, vocabulary-only model), does_not_fit (names the largest context that would).
  explicit Engine(const Model& model, const EngineOptions& options = {});
  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

  /// Queues a request. Throws Error(usage) for a prompt that does not fit, empty or unknown ids, sampling out of range.
  RequestId submit(const Request& request, TokenCallback on_token, DoneCallback on_done);
  /// One step of all requests in flight: prompts in chunks beside decoding. False when nothing is left to do.
  bool step();
  /// Ends a request at the next step; from any thread. Unknown ids are ignored.
  void cancel(RequestId id);

  /// submit() and step() until this request is done.
  Result generate(const Request& request, TokenCallback on_token = nullptr);

  /// Logits after every position in [first, ids.size()), or only after the last when first is negative. The callback
  /// gets position and [vocab] floats valid during the call.
  void logits(std::span<const TokenId> ids, int64_t first,
              const std::function<void(int64_t position, std::span<const float>)>& on_row);

  /// The same for up to n_seqs texts that are computed together, after every position from `first` on of each. Throws
  /// Error(usage) for texts or `first` as logits() does, does_not_fit when requests in flight hold the pages.
  Scoring score(std::vector<std::vector<TokenId>> texts, int64_t first);

  /// Forgets all cached prefixes.
  void clear_cache();
  EngineStats stats() const;
  /// What the steps of a GPU go by, one for each format of its matrices; empty elsewhere.
  std::vector<Crossover> crossovers() const;

  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

/// One comparison of self_test(): an op on one shape with so many tokens, against the reference. Errors are relative to
/// the root mean square of what the reference gives; numbers that are not finite make them infinite.
struct SelfTestRow {
  std::string op, format, shape;
  int64_t n_tokens = 0;
  double max_error = 0, rms_error = 0;
  double max_limit = 0, rms_limit = 0;
  bool passed = false;
};

struct SelfTest {
  std::string device;
  std::vector<SelfTestRow> rows;
  std::vector<std::string> notes;  ///< what was not compared, and why
  double seconds = 0;
  bool passed = false;  ///< all rows
};

/// Computes every kind of layer that the model at `path` has, the embedding and the output head with its own weights
/// and random activations on the device of `options`, stage by stage and as whole steps in every mode, and compares
/// with the reference backend. Needs memory for one layer of each kind, not for the model. k_type and v_type: as in
/// EngineOptions. `progress` (may be null) gets a line now and then. Throws Error as load() does.
SelfTest self_test(const std::string& path, const LoadOptions& options = {}, const std::string& k_type = {},
                   const std::string& v_type = {}, const std::function<void(const std::string&)>& progress = nullptr);

/// What quantize() makes of one tensor.
struct QuantizedTensor {
  std::string name, from, to;
  std::vector<int64_t> dims;  ///< row-major, outermost first
  size_t bytes = 0, new_bytes = 0;
  bool has_importance = false;
  std::string
      note;  ///< why it is not what the type asks for: "rows of 576 are no multiple of 256: Q5_0 instead of Q4_K"
};

struct QuantizeOptions {
  std::string type;               ///< one of quantize_types(), in upper or lower case
  bool allow_requantize = false;  ///< also what is quantised already, which adds one error to another
  bool pure = false;              ///< all tensors alike, no mixture
  bool leave_output_tensor = false;
  bool dry_run = false;  ///< nothing is computed or written
  /// Regular expression found in a tensor's name, and the format for it; the first that is found counts.
  std::vector<std::pair<std::string, std::string>> tensor_types;
  std::string output_tensor_type, token_embedding_type;   ///< formats, or empty
  std::string imatrix;                                    ///< importance matrix: a GGUF file, as llama.cpp writes them
  int n_threads = 0;                                      ///< 0: one per physical core
  std::function<void(const QuantizedTensor&)> on_tensor;  ///< before each tensor, in the order of the file
  /// Called from the calling thread with a fraction in [0, 1]; returning false cancels (Error run).
  std::function<bool(double)> progress;
};

struct QuantizeReport {
  std::vector<QuantizedTensor> tensors;
  std::vector<std::string> notes;   ///< about the whole: what an importance matrix, or the new file, does not know
  size_t bytes = 0, new_bytes = 0;  ///< of all tensors
  size_t file_bytes = 0;            ///< of the new file
  int64_t n_weights = 0;
  double seconds = 0;
};

/// Writes the model at `in`, a GGUF file (all parts of it) or a Hugging Face folder, to the GGUF file `out`, weights in
/// another format. Tensor by tensor: needs memory for a few rows. The file gets its name when it is complete; whatever
/// happens before, nothing is left behind. Throws Error: usage (type, in and out the same file, requantising that was
/// not allowed), bad_file (model or importance matrix; a weight that is not finite, by tensor and row), run (disk,
/// cancelled).
QuantizeReport quantize(const std::string& in, const std::string& out, const QuantizeOptions& options);
/// What QuantizeOptions::type may be: llama.cpp's mixtures and plain formats.
std::vector<std::string> quantize_types();
/// The one of them that `name` means, in whatever case; short names count too ("q4_k" is Q4_K_M). Throws Error(usage)
/// listing them.
std::string quantize_type(const std::string& name);

struct ImatrixOptions {
  int64_t n_ctx = 512;                ///< tokens to a chunk; the first becomes BOS where the model wants one
  int64_t n_ubatch = 512;             ///< tokens computed at a time
  int64_t first_chunk = 0;            ///< chunks of the text that are passed over, to go on where another run stopped
  int64_t n_chunks = -1;              ///< of the text; -1: all that is left
  bool process_output = false;        ///< the output head too
  bool parse_special = false;         ///< control tokens inside the text are recognised
  int n_threads = 0;                  ///< 0: one per physical core
  std::string isa;                    ///< as in LoadOptions; empty: as the model was loaded with
  std::vector<std::string> in_files;  ///< importance matrices whose sums are added to the new ones
  std::string dataset;                ///< what the text is called in the file
  int64_t save_every = 10;            ///< chunks after which the file is written again; 0: at the end only
  /// Called with a fraction in [0, 1] after every step; returning false ends it, see ImatrixReport::cancelled.
  std::function<bool(double)> progress;
};

/// What an importance matrix was written with.
struct ImatrixReport {
  int64_t n_chunks = 0;    ///< of this text
  int64_t all_chunks = 0;  ///< those of in_files included
  int64_t n_tensors = 0;
  /// Ended early. A file that this run had written before holds n_chunks of the text now; else n_chunks is 0, and
  /// whatever had the file's name is untouched.
  bool cancelled = false;
  double seconds = 0;
};

/// Measures how much each input of each matrix of the model matters on a text, for QuantizeOptions::imatrix: the sum of
/// the squares of every column of its inputs, as llama.cpp's tool of that name finds it and in the same GGUF form.
/// Whole chunks count, the rest of the text does not. The file is written whole under another name and then gets its
/// own, every save_every chunks and at the end. Throws Error: usage (a text shorter than a chunk, an option out of
/// range), bad_file (in_files that are none or of another model), run (disk, activations that are not finite).
ImatrixReport collect_imatrix(const Model& model, std::string_view text, const std::string& out,
                              const ImatrixOptions& options = {});
/// The sums of several importance matrices in one file. Throws Error: bad_file, run (disk).
ImatrixReport merge_imatrix(const std::vector<std::string>& in_files, const std::string& out);

/// Devices that can be used here, one "name: summary" each.
std::vector<std::string> list_devices();
/// The others, with the reason.
std::vector<std::string> list_unusable_devices();

/// Read bandwidth of main memory in GB/s, measured now with `n_threads` (0: one per physical core) in about `seconds`.
double measure_read_bandwidth(int n_threads = 0, double seconds = 0.5);
/// Peak of int8 multiply-add of the CPU's best instruction set in 1e9 operations/s (multiply and add are two),
/// measured.
double measure_int8_peak(int n_threads = 0, double seconds = 0.2);
/// The same of GPU 0, or of the one that this thread has used last: memory in GB/s, bf16 products in 1e12 operations/s.
/// Measured once per process. Throws Error(run) without one.
double measure_gpu_read_bandwidth();
double measure_gpu_tensor_peak();

/// A GPU as the CUDA runtime sees it.
struct GpuInfo {
  int index = 0;
  std::string name, unusable;  ///< the second: why nothing can be computed on it; empty when all is well
  std::string pci_bus_id;      ///< "0000:17:00.0": what other libraries know it by
  int major = 0, minor = 0;    ///< compute capability
  int n_sms = 0;
  int driver_version = 0, runtime_version = 0;  ///< of CUDA: 12080 is 12.8
  size_t total_bytes = 0, free_bytes = 0;       ///< where they were asked for
};
/// All that are visible; none without a driver or in a program built without CUDA, see list_unusable_devices(). Asking
/// for memory makes a context on each GPU that can be used, which lives as long as the process.
std::vector<GpuInfo> list_gpus(bool with_memory = false);

/// GB/s of copies of a quarter of a gigabyte, on the device of a whole one; best of several.
struct GpuCopySpeeds {
  double pinned_to_device = 0, pinned_from_device = 0, pageable_to_device = 0, pageable_from_device = 0;
  double on_device =
      0;  ///< from one place of its memory to another, counted once: reads and writes together move twice that
};
/// Measured now; this thread has then used that GPU last. Throws Error(run, does_not_fit).
GpuCopySpeeds measure_gpu_copies(int index);

/// The host as infer computes on it.
struct HostInfo {
  std::string isa;             ///< level of the kernels that is chosen here: "avx512"
  int n_threads = 0;           ///< chosen where nobody says how many
  size_t available_bytes = 0;  ///< of memory, the limits of control groups among the reasons
  std::string build;           ///< of the library: "optimised", "not optimised", "sanitized"
};
HostInfo host_info();

/// A kernel of a GPU as a stage launches it.
struct KernelProfile {
  std::string name;          ///< as in the source, with what it was made for: "matmul_wgmma_kernel<Q4_K, 16>"
  int64_t n_launches = 0;    ///< in one step
  int64_t n_blocks = 0;      ///< of a launch
  int n_threads = 0;         ///< of a block
  int registers = 0;         ///< of a thread
  int64_t local_bytes = 0;   ///< of a thread, in memory: what registers had no room for
  int64_t shared_bytes = 0;  ///< of a block
  int blocks_per_sm = 0;     ///< that there is room for
  double occupancy = 0;      ///< the same as a share of the threads that an SM has room for
};

/// One kind of op in the steps of a profile, all its calls together.
struct StageProfile {
  std::string stage;  ///< "embed", "attn_in", "attention", "attn_out", "ffn" ...
  int64_t n_calls = 0;
  int64_t n_launches = 0;   ///< of kernels, when the op runs by itself; on a CPU, parallel regions
  double seconds = 0;       ///< see StepProfile
  double weight_bytes = 0;  ///< as the device holds them, each read once per call
  double activation_bytes =
      0;                  ///< and of the KV cache; of a fused stage those of its definition, which it does not all move
  double flops = 0;       ///< multiply and add are two
  double call_bytes = 0;  ///< most that one call touches
  std::vector<KernelProfile> kernels = {};  ///< on a GPU, of the first step that has this op
};

struct ProfileOptions {
  int64_t n_prompt = 0;         ///< tokens computed n_ubatch at a time ...
  int64_t n_gen = 0;            ///< ... or one after another; one of the two is 0
  int64_t depth = 0;            ///< tokens in the cache before them
  int64_t n_seqs = 1;           ///< so many sequences of these lengths side by side; of profile_steps()
  int64_t repetitions = 3;      ///< added up, after one that does not count
  std::function<bool()> go_on;  ///< asked between steps; returning false cancels (Error run)
};

/// Where the time of a phase goes, by the device's clock. On a CPU every op is timed by itself. On a GPU ops overlap,
/// or are parts of one kernel: there prefixes of a step (its first n ops) run as the step does, recorded or not, each
/// behind a whole step, and what a prefix takes longer than the one before is the time of the op that it has more. Of
/// generation that is the step in the middle, all prefixes of it. The same steps as usual are timed in turn with these.
/// Seconds are those of the repetition whose time is the median, times the number of repetitions.
struct StepProfile {
  std::string device;
  int n_threads = 0;
  std::vector<StageProfile> stages;  ///< in the order of their first call
  int64_t n_steps = 0, n_tokens = 0;
  double step_seconds = 0;  ///< of these steps; what the stages leave of it lies between them, or before the first
  int64_t n_prefixes = 0;   ///< that were timed; 0: every op by itself
  int64_t n_prefix_ops =
      0;  ///< ops of the steps that they are of; without a time for each, ops by themselves divide it
  double whole_seconds = 0;                 ///< of the same steps as usual, on a GPU recorded, by the device's clock
  double wall_seconds = 0;                  ///< the same by the host's, from the start of a step to its result
  int64_t n_whole_launches = 0;             ///< in these
  double launch_seconds = 0;                ///< of an op with next to no work: what each launch costs at least
  size_t cache_bytes = 0;                   ///< of the largest cache; 0: not known
  std::vector<KernelProfile> step_kernels;  ///< of a step that is one kernel as usual; else empty
};
/// Throws Error as Engine does. Draws count where the device makes them.
StepProfile profile_steps(const Model& model, const EngineOptions& engine, const ProfileOptions& options);

/// What the host does while a sequence is generated, from its first token on.
struct HostProfile {
  std::string device;
  int n_threads = 0;
  bool host_computes = false;  ///< the device is the CPU: the host's thread is one of those that compute
  int64_t n_tokens = 0, n_steps_ahead = 0;
  int64_t n_launches = 0;  ///< of kernels and graphs; on a CPU, parallel regions
  int64_t n_waits = 0;     ///< of the host for all work of a device
  double wall_seconds = 0;
  double busy_seconds = 0;      ///< in steps, by the device's clock
  double gap_seconds = 0;       ///< from the end of a step to the begin of the next, by the same
  double cpu_seconds = 0;       ///< of the host's thread: time on a core
  double step_cpu_seconds = 0;  ///< of it, inside steps: computing on a CPU, launching on a GPU
};
/// n_prompt counts 1 at least.
HostProfile profile_host(const Model& model, const EngineOptions& engine, const ProfileOptions& options);

}  // namespace infer
