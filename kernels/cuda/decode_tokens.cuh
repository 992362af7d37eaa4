// Quantised weights times the activations of three or four tokens. Columns of mma.m16n8k32's right operand are pairs of
// groups of tokens: column 2t has the codes of a group of token t and zeros for the next group, column 2t + 1 those of
// that one, which a second mma adds. So a lane's results, rows r and r + 8 in columns 2j and 2j + 1, are two groups of
// token j, to be scaled in float32, and no lane sums what others do. Hidden values come with a scale to each half of a
// group: there columns are halves, of one group. What token there is not is not looked at. About 250 instructions for
// 16 x 256 weights of Q4_K (halves: 270) whatever the number of tokens, where a row at a time (decode_mma.cuh) has 84
// and 96 for each. Integers become floats, and minimums are summed, as in int8_dot.cuh. A step of four rows of 8B
// Q4_K_M has 54 % of the read speed of an H200 (2026-11-28), half of its time in here, a seventh of it waiting for
// weights.
//
// Activations of all tokens lie side by side (TokenActs). Only for whole chunks: others are a row at a time.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/decode_context.cuh"
#include "kernels/cuda/int8_codes.cuh"
#include "kernels/cuda/int8_dot.cuh"
#include "kernels/cuda/int8_groups.cuh"

namespace infer::cuda {

/// Whether activations of this stage lie by token.
template <int M>
__device__ __forceinline__ bool acts_by_token(const DecodeStage& s) {
  return M == kMaxDecodeRows && s.form == ActForm::int8 && dot_kernel_is_whole(s.w[0].kernel);
}

/// int8 activations of M tokens in shared memory, as a step's lanes read them side by side. kScales: how many a group
/// has. With one:
///
///   codes    [four groups][token][group % 2][quad][group / 2 % 2][half], a quad is four codes of one half
///   scales   [four groups][token][group of the four], f32
///
/// with two:
///
///   codes    [four groups][token][half][quad of the half][group of the four]
///   scales   [two groups][token][group of the two][half], f32
///
/// and in both
///
///   sums     [eight groups][token][half][group of the eight]: the scale times the sum of the half's codes, f32
///
/// The four of a quad change places, by the number of the four groups, so that those who write neighbours are in
/// different banks.
template <int M, int kScales>
struct TokenActs {
  static constexpr int kFourBytes = 128 * M;
  int at, scales, sums;  ///< in decode_memory
  __device__ __forceinline__ TokenActs(int begin, int n_groups)
      : at(begin), scales(begin + n_groups * 32 * M), sums(scales + n_groups * (4 * kScales * M)) {}

  /// What the number of four groups does to an offset of 16 bytes within them.
  static __device__ __forceinline__ int turn(int four) { return four % (4 * kScales) * 16; }

  /// Of token 0; that of another one is kTokenBytes behind it each.
  static constexpr int kTokenBytes = 128;
  __device__ __forceinline__ uint8_t* quad(int group, int half, int quad) const {
    const int column = kScales == 1 ? group % 2 : half, word = kScales == 1 ? group % 4 / 2 * 2 + half : group % 4;
    const int byte = group / 4 * kFourBytes + ((column * 4 + quad) * 16 ^ turn(group / 4)) + word * 4;
    return decode_memory() + at + byte;
  }
  /// Of token 0, too; others 4 and 16 floats behind.
  __device__ __forceinline__ float* scale(int group, int half) const {
    constexpr int kOfFour = 4 / kScales;  // groups
    return reinterpret_cast<float*>(decode_memory() + scales) + group / kOfFour * (M * 4) + group % kOfFour * kScales +
           half;
  }
  __device__ __forceinline__ float* sum(int group, int half) const {
    return reinterpret_cast<float*>(decode_memory() + sums) + group / 8 * (M * 16) + half * 8 + group % 8;
  }

  /// Eight values of each token, from column i (a multiple of eight) on; four neighbouring lanes have a group. All
  /// tokens side by side: one after the other, each would wait for its shuffles by itself.
  __device__ __forceinline__ void put(int i, const float4 (&a)[M], const float4 (&b)[M], bool valid) const {
    static_assert(kScales == 1);
    float largest[M];
#pragma unroll
    for (int m = 0; m < M; ++m)
      largest[m] = max_nan(max_nan(max_nan(fabsf(a[m].x), fabsf(a[m].y)), max_nan(fabsf(a[m].z), fabsf(a[m].w))),
                           max_nan(max_nan(fabsf(b[m].x), fabsf(b[m].y)), max_nan(fabsf(b[m].z), fabsf(b[m].w))));
#pragma unroll
    for (int step = 1; step <= 2; step *= 2)
#pragma unroll
      for (int m = 0; m < M; ++m) largest[m] = max_nan(largest[m], __shfl_xor_sync(~0u, largest[m], step));
    uint32_t low[M], high[M];
    float of[M];
    int total[M];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      constexpr int kOnes = 0x01010101;
      const Int8Scale s(largest[m]);
      low[m] = four_codes(a[m], s.inverse), high[m] = four_codes(b[m], s.inverse);
      of[m] = Int8Scale::shortened(s.scale);
      total[m] = __dp4a(static_cast<int>(low[m]), kOnes, __dp4a(static_cast<int>(high[m]), kOnes, 0));
    }
#pragma unroll
    for (int m = 0; m < M; ++m) total[m] += __shfl_xor_sync(~0u, total[m], 1);
    if (!valid) return;
    const auto at = static_cast<unsigned>(i);  // divided without a thought for its sign
    const int group = static_cast<int>(at / 32), half = static_cast<int>(at / 16 % 2),
              first = static_cast<int>(at % 16 / 4);
    uint8_t *to_low = quad(group, half, first), *to_high = quad(group, half, first + 1);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      *reinterpret_cast<uint32_t*>(to_low + m * kTokenBytes) = low[m];
      *reinterpret_cast<uint32_t*>(to_high + m * kTokenBytes) = high[m];
    }
    float *to_scale = scale(group, 0), *to_sum = sum(group, half);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (at % 32 == 0) to_scale[m * 4] = of[m];
      if (at % 16 == 0) to_sum[m * 16] = of[m] * static_cast<float>(total[m]);
    }
  }
  /// Half a group of codes of each token that others have made, with their scales.
  __device__ __forceinline__ void put_codes(int group, int half, const uint4 (&codes)[M],
                                            const uint32_t (&scales)[M]) const {
    static_assert(kScales == 2);
    constexpr int kOnes = 0x01010101;
    int total[M] = {};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      uint8_t* to = quad(group, half, q);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const uint32_t word = q == 0 ? codes[m].x : q == 1 ? codes[m].y : q == 2 ? codes[m].z : codes[m].w;
        *reinterpret_cast<uint32_t*>(to + m * kTokenBytes) = word;
        total[m] = __dp4a(static_cast<int>(word), kOnes, total[m]);
      }
    }
    float *to_scale = scale(group, half), *to_sum = sum(group, half);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const float of = __uint_as_float(scales[m]);
      const float usable = fabsf(of) < 1e30f ? Int8Scale::shortened(of) : __uint_as_float(0x7fc00000u);
      to_scale[m * 4] = usable, to_sum[m * 16] = usable * static_cast<float>(total[m]);
    }
  }
};

/// A warp's part in the whole chunks of a run of tiles: kStep groups of each, always the same ones, so that all
/// addresses are known but for the chunk's number. Keeps sums of rows r and r + 8 of token j, those of minimums by
/// column, and the right operands, of which zeros stay zeros.
template <class F, int M, int kScales>
class TokenDot {
  using Acts = TokenActs<M, kScales>;
  using Scales = LaneScales<F, kStepGroups<F, M>>;

 public:
  static constexpr int kStep = kStepGroups<F, M>, kSets = kStep / 4, kOf = kHalves<F>;
  static_assert(kStep == kWarpGroups<F, M> && (kSets == 1 || kSets == 2));

  __device__ __forceinline__ TokenDot(const Acts& x, int warp) {
    const auto keep = [](int v) { return static_cast<int>(kept_in_register(static_cast<uint32_t>(v))); };
    constexpr int kParts = kPart / Chunk<F>::kPiece;
    // Where there are fewer than four tokens, lanes of others read what is there.
    const int column = lane_.row % (2 * M), g = warp * kStep, even = lane_.row % 2 == 0;
    from_ = keep(g / kPart * kParts * Chunk<F>::kPieceBytes), in_part_ = kStep == kPart ? 0 : keep(g % kPart);
    even_ = keep(even);
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const int four = g / 4 + set, first = kScales == 1 ? column / 2 * 2 : column;
      codes_[set] = keep(x.at + four * Acts::kFourBytes + ((first * 4 + lane_.j) * 16 ^ Acts::turn(four)));
    }
    scales_ = keep(x.scales + g * (4 * kScales * M) + lane_.j % M * 16);
    sums_ = keep(x.sums + g / 8 * (64 * M) + column * 32 + (kSets == 2 ? lane_.j * 8 : (g % 8 + lane_.j) * 4));
#pragma unroll
    for (int i = 0; i < 4; ++i) bits_[i] = keep(static_cast<int>(__float_as_uint(nothing(i % 2))));
  }

  /// Chunk `number` of a tile.
  __device__ __forceinline__ void step(const uint8_t* chunk, int number) {
    // The number counts for so many groups; turns of fours begin anew with each 32 of them.
    static_assert(Packed<F>::chunk_groups % 32 == 0);
    const int groups = number * Packed<F>::chunk_groups;
    const uint8_t* from = chunk + from_;
    const Chunk<F> part{kPart};
    Scales scales;
    scales.load(from, part, in_part_, lane_,
                [&](int row) { return load_scales<F>(from, part, row, in_part_ + lane_.j); });
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const int at = codes_[set] + groups * (Acts::kFourBytes / 4);
      b_[set][0].load(even_, at), b_[set][1].load(!even_, kScales == 1 ? at + 64 : at);
    }
    if constexpr (kNeedsSums<F>) add_minimums(scales, decode_memory() + sums_ + groups * (8 * M));
    const uint8_t* of_acts = decode_memory() + scales_ + groups * (4 * kScales * M);
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      StepCodes<F> w;
      w.template load<kNibbles>(from, part, in_part_ / 4 + set, lane_);
      if constexpr (kScales == 1) {
        const float4 four = *reinterpret_cast<const float4*>(of_acts + set * (16 * M));
        const float of[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int pair = 0; pair < 2; ++pair)
          add_pair(scales, set, pair, w.a[2 * pair], w.a[2 * pair + 1], of[2 * pair], of[2 * pair + 1]);
      } else {
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          const float4 four = *reinterpret_cast<const float4*>(of_acts + (2 * set + pair) * (16 * M));
          add_halves(scales, set, 2 * pair, w.a[2 * pair], four.x, four.y);
          add_halves(scales, set, 2 * pair + 1, w.a[2 * pair + 1], four.z, four.w);
        }
      }
    }
  }

  /// The sums of the warp's 16 rows into sums [M][16], and zeros in their place.
  __device__ __forceinline__ void store(float* sums) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float v = acc_[r] + (mins_[2 * r] + mins_[2 * r + 1]);
      if (lane_.j < M) sums[lane_.j * kTileRows + lane_.row + 8 * r] = v;
      acc_[r] = mins_[2 * r] = mins_[2 * r + 1] = 0;
    }
  }

 private:
  static constexpr int kPart = kStep > Chunk<F>::kPiece ? kStep : Chunk<F>::kPiece;
  static constexpr Nibbles kNibbles = !kUpperHalves<F> ? Nibbles::plain
                                      : kScales == 1   ? Nibbles::upper
                                                       : Nibbles::second_upper;

  /// What sums of column 2j + i begin with: as bits, to which integers are added, and as a float. Where those are 16
  /// times as much as they should be, the bits count for a 16th.
  static __device__ __forceinline__ float nothing(int i) {
    return kNibbles == Nibbles::upper || (kNibbles == Nibbles::second_upper && i == 1) ? kIntegerBits / 16
                                                                                       : kIntegerBits;
  }

  /// Groups 2 * pair and that + 1 of a four: columns are groups.
  __device__ __forceinline__ void add_pair(const Scales& scales, int set, int pair, const uint32_t (&first)[4],
                                           const uint32_t (&second)[4], float of_first, float of_second) {
    const uint32_t* even = b_[set][0].v + 2 * pair;
    const uint32_t* odd = b_[set][1].v + 2 * pair;
    const float of[2] = {of_first, of_second};
    int d[kOf][4];
    static_assert(kOf == 1 || !kUpperHalves<F>);
    if constexpr (kOf == 1) {
      mma_int8<kUpperHalves<F>>(d[0], first, even[0], even[1], bits_);
      mma_int8<kUpperHalves<F>>(d[0], second, odd[0], odd[1], d[0]);
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        mma_int8_half(d[h], first[2 * h], first[2 * h + 1], even[h], bits_);
        mma_int8_half(d[h], second[2 * h], second[2 * h + 1], odd[h], d[h]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float minus = -nothing(i) * of[i];
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int h = 0; h < kOf; ++h)
          acc_[r] =
              fmaf(scales.of(r, set, 2 * pair + i, h), fmaf(__int_as_float(d[h][2 * r + i]), of[i], minus), acc_[r]);
    }
  }
  /// A group of a four: columns are its halves.
  __device__ __forceinline__ void add_halves(const Scales& scales, int set, int group, const uint32_t (&w)[4],
                                             float of_first, float of_second) {
    int d[4];
    mma_int8<kUpperHalves<F>>(d, w, b_[set][0].v[group], b_[set][1].v[group], bits_);
    const float of[2] = {of_first, of_second}, minus[2] = {-nothing(0) * of_first, -nothing(1) * of_second};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float scale[kOf];
#pragma unroll
      for (int h = 0; h < kOf; ++h) scale[h] = scales.of(r, set, group, h);
#pragma unroll
      for (int half = 0; half < 2; ++half)
        acc_[r] = fmaf(scale[half % kOf], fmaf(__int_as_float(d[2 * r + half]), of[half], minus[half]), acc_[r]);
    }
  }

  /// `sums`: of groups 2j and 2j + 1 in this lane's column, or of group j.
  __device__ __forceinline__ void add_minimums(const Scales& scales, const uint8_t* sums) {
    const auto& o = scales.offset;
    float2 s{};
    if constexpr (kSets == 2) {
      s = *reinterpret_cast<const float2*>(sums);
    } else {
      s.x = *reinterpret_cast<const float*>(sums);
    }
    const auto add = [&](int half, float first, float second) {
      mma_tf32(mins_, o[0][0][half], o[1][0][half], kSets == 2 ? o[0][kSets - 1][half] : 0.0f,
               kSets == 2 ? o[1][kSets - 1][half] : 0.0f, first, second);
    };
    if constexpr (kOf == 1) {
      add(0, s.x, s.y);
    } else {
      add(0, even_ ? s.x : 0.0f, even_ ? s.y : 0.0f);
      add(1, even_ ? 0.0f : s.x, even_ ? 0.0f : s.y);
    }
  }

  Int8Lane lane_;
  int from_, in_part_, even_, codes_[kSets], scales_, sums_, bits_[4];
  float acc_[2] = {}, mins_[4] = {};
  ActFragment b_[kSets][2];
};

}  // namespace infer::cuda
