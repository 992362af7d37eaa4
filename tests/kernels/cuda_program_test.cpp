// How the decode kernel's shared memory is laid out: pure arithmetic on shapes, no device is needed.
#include "kernels/cuda/program.h"

#include <array>
#include <functional>

#include "kernels/cuda/packed.h"
#include "tests/catch.h"

using namespace infer;
using namespace infer::cuda;

namespace {

constexpr ProgramLimits kH100{132, 232448 - kFixedShared, 3352}, kH200{132, 232448 - kFixedShared, 4917};

/// A stage that multiplies with a matrix that is said to lie somewhere; nobody looks there.
DecodeStage stage_of(DType type, int64_t rows, int64_t cols) {
  float x = 0;
  Tensor w(&x, type, {rows, cols});
  w.layout = packed_layout(type);
  const auto stage =
      product_stage({Tensor(&x, DType::F32, {1, cols}), w, {}, Tensor(&x, DType::F32, {1, rows})}, false);
  REQUIRE(stage);
  return *stage;
}

SharedPlan plan_of(const DecodeStage& stage, int n_rows, int64_t dim, const ProgramLimits& limits) {
  std::vector<DecodeStage> stages{stage};
  return plan_shared(stages, n_rows, dim, limits.n_sms, limits);
}

}  // namespace

TEST_CASE("a ring has as many slots as fit and teams can tell apart, whatever the format, the width and the rows") {
  int planned = 0;
  for (const DType type :
       {DType::F32, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::Q6_K, DType::Q2_K, DType::W4G128})
    for (const int64_t cols : {256, 4096, 14336, 28672, 53248})
      for (const int64_t dim : {0, 2048, 4096, 16384})
        for (int rows = 1; rows <= kMaxDecodeRows; ++rows) {
          INFO(static_cast<int>(type) << " " << cols << " dim " << dim << " rows " << rows);
          const SharedPlan plan = plan_of(stage_of(type, 4096, cols), rows, dim, kH100);
          if (plan.n_slots == 0) continue;
          ++planned;
          const int teams = n_teams(plan.kernel_rows);
          CHECK((plan.n_slots % teams == 0 || plan.n_slots >= teams + plan.in_flight));
          if (plan.n_slots < kMaxSlots && plan.n_slots > teams + plan.in_flight)
            CHECK(plan.total + plan.slot_bytes > kH100.shared_bytes);
          CHECK(plan.n_slots <= kMaxSlots);
          CHECK(plan.kernel_rows >= rows);
          CHECK(plan.in_flight >= 2);
          CHECK(plan.own >= plan.n_slots * plan.slot_bytes);
          CHECK(int64_t{plan.own_tiles} * kTileRows * kH100.n_sms >= dim);
          CHECK(plan.choice >= plan.own + 2 * plan.own_tiles * rows * kTileRows * 4);
          CHECK(plan.act >= plan.choice);
          CHECK(plan.total >= plan.act + rows * plan.act_row_bytes + 2 * kWarps * plan.kernel_rows * kTileRows * 4);
          CHECK(plan.total <= kH100.shared_bytes);
        }
  CHECK(planned > 300);
}

TEST_CASE("one row too wide for four slots is left to an instance with fewer teams") {
  const SharedPlan usual = plan_of(stage_of(DType::BF16, 4096, 4096), 1, 4096, kH100);
  CHECK(usual.kernel_rows == 1);
  CHECK(usual.n_slots >= 4);
  const SharedPlan wide = plan_of(stage_of(DType::BF16, 8192, 79000), 1, 16384, kH100);
  CHECK(wide.kernel_rows == 4);
  CHECK(wide.n_slots == 2);
  const SharedPlan none = plan_of(stage_of(DType::F32, 16384, 53248), 1, 16384, kH100);
  CHECK(none.n_slots == 0);
}

TEST_CASE("chunks of plain weights are of one team's rows, fit a slot and cover the columns") {
  for (const DType type : {DType::F32, DType::F16, DType::BF16})
    for (const int64_t cols : {32, 96, 2048, 4096, 8200, 14336})
      for (int rows = 1; rows <= kMaxDecodeRows; ++rows) {
        INFO(static_cast<int>(type) << " " << cols << " rows " << rows);
        std::vector<DecodeStage> stages{stage_of(type, 4100, cols)};
        const SharedPlan plan = plan_shared(stages, rows, 4096, kH100.n_sms, kH100);
        const MatrixArg& m = stages[0].w[0];
        const int n_blocks = n_teams(plan.kernel_rows), n_pieces = m.n_chunks / n_blocks;
        CHECK(m.n_chunks % n_blocks == 0);
        CHECK(n_blocks * plain_rows(plan.kernel_rows) == kTileRows);
        CHECK(plain_rows(plan.kernel_rows) * m.chunk_bytes <= plan.slot_bytes);
        CHECK((n_pieces - 1) * m.chunk_bytes + m.last_bytes == m.tile_bytes);
        CHECK(m.last_bytes > 0);
        CHECK(m.last_bytes <= m.chunk_bytes);
        CHECK(m.chunk_bytes % 16 == 0);
      }
}

TEST_CASE("a faster memory gets more bytes in flight") {
  const DecodeStage stage = stage_of(DType::Q4_K, 4096, 14336);
  CHECK(plan_of(stage, 1, 4096, kH100).in_flight == 2);
  CHECK(plan_of(stage, 1, 4096, kH200).in_flight == 3);
}

namespace {

float somewhere[4];
/// A tensor that is said to lie somewhere; nobody looks there.
Tensor some(DType type, std::initializer_list<int64_t> dims) {
  Tensor t(somewhere, type, dims);
  if (t.n_dims >= 2 && type != DType::F32 && type != DType::I32) t.layout = packed_layout(type);
  return t;
}

/// Eight of 64 experts of 1024.
MoeFfnArgs experts_of(DType type, int64_t n, int64_t dim) {
  constexpr int64_t kExperts = 64, kActive = 8, kWidth = 1024;
  MoeFfnArgs a;
  a.norm = some(DType::F32, {dim});
  a.w_router = some(DType::F32, {kExperts, dim}), a.w_router.layout = packed_layout(DType::F32);
  a.w_gate = some(type, {kExperts, kWidth, dim}), a.w_up = a.w_gate, a.w_down = some(type, {kExperts, dim, kWidth});
  a.ids = some(DType::I32, {n, kActive});
  a.add.x = a.add.branch = some(DType::F32, {n, dim});
  return a;
}
/// What else a test wants of a layer's experts; returns false where the layer has none.
using Experts = std::function<bool(int layer, MoeFfnArgs&)>;

/// Two layers of `n` tokens, one of each sequence: 24 query heads of 8 KV heads, weights of one type but for the
/// values'. post_norms: of the layers, whether there is a norm of what they add to x.
void record(Recorder& r, DType type, int64_t n, std::optional<DType> values = {},
            const std::array<bool, 2>& post_norms = {}, const Experts& experts = {}) {
  constexpr int64_t kDim = 3072, kFfn = 8192, kHead = 128, kHeads = 24, kKvHeads = 8, kVocab = 32000;
  EmbedArgs embed{some(DType::BF16, {kVocab, kDim}), some(DType::I32, {n}), 1, some(DType::F32, {n, kDim})};
  embed.table.layout = kFileBlocks;
  r.embed(embed);
  for (int layer = 0; layer < 2; ++layer) {
    AttnInArgs in;
    in.x = some(DType::F32, {n, kDim}), in.norm = some(DType::F32, {kDim});
    in.wq = some(type, {kHeads * kHead, kDim}), in.wk = some(type, {kKvHeads * kHead, kDim});
    in.wv = some(values.value_or(type), {kKvHeads * kHead, kDim});
    RopeStoreArgs& rope = in.rope_store;
    rope.q = some(DType::F32, {n, kHeads, kHead}), rope.k = some(DType::F32, {n, kKvHeads, kHead}), rope.v = rope.k;
    rope.rope.cos_sin = some(DType::F32, {4096, kHead / 2, 2});
    rope.positions = some(DType::I32, {n}), rope.slots = rope.positions;
    rope.k_cache = some(DType::F16, {16, kKvHeads, kPageTokens, kHead}), rope.v_cache = rope.k_cache;
    r.attn_in(in);
    AttentionArgs attention;
    attention.q = rope.q, attention.k_cache = rope.k_cache, attention.v_cache = rope.v_cache, attention.out = rope.q;
    attention.page_table = some(DType::I32, {n, 16}), attention.kv_len = rope.positions;
    attention.q_start = some(DType::I32, {n + 1});
    r.attention(attention);
    AttnOutArgs out;
    out.attn = some(DType::F32, {n, kHeads * kHead}), out.wo = some(type, {kDim, kHeads * kHead});
    out.add.x = in.x, out.add.branch = in.x;
    if (post_norms[static_cast<size_t>(layer)]) out.add.norm = in.norm;
    r.attn_out(out);
    FfnArgs ffn;
    ffn.norm = in.norm, ffn.w_gate = some(type, {kFfn, kDim}), ffn.w_up = ffn.w_gate;
    ffn.w_down = some(type, {kDim, kFfn}), ffn.add = out.add;
    MoeFfnArgs moe = experts_of(type, n, kDim);
    if (experts && experts(layer, moe)) {
      r.moe_ffn(moe);
    } else {
      r.ffn(ffn);
    }
  }
  LogitsArgs logits;
  logits.x = some(DType::F32, {n, kDim}), logits.norm = some(DType::F32, {kDim}), logits.rows = some(DType::I32, {n});
  logits.head = some(type, {kVocab, kDim}), logits.out = some(DType::F32, {n, kVocab});
  r.logits(logits);
}

ProgramLimits limits_of(int n_sms) { return {n_sms, 232448 - kFixedShared, 4917}; }

std::unique_ptr<Program> two_layers(DType type, int64_t n, int n_sms, std::optional<DType> values = {},
                                    const std::array<bool, 2>& post_norms = {}) {
  Recorder r(limits_of(n_sms));
  record(r, type, n, values, post_norms);
  auto program = r.finish();
  INFO(r.reason());
  REQUIRE(program);
  return program;
}

}  // namespace

TEST_CASE("8-bit integers of fine matrices meet f16 in one or two rows, in more of them int8, or what was asked for") {
  for (const int64_t n : {1, 2, 3, 4})
    for (const bool by_format : {true, false}) {
      Recorder r(limits_of(132), by_format);
      record(r, DType::W8I, n);
      const auto program = r.finish();
      REQUIRE(program);
      const ActForm wanted = by_format && n > 2 ? ActForm::int8 : ActForm::f16;
      for (const DecodeStage& s : program->stages) {
        if (s.kind != StageKind::product) continue;
        CHECK(s.form == wanted);
        if (s.output == StageOutput::hidden) CHECK(s.hidden_form == wanted);
        const auto q8_0 = product_stage({some(DType::F32, {n, 3072}), some(DType::Q8_0, {3072, 3072}), {}, {}}, false);
        CHECK((s.w[0].kernel / 2 == q8_0->w[0].kernel / 2) == (wanted == ActForm::int8));
      }
    }
  CHECK(few_format(DType::W8F, 4) == DType::W8F);
  CHECK(few_format(DType::Q8_0, 1) == DType::Q8_0);
}

TEST_CASE("no stage brings x to where sums are still to be read") {
  for (const DType type : {DType::Q4_K, DType::Q8_0, DType::BF16, DType::W8F, DType::W8I})
    for (const int64_t n : {1, 2, 3, 4})
      for (const int n_sms : {132, 100, 7}) {
        INFO(static_cast<int>(type) << " " << n << " tokens " << n_sms << " SMs");
        const auto program = two_layers(type, n, n_sms);
        const SharedPlan& plan = program->shared;
        // With x or without, where that is made in shared memory.
        const auto input_end = [&](const DecodeStage& s, bool with_x) {
          if (s.kind == StageKind::attention) return plan.act + attention_area_bytes(s.attention.head_dim);
          const bool by_token =
              plan.kernel_rows == kMaxDecodeRows && s.form == ActForm::int8 && dot_kernel_is_whole(s.w[0].kernel);
          const int64_t bytes = act_bytes(s.form, s.cols), x = s.x_source == XSource::exchange ? 0 : s.cols * 4;
          const int64_t all =
              by_token ? bytes * plan.kernel_rows + (with_x ? x * n : 0) : (n - 1) * plan.act_row_bytes + bytes + x;
          return plan.act + static_cast<int>(all);
        };
        const auto sums_begin = [&](const DecodeStage& s) {
          if (s.kind == StageKind::attention) return plan.total;
          const int tiles = (s.n_units + program->n_ctas - 1) / program->n_ctas * s.n_parts;
          const int kept = std::min(tiles, kept_tiles(plan.kernel_rows, s.n_parts));
          return plan.total - kept * kWarps * plan.kernel_rows * kTileRows * 4;
        };
        const auto& stages = program->stages;
        for (size_t i = 0; i < stages.size(); ++i) {
          // Sums come when x has become activations.
          CHECK(input_end(stages[i], false) <= sums_begin(stages[i]));
          CHECK(input_end(stages[i], true) <= plan.total);
          // Before all other inputs there is a barrier.
          if (i > 0 && stages[i].input == StageInput::residual)
            CHECK(input_end(stages[i], true) <= sums_begin(stages[i - 1]));
        }
      }
}

TEST_CASE("a program says where it is announced that results are near, and who reads it") {
  for (const DType type : {DType::Q4_K, DType::BF16})
    for (const int64_t n : {1, 4}) {
      INFO(static_cast<int>(type) << " " << n << " tokens");
      const auto program = two_layers(type, n, 132);
      REQUIRE(program->stages.size() == 11);
      CHECK(program->n_ctas == 132);
      const float* of_attention = program->stages[1].soon;
      for (size_t layer = 0; layer < 2; ++layer) {
        const DecodeStage* s = &program->stages[5 * layer];  // q, k, v; attention; projection; gate and up; down
        REQUIRE(s[1].kind == StageKind::attention);
        CHECK(s[0].n_soon == 0);
        // A word of each token and KV head; the projection reads what attention writes, in both layers the same.
        CHECK(s[1].n_soon == 8 * n);
        CHECK(s[1].soon == of_attention);
        CHECK((s[2].soon == s[1].soon && s[2].n_soon == s[1].n_soon));
        // Gate and up: one of each CTA where their results are codes, else nothing.
        CHECK(s[3].n_soon == (type == DType::Q4_K ? 132 : 0));
        CHECK((s[4].soon == s[3].soon && s[4].n_soon == s[3].n_soon));
        CHECK((s[3].n_soon == 0 || s[3].soon != s[1].soon));
      }
      // Two copies of each within the exchange.
      const auto end = [](const DecodeStage& s) {
        return reinterpret_cast<uintptr_t>(s.soon) + 2 * sizeof(float) * static_cast<size_t>(s.n_soon);
      };
      for (const DecodeStage& s : program->stages)
        if (s.n_soon > 0) CHECK(end(s) <= program->exchange_bytes);
      std::vector<uint8_t> memory(program->exchange_bytes);
      const auto stages = program->placed(memory.data(), 0);
      const auto first = reinterpret_cast<float*>(memory.data() + reinterpret_cast<uintptr_t>(of_attention));
      CHECK((stages[1].soon == first && stages[1].soon_other == first + 8 * n));
      CHECK((stages[2].soon == first && stages[2].soon_other == first + 8 * n));
      CHECK((stages[6].soon == first + 8 * n && stages[6].soon_other == first));
    }
}

TEST_CASE("a stage reads the copy that the one before has written, and what is written is not what is emptied") {
  for (const DType type : {DType::Q4_K, DType::BF16})
    for (const int64_t n : {1, 3})
      for (const uint32_t parity : {0U, 1U}) {
        INFO(static_cast<int>(type) << " " << n << " tokens, parity " << parity);
        const auto program = two_layers(type, n, 132);
        std::vector<uint8_t> memory(program->exchange_bytes);
        const auto stages = program->placed(memory.data(), parity),
                   swapped = program->placed(memory.data(), parity ^ 1);
        const auto within = [&](const void* p, size_t bytes) {
          const auto* at = static_cast<const uint8_t*>(p);
          return at > memory.data() && at + bytes <= memory.data() + memory.size();
        };
        for (size_t i = 0; i + 1 < stages.size(); ++i) {  // all but logits
          INFO("stage " << i);
          const DecodeStage &s = stages[i], &next = stages[i + 1];
          CHECK(next.in == s.out);
          CHECK(next.in_codes == s.out_codes);
          const size_t bytes = static_cast<size_t>(n * s.out_width) * sizeof(float);
          CHECK((within(s.out, bytes) && within(s.other, bytes)));
          CHECK((s.out + n * s.out_width <= s.other || s.other + n * s.out_width <= s.out));
          CHECK((swapped[i].out == s.other && swapped[i].other == s.out));
          CHECK((swapped[i].out_codes == s.other_codes && swapped[i].other_codes == s.out_codes));
          const size_t n_same = stages.size() / 2;  // of a layer
          if (i + n_same + 1 < stages.size())
            CHECK((stages[i + n_same].out == s.other && stages[i + n_same].other == s.out));
          CHECK((s.output == StageOutput::hidden && type == DType::Q4_K) == (s.out_codes != nullptr));
        }
      }
}

TEST_CASE("each CTA keeps the rows of x to which its tiles of the next residual output are added") {
  const auto program = two_layers(DType::Q4_K, 1, 132);
  for (size_t layer = 0; layer < 2; ++layer) {
    const DecodeStage* s = &program->stages[5 * layer];
    CHECK((s[0].own_first_cta == s[2].first_cta && s[0].own_copy == s[2].own_copy));
    CHECK((s[3].own_first_cta == s[4].first_cta && s[3].own_copy == s[4].own_copy));
    CHECK(s[0].own_copy != s[3].own_copy);
    CHECK((s[2].output == StageOutput::residual && s[4].output == StageOutput::residual));
  }
  CHECK(program->stages[10].own_first_cta == -1);  // logits: nothing is added any more
  CHECK(program->shared.own_tiles == 2);           // of 192 tiles, 132 CTAs
}

TEST_CASE("the two places for kept rows of x do not overlap, and lie between the ring and what comes behind them") {
  for (const int64_t n : {1, 2, 3, 4}) {
    const auto program = two_layers(DType::Q4_K, n, 132);
    const SharedPlan& plan = program->shared;
    const int bytes = plan.own_tiles * static_cast<int>(n) * kTileRows * 4;
    int copies = 0;
    for (const DecodeStage& s : program->stages) {
      if (s.input != StageInput::residual && s.output != StageOutput::residual) continue;
      CHECK(s.own_at == plan.own + s.own_copy * bytes);
      CHECK((s.own_at >= plan.n_slots * plan.slot_bytes && s.own_at + bytes <= plan.choice));
      copies |= 1 << s.own_copy;
    }
    CHECK(copies == 3);
  }
}

TEST_CASE("a small model has as many announcing CTAs as take part") {
  const auto program = two_layers(DType::Q4_K, 1, 600);  // more than its 512 tiles of gate
  CHECK(program->n_ctas == 512);
  CHECK(program->stages[3].n_soon == 512);
}

TEST_CASE("runs of tiles of one kernel end where the next matrix has another") {
  const auto same = two_layers(DType::Q4_K, 1, 132);
  const DecodeStage& qkv = same->stages[0];  // 192 + 64 + 64 tiles
  CHECK((qkv.w[0].end == 192 && qkv.w[1].end == 256 && qkv.w[2].end == 320));
  for (const MatrixArg& w : qkv.w) CHECK(w.run_end == 320);
  const DecodeStage alone = stage_of(DType::BF16, 4100, 256);
  CHECK((alone.w[0].end == alone.n_units && alone.w[0].run_end == alone.n_units));
  const auto mixed = two_layers(DType::Q4_K, 1, 132, DType::Q6_K);
  const DecodeStage& s = mixed->stages[5];
  CHECK((s.w[0].run_end == 256 && s.w[1].run_end == 256 && s.w[2].run_end == 320));
}

TEST_CASE("where what is added is to be normed first, x and the branch travel side by side") {
  constexpr int kDim = 3072;
  const auto program = two_layers(DType::Q4_K, 1, 132, {}, {true, true});
  for (size_t layer = 0; layer < 2; ++layer) {
    const DecodeStage* s = &program->stages[5 * layer];
    CHECK((s[2].out_width == 2 * kDim && s[4].out_width == 2 * kDim));
    CHECK((s[3].in_width == 2 * kDim && s[3].post_norm != nullptr));
    CHECK((s[5].in_width == 2 * kDim && s[5].post_norm != nullptr));  // the next layer's, or the logits'
    CHECK((s[3].x_source == XSource::branch && s[5].x_source == XSource::branch));
  }
  CHECK((program->stages[0].x_source == XSource::embedding && program->stages[0].post_norm == nullptr));
  const auto without = two_layers(DType::Q4_K, 1, 132);
  CHECK((without->stages[2].out_width == kDim && without->stages[3].x_source == XSource::exchange));
  Recorder mixed(limits_of(132));
  record(mixed, DType::Q4_K, 1, {}, {true, false});
  CHECK(!mixed.finish());
  CHECK(mixed.reason().find("norm of what they add") != std::string::npos);
}

TEST_CASE("a token's experts are two products, of rows one after the other and of columns side by side") {
  constexpr int64_t kDim = 3072, kWidth = 1024, kActive = 8, kExperts = 64;
  for (const DType type : {DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::BF16}) {
    INFO(static_cast<int>(type));
    Recorder r(limits_of(132));
    record(r, type, 1, {}, {}, [](int, MoeFfnArgs&) { return true; });
    const auto program = r.finish();
    INFO(r.reason());
    REQUIRE(program);
    CHECK(program->shared.choice + kChoiceBytes + kDim * 4 == program->shared.act);
    std::vector<uint8_t> memory(program->exchange_bytes);
    const auto placed = program->placed(memory.data(), 1);
    for (size_t layer = 0; layer < 2; ++layer) {
      const DecodeStage &up = program->stages[5 * layer + 3], &down = program->stages[5 * layer + 4];
      REQUIRE((up.n_active == kActive && down.n_active == kActive));
      CHECK(up.n_units == kActive * kWidth / kTileRows);
      CHECK(up.experts.n_tiles == kWidth / kTileRows);
      CHECK(up.w[0].rows == kActive * kWidth);
      CHECK(down.n_units == kDim / kTileRows);
      CHECK((down.cols == kActive * kWidth && down.w[0].cols == kActive * kWidth));
      for (const DecodeStage* s : {&up, &down}) {
        const int64_t rows = s == &up ? kWidth : kDim, cols = s == &up ? kDim : kWidth;
        CHECK(s->experts.expert_bytes[0] == packed_matrix_bytes(type, rows, cols));
      }
      // The chunks of a tile of down are the bytes of the experts' tiles, no more and no less.
      const MatrixArg& m = down.w[0];
      const int n_blocks = m.is_plain ? n_teams(1) : 1, n_pieces = m.n_chunks / n_blocks;
      CHECK(int64_t{n_pieces - 1} * m.chunk_bytes + m.last_bytes == kActive * m.tile_bytes);
      CHECK(m.chunk_bytes <= program->shared.slot_bytes / (m.is_plain ? plain_rows(1) : 1));
      // Logits of both stages in one copy, the other emptied; layers in turn.
      const ExpertsArg &of_up = placed[5 * layer + 3].experts, &of_down = placed[5 * layer + 4].experts;
      CHECK((of_up.logits == of_down.logits && of_up.logits_other == of_down.logits_other));
      CHECK(std::abs(of_up.logits - of_up.logits_other) == kExperts);
      CHECK(of_up.logits == placed[5 * (1 - layer) + 3].experts.logits_other);
    }
  }
}

TEST_CASE("experts that no program takes are refused with the reason") {
  const auto reason = [](int64_t n, const Experts& experts, int n_sms = 132, DType type = DType::Q4_K) {
    Recorder r(limits_of(n_sms));
    record(r, type, n, {}, {}, experts);
    CHECK(!r.finish());
    return r.reason();
  };
  const auto with = [](const auto& change) {
    return [change](int, MoeFfnArgs& a) {
      change(a);
      return true;
    };
  };
  const Tensor bias = some(DType::F32, {64, 1024});
  CHECK(reason(2, with([](MoeFfnArgs&) {})) == "experts of several tokens");
  CHECK(reason(1, with([](MoeFfnArgs& a) { a.w_shared_gate = a.w_gate; })) == "a shared expert");
  CHECK(reason(1, with([&](MoeFfnArgs& a) { a.b_gate = bias; })) == "biases of experts");
  CHECK(reason(1, with([](MoeFfnArgs& a) { a.activation = Activation::silu_clamped; })) == "the clamped activation");
  CHECK(reason(1, with([](MoeFfnArgs& a) { a.w_router.dims[0] = 129; })) == "so many experts");
  CHECK(reason(1, with([](MoeFfnArgs& a) { a.ids.dims[1] = 17; })) == "so many experts");
  CHECK(reason(1, with([](MoeFfnArgs& a) { a.w_router = some(DType::Q8_0, {64, 3072}); })) == "a quantised router");
  CHECK(reason(1, with([](MoeFfnArgs&) {}), 60) == "more experts than there are processors");
  CHECK(reason(1, [](int layer, MoeFfnArgs&) { return layer == 1; }) ==
        "layers of which some have experts and some do not");
  const auto narrow = with([](MoeFfnArgs& a) { a.w_gate.dims[1] = a.w_up.dims[1] = a.w_down.dims[2] = 1056; });
  CHECK(reason(1, narrow, 132, DType::MXFP4) == "experts whose rows end within a piece of a packed matrix");
}
