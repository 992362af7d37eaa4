// What a CTA of the decode kernel has in shared memory: the ring, and behind it what stages need one after the other.
#include <algorithm>

#include "kernels/cuda/integers.h"
#include "kernels/cuda/program.h"

namespace infer::cuda {
namespace {

constexpr int64_t kPlainSlotBytes = 16384;
// Bytes that a CTA has asked for and not yet got: what arrives in so many microseconds. Less starves the ring, more
// makes everything else in the memory system wait longer. (H100: 40 KB was best, H200: 55.)
constexpr double kInFlightQuantized = 1.6, kInFlightPlain = 1.5;

int64_t slot_bytes(const MatrixArg& w) { return w.is_plain ? kPlainSlotBytes : w.chunk_bytes; }

/// Chunks of plain_rows(kernel_rows) rows each: whole ones, or pieces that fill a slot. `joined` rows lie side by side.
void shape_plain(MatrixArg& m, int kernel_rows, int32_t joined) {
  const int64_t row = m.tile_bytes * joined, piece = std::min(kPlainSlotBytes / plain_rows(kernel_rows), row);
  const int64_t n_pieces = (row + piece - 1) / piece;
  m.chunk_bytes = narrow(piece);
  m.n_chunks = narrow(n_pieces * n_teams(kernel_rows));
  m.last_bytes = narrow(row - (n_pieces - 1) * piece);
}

/// Whether activations of several tokens may lie by token: where all chunks of all matrices are whole.
bool has_whole_codes(const DecodeStage& s) {
  bool whole = s.form == ActForm::int8;
  for (int i = 0; i < s.n_matrices; ++i) whole = whole && dot_kernel_is_whole(s.w[i].kernel);
  return whole;
}

/// Bytes of x of one row behind an input, where it is made in shared memory.
int64_t shared_x_bytes(const DecodeStage& s) { return s.x_source == XSource::exchange ? 0 : int64_t{s.cols} * 4; }
int64_t input_row_bytes(const DecodeStage& s) {
  return align(act_bytes(s.form, s.cols), 16) + align(shared_x_bytes(s), 16);
}

/// Lays out what is behind the ring for an instance of the kernel. Inputs of stages lie at the beginning of an area,
/// sums at its end. x is brought while some warps still read the sums of the stage before; before any other input, and
/// before attention, all warps meet (scout(), attention_stage()).
class AreaPlan {
 public:
  /// `row`: bytes from one row of an input to the next. `by_token`: where they can, inputs lie so (decode_tokens.cuh).
  AreaPlan(const std::vector<DecodeStage>& stages, int n_rows, int n_ctas, int64_t row, int kernel_rows, bool by_token)
      : stages_(stages), n_rows_(n_rows), n_ctas_(n_ctas), row_(row), rows_(kernel_rows), by_token_(by_token) {}

  int64_t bytes() const {
    int64_t area = 0, before = 0;
    for (const DecodeStage& s : stages_) {
      const int64_t late = s.input == StageInput::residual ? before : 0, own = sums(s);
      area = std::max({area, align(input(s) + made_x(s), 128) + late, align(input(s), 128) + own});
      before = own;
    }
    return area;
  }

 private:
  int64_t input(const DecodeStage& s) const {
    if (s.kind == StageKind::attention) return attention_area_bytes(s.attention.head_dim);
    if (lies_by_token(s)) return act_bytes(s.form, s.cols) * rows_;
    return row_ * (n_rows_ - 1) + input_row_bytes(s);
  }
  /// Behind activations of all rows that lie by token: x, until there are sums.
  int64_t made_x(const DecodeStage& s) const { return lies_by_token(s) ? shared_x_bytes(s) * n_rows_ : 0; }
  bool lies_by_token(const DecodeStage& s) const {
    return s.kind == StageKind::product && by_token_ && has_whole_codes(s);
  }
  int64_t sums(const DecodeStage& s) const {
    if (s.kind == StageKind::attention) return 0;
    const int64_t tiles = int64_t{(s.n_units + n_ctas_ - 1) / n_ctas_} * s.n_parts;
    return std::min<int64_t>(tiles, kept_tiles(rows_, s.n_parts)) * kWarps * rows_ * kTileRows * 4;
  }

  const std::vector<DecodeStage>& stages_;
  int n_rows_, n_ctas_;
  int64_t row_;
  int rows_;
  bool by_token_;
};

}  // namespace

SharedPlan plan_shared(std::vector<DecodeStage>& stages, int n_rows, int64_t dim, int n_ctas,
                       const ProgramLimits& limits) {
  SharedPlan plan;
  int64_t row = 0, slot = 0, choice = 0;
  bool plain = false, some_codes = false;
  for (const DecodeStage& s : stages) {
    if (s.kind == StageKind::attention) {
      if (s.attention.q_spans || s.attention.k_spans)
        plan.experts = true, choice = std::max<int64_t>(choice, kChoiceBytes);
      const int64_t pair_bytes = int64_t{s.attention.k_page_bytes} + s.attention.v_page_bytes;
      slot = std::max<int64_t>(slot, pair_bytes * s.attention.chunk_keys / kPageTokens);
      continue;
    }
    row = std::max(row, input_row_bytes(s));
    some_codes = some_codes || has_whole_codes(s);
    if (s.n_active > 0)
      plan.experts = true, choice = std::max(choice, kChoiceBytes + align(s.experts.router_row_bytes, 128));
    for (int i = 0; i < s.n_matrices; ++i) {
      slot = std::max<int64_t>(slot, slot_bytes(s.w[i]));
      plain = plain || s.w[i].is_plain;
    }
  }
  slot = align(std::max<int64_t>(slot, 128), 128), choice = align(choice, 128);
  const int64_t own_tiles = (dim + int64_t{kTileRows} * n_ctas - 1) / (int64_t{kTileRows} * n_ctas);
  const int64_t own = align(2 * own_tiles * n_rows * kTileRows * 4, 128);
  const double bytes_per_us = limits.memory_gbps * 1e3 / std::max(1, limits.n_sms);
  const double in_flight = bytes_per_us * (plain ? kInFlightPlain : kInFlightQuantized);
  plan.in_flight = narrow(std::max<int64_t>(2, static_cast<int64_t>(in_flight) / slot));
  const auto try_rows = [&](int rows, bool by_token) {
    const int64_t area = AreaPlan(stages, n_rows, n_ctas, row, rows, by_token).bytes(),
                  ring = limits.shared_bytes - area - own - choice;
    plan.kernel_rows = rows;
    plan.n_slots = ring_slots(narrow(std::clamp<int64_t>(ring / slot, 0, kMaxSlots)), n_teams(rows), plan.in_flight);
    plan.own = narrow(plan.n_slots * slot);
    plan.choice = plan.own + narrow(own);
    plan.act = plan.choice + narrow(choice);
    plan.total = plan.act + narrow(area);
  };
  // Where one row leaves too few for the instance that is made for it, the next one has fewer teams.
  const int least = n_rows <= 2 ? n_rows : kMaxDecodeRows;
  bool by_token = n_rows > 2 && some_codes;
  if (by_token) try_rows(least, true);
  by_token = by_token && plan.n_slots > 0;
  for (int rows = least; rows <= kMaxDecodeRows && plan.n_slots == 0; rows *= 2) try_rows(rows, false);
  if (plan.kernel_rows == kMaxDecodeRows)
    for (DecodeStage& s : stages)
      if (s.kind == StageKind::product && s.form == ActForm::int8 && !(by_token && has_whole_codes(s)))
        for (int i = 0; i < s.n_matrices; ++i) s.w[i].kernel = s.w[i].kernel / 2 * 2;
  for (DecodeStage& s : stages) s.own_at = narrow(plan.own + s.own_copy * own_tiles * n_rows * kTileRows * 4);
  for (DecodeStage& s : stages)
    for (int i = 0; i < s.n_matrices; ++i)
      if (s.w[i].is_plain) shape_plain(s.w[i], plan.kernel_rows, s.n_parts == 1 ? std::max(1, s.n_active) : 1);
  plan.slot_bytes = narrow(slot), plan.own_tiles = narrow(own_tiles);
  plan.act_row_bytes = narrow(row);
  return plan;
}

}  // namespace infer::cuda
