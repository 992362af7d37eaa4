// A decode step as data: the stages of a forward pass over up to kMaxDecodeRows tokens, one of each sequence, in the
// order in which the kernel of decode.cuh walks them. Recorder turns the calls of the backend seam into such a program;
// it is pure logic on shapes and addresses, testable without a GPU. Results pass from stage to stage through exchange
// buffers, two copies of each by the parity of the layer, whose empty places hold -0.0 (see exchange.cuh). Which copy a
// stage reads and which it writes is settled here: a program has descriptions for steps that begin with either.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda/packed.h"
#include "kernels/ops.h"
#include "quant/host_device.h"

namespace infer::cuda {

inline constexpr int kMaxDecodeRows = 4;
inline constexpr int kWarps = 16;               ///< consumers of a CTA; one more warp fetches
inline constexpr int kConsumers = kWarps * 32;  ///< threads
/// Teams of warps take the chunks in turn, by the rows that a kernel is made for: with one row, more teams of fewer
/// warps, since what a warp does for each tile costs more than what it does for each chunk.
constexpr int n_teams(int rows) { return rows <= 2 ? 4 : 2; }
constexpr int team_warps(int rows) { return kWarps / n_teams(rows); }
/// Rows of a chunk of plain weights, by the rows that a kernel is made for: so that each team has the same rows of all
/// tiles.
constexpr int plain_rows(int rows) { return kTileRows / n_teams(rows); }
inline constexpr int kMaxSlots = 20;  ///< of the ring
/// How many of `n` slots the ring has. Where teams do not divide their number a slot serves one team after another, and
/// a barrier tells one round from the next, not from the one after that: who waits for chunk c must know that chunk
/// c - n, which lay there before, has come. Its team has had c - n_teams, and whoever asked for that had seen all but
/// the last in_flight chunks before it.
constexpr int ring_slots(int n, int n_teams, int in_flight) {
  return n < n_teams + in_flight ? n / n_teams * n_teams : n;
}
/// Shared memory that the decode kernel has beside what a plan lays out; checked where that is compiled.
inline constexpr int kFixedShared = 6912;
/// Tiles whose sums, one of each warp, are kept until they are finished, a value a thread: by the rows that a kernel is
/// made for, and the tiles of a unit.
constexpr int kept_tiles(int rows, int parts) {
  const int most = kConsumers / kTileRows / rows * parts;
  return most < 16 ? most : 16;
}

/// Bytes of shared memory of an attention stage: queries, K and V, what names the unit, kAttendBytes of scratch
/// (checked against attention_decode.cuh where that is compiled).
inline constexpr int kAttendBytes = 33792;
constexpr int attention_area_bytes(int head_dim) { return (8 + 2) * head_dim * 4 + 512 + kAttendBytes; }

/// Experts of a token in a program, those it is chosen from, and shared memory for the choice beside a router's row.
inline constexpr int kMostActive = 16, kMostRouted = 128, kChoiceBytes = 256;

/// How the input of a product lies in shared memory: as its weights want it.
enum class ActForm : int32_t { int8, f16, bf16, f32 };

enum class StageKind : int32_t { product, attention };
enum class StageInput : int32_t {
  residual,  ///< x of the exchange (at first: the embedding), normed
  vector,    ///< f32 of the exchange: attention's result
  hidden,    ///< activated gate * up: int8 groups of 16, pairs of 16 bits in a word, or f32
  plain,     ///< f32 in global memory, all there
};
/// Where x of a residual input comes from.
enum class XSource : int32_t {
  exchange,   ///< as it is
  embedding,  ///< of the step's tokens
  branch,     ///< the exchange, and beside it the last branch, whose norm and sum are still to be made
};
enum class StageOutput : int32_t {
  vector,    ///< f32 in the exchange
  residual,  ///< x + scale * result in the exchange; where the result is to be normed first: x, then the result
  hidden,    ///< see StageInput
  logits,
  plain,  ///< f32 in global memory
};

/// Products know a format, and whether all chunks of its rows are whole, as one number: 2 * its place in GpuFormats + 1
/// where they are.
template <class... F>
constexpr int count_formats(FormatList<F...>) {
  return static_cast<int>(sizeof...(F));
}
template <int kIndex, class First, class... Rest>
auto format_at(FormatList<First, Rest...>) {
  if constexpr (kIndex == 0) {
    return First{};
  } else {
    return format_at<kIndex - 1>(FormatList<Rest...>{});
  }
}
inline constexpr int kDotKernels = 2 * count_formats(GpuFormats{});
template <int kKernel>
using DotFormat = decltype(format_at<kKernel / 2>(GpuFormats{}));
INFER_HD constexpr bool dot_kernel_is_whole(int kernel) { return kernel % 2 == 1; }

struct MatrixArg {
  const uint8_t* data = nullptr;
  const float* bias = nullptr;    ///< [rows]
  int32_t dtype = 0, kernel = 0;  ///< kernel: dot_kernel_of
  int32_t rows = 0, cols = 0;
  int32_t n_tiles = 0, n_chunks = 0;
  int32_t end = 0, run_end = 0;  ///< tiles of the stage up to this matrix's last, and to that of the last one
                                 ///< behind it of the same kernel
  int32_t chunk_bytes = 0, last_bytes = 0;  ///< of a tile's chunks; plain formats: of one row of a chunk
  int64_t tile_bytes = 0;                   ///< plain formats: row stride
  int32_t out_offset = 0;                   ///< of row 0 in the stage's output row
  int32_t is_plain = 0;
};

struct EmbeddingArg {
  const uint8_t* table = nullptr;
  const int32_t* ids = nullptr;
  int32_t dtype = 0;
  float scale = 1;
  int64_t row_bytes = 0;
};

struct AttentionArg {
  uint8_t *k_cache = nullptr, *v_cache = nullptr;
  int32_t k_type = 0, v_type = 0;
  int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0, max_pages = 0;
  int32_t group = 1;          ///< query heads of a KV head
  int32_t n_head_groups = 1;  ///< units that these make
  const int32_t *page_table = nullptr, *kv_len = nullptr, *positions = nullptr, *slots = nullptr;
  const float *q_norm = nullptr, *k_norm = nullptr, *cos_sin = nullptr, *sinks = nullptr;
  int32_t rope_pairs = 0;
  bool adjacent = false;
  bool q_spans = false, k_spans = false;  ///< the norm is of all heads at once, its weights [heads * head_dim]
  float eps = 0, scale = 1, softcap = 0;
  int32_t window = 0, max_splits = 1;
  int32_t chunk_keys = 0;  ///< positions of a chunk of the ring; 0: keys and values do not pass through it
  int32_t k_page_bytes = 0, v_page_bytes = 0;    ///< of one head in one page
  int32_t k_rotation = 1, v_rotation = 1;        ///< of heads in the cache, kv_rotation()
  float *meet = nullptr, *meet_other = nullptr;  ///< exchange [parts][max_splits][8][head_dim + 2]: what splits found
};

/// Of the two products of a token's experts. Gate and up have the tiles of one expert after those of another, in the
/// order of the choice; down has their columns side by side, so that the sum over experts is that of a longer row.
/// Which experts those are is found within gate and up: each CTA makes one of the router's logits with the norm, and
/// all make the same choice of them. What an expert counts goes into its hidden values.
struct ExpertsArg {
  const uint8_t* router = nullptr;  ///< plain weights [n_experts, dim]
  const float* bias = nullptr;      ///< of the router
  int64_t router_row_bytes = 0;
  int64_t expert_bytes[2] = {};                      ///< of one expert's matrix of w[i]
  float *logits = nullptr, *logits_other = nullptr;  ///< exchange [n_experts]
  int32_t router_dtype = 0, n_experts = 0, sum_to_one = 0;
  int32_t n_tiles = 0;  ///< of one expert's gate
  float scale = 1;      ///< on what experts count
};

struct alignas(16) DecodeStage {
  DecodeStage() {}  // NOLINT(modernize-use-equals-default): nvcc takes a defaulted one for deleted, for the union
  StageKind kind = StageKind::product;
  StageInput input = StageInput::plain;
  StageOutput output = StageOutput::plain;
  ActForm form = ActForm::int8;
  ActForm hidden_form = ActForm::int8;  ///< of the stage that reads a hidden output
  int32_t n_matrices = 0, n_parts = 1;  ///< 2 parts: gate and up tiles of the same rows make one unit
  int32_t n_units = 0, first_cta = 0;
  int32_t n_active = 0;               ///< experts of a token; 0: a product like any other
  int32_t next_streamed = INT32_MAX;  ///< index of the next stage with something for the ring
  MatrixArg w[3];
  int32_t cols = 0;                                   ///< of the input
  int32_t in_layer = 0, out_layer = 0;                ///< their parity chooses the copy of the exchange
  int32_t in_width = 0, out_width = 0;                ///< floats of a row
  float *in = nullptr, *out = nullptr;                ///< [rows][width]; out in the exchange: this layer's copy
  uint8_t *in_codes = nullptr, *out_codes = nullptr;  ///< hidden int8: [rows][cols] beside scales in `in`, `out`
  float* other = nullptr;                             ///< the copy that is emptied while `out` is written
  uint8_t* other_codes = nullptr;
  /// Exchange [n_soon]: that results are near, a word of each part of attention of each token, or of each CTA in gate
  /// and up where these leave codes; written by one stage and read by the next.
  float *soon = nullptr, *soon_other = nullptr;
  int32_t n_soon = 0;
  int32_t in_rotation = 1;  ///< of the input, to be taken back: of attention's values
  // residual input, of XSource::branch [rows][2 * dim]: x without the last branch, then that branch
  const float *norm = nullptr, *post_norm = nullptr;
  float eps = 0, post_eps = 0, post_scale = 1;
  XSource x_source = XSource::exchange;
  EmbeddingArg embedding;
  // residual output, and the residual input before it: whose rows of x each CTA keeps
  float residual_scale = 1;
  int32_t own_first_cta = -1;  ///< first_cta of the output's stage; -1: nothing is kept
  int32_t own_at = 0;          ///< where those lie in shared memory, of row 0; plan_shared() says
  int32_t own_copy = 0;        ///< of the two places for kept rows
  bool gelu = false;           ///< else SiLU
  bool accumulate = false;     ///< plain output
  float logit_scale = 1, softcap = 0;
  union {
    AttentionArg attention{};
    ExpertsArg experts;  ///< where n_active > 0
  };
};

/// Offsets into the dynamic shared memory of a CTA, and the ring's geometry.
struct SharedPlan {
  int32_t n_slots = 0, slot_bytes = 0, in_flight = 0;
  int32_t own = 0, choice = 0, act = 0, total = 0;  ///< the ring begins at 0; sums end at the total
  int32_t own_tiles = 0;                            ///< tiles of rows of x that a CTA keeps
  int32_t act_row_bytes = 0;
  int32_t kernel_rows = 1;  ///< the kernel's instance: 1, 2 or 4 rows
  bool experts = false;     ///< the instance for 1 row that also knows experts, and norms over all heads
};

/// Whether a stage has something for the ring: weights, or keys and values.
INFER_HD bool is_streamed(const DecodeStage& s) { return s.kind == StageKind::product || s.attention.chunk_keys > 0; }

struct DecodeLaunch {
  const DecodeStage* stages = nullptr;  ///< device memory; null: `single`
  DecodeStage single;
  int32_t begin = 0, end = 0, n_rows = 1, dim = 0;
  int32_t single_stage = 0;            ///< rows of x that a CTA keeps come from and go to x_save
  const AttentionArg* rows = nullptr;  ///< of the first attention stage: its tables of rows; null: none
  SharedPlan shared;
  float* x_save = nullptr;  ///< [rows][dim], between launches of single stages
};

/// What a program needs of the device.
struct ProgramLimits {
  int n_sms = 0;
  int64_t shared_bytes = 0;   ///< per CTA
  double memory_gbps = 3350;  ///< by the data sheet
};

/// A complete recorded step. Addresses of exchange buffers are offsets, of their first copies; see placed().
class Program {
 public:
  std::vector<DecodeStage> stages;
  int n_rows = 0, n_layers = 0, dim = 0, n_ctas = 0;
  SharedPlan shared;
  size_t exchange_bytes = 0;       ///< to be filled with -0.0
  double weight_bytes = 0;         ///< streamed by one step
  std::vector<int32_t> op_starts;  ///< stages before each op of the step
  /// Stages of the first n_ops ops.
  int32_t stages_of(int64_t n_ops) const;
  /// The stages with addresses in the exchange at `exchange`, of a step before which there were `parity` layers in all,
  /// modulo 2.
  std::vector<DecodeStage> placed(uint8_t* exchange, uint32_t parity) const;

  // Set by the backend once the program lies on the device.
  std::shared_ptr<void> memory;
  uint8_t* exchange = nullptr;
  DecodeLaunch launch[2];  ///< by the parity
  uint32_t parity = 0;     ///< layers of all steps so far, modulo 2: says which copies of the exchange are empty
  bool was_cut = false;    ///< the last launch ended within the step: what nobody read is still in the exchange
};

/// As what so many rows meet a packed format: W8I in f16 as long as that costs little (8B, one row: 452 instead of 462
/// tok/s), more of them as the Q8_0 that it is, in int8 (four: 1382 and 1577; H200, 2026-11-28).
inline constexpr int64_t kMostF16Rows = 2;
constexpr DType few_format(DType packed, int64_t rows) {
  return packed == DType::W8I && rows > kMostF16Rows ? DType::Q8_0 : packed;
}

class Recorder {
 public:
  /// by_format: activations are as formats want them for so many rows, few_format().
  explicit Recorder(const ProgramLimits& limits, bool by_format = true) : limits_(limits), by_format_(by_format) {}

  void embed(const EmbedArgs&);
  void attn_in(const AttnInArgs&);
  void attention(const AttentionArgs&);
  void attn_out(const AttnOutArgs&);
  void ffn(const FfnArgs&);
  void moe_ffn(const MoeFfnArgs&);
  void logits(const LogitsArgs&);
  void gather(const Tensor& x, const Tensor& rows, const Tensor& out);
  void unsupported(const char* what);

  int64_t n_tokens() const { return n_tokens_; }
  /// The program, or nothing: reason() then says why the step cannot be one.
  std::unique_ptr<Program> finish();
  const std::string& reason() const { return reason_; }

 private:
  void begin_op();
  DecodeStage& add_stage();
  DType format_of(const Tensor& w) const { return by_format_ ? few_format(w.dtype, n_tokens_) : w.dtype; }
  bool add_matrix(DecodeStage&, const Tensor& w, const Tensor& bias);
  bool add_experts(DecodeStage&, const Tensor& stack, bool side_by_side);
  void hidden_output(DecodeStage&, DType down, int64_t hidden_dim, Activation activation);
  void hidden_input(DecodeStage&);
  void residual_input(DecodeStage&, const Tensor& norm, float eps, int own_copy);
  void residual_output(DecodeStage&, const AddArgs& add, float*& values, int own_copy);
  size_t reserve(size_t bytes);
  float* exchange(int64_t width);

  ProgramLimits limits_;
  bool by_format_;
  std::unique_ptr<Program> program_ = std::make_unique<Program>();
  std::string reason_;
  int64_t n_tokens_ = 0, dim_ = 0;
  int layer_ = -1;
  EmbedArgs embed_{};
  bool have_embed_ = false, complete_ = false;
  RopeStoreArgs rope_store_{};
  // x as the next residual input finds it: after the last branch, or before it where a norm of that is to come.
  struct Stream {
    float* values = nullptr;  ///< null: the embedding
    int layer = 0;
    int64_t width = 0;
    Tensor post_norm;
    float post_eps = 0, scale = 1;
  } stream_;
  // The exchanges, made at first use.
  float *qkv_ = nullptr, *attn_ = nullptr, *after_attn_ = nullptr, *after_ffn_ = nullptr, *hidden_ = nullptr,
        *meet_ = nullptr, *soon_ = nullptr, *router_ = nullptr;
  uint8_t* hidden_codes_ = nullptr;
};

/// How weights of this format want their activations.
ActForm act_form(DType weight);
/// Bytes of one row of activations of `cols` columns in shared memory.
int64_t act_bytes(ActForm form, int64_t cols);
/// Geometry of a matrix; nothing when the layout is not one that products read.
std::optional<MatrixArg> matrix_arg(const Tensor& w, const Tensor& bias);
/// A single product y [m, n] = x w^T as a stage of its own, for steps that are no program. m <= kMaxDecodeRows.
std::optional<DecodeStage> product_stage(const MatmulArgs& args, bool accumulate);
/// Also settles the chunks of plain matrices, which depend on the kernel's instance. dim: of the residual stream, of
/// which each of n_ctas CTAs keeps the rows that it adds to; 0: there is none.
SharedPlan plan_shared(std::vector<DecodeStage>& stages, int n_rows, int64_t dim, int n_ctas,
                       const ProgramLimits& limits);

}  // namespace infer::cuda
