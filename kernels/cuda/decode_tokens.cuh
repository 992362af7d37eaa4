// Quantised weights times the activations of three or four tokens. Columns of mma.m16n8k32's right operand are halves
// of groups of tokens, 2t and 2t + 1: column 2t has the first 16 codes of a group of token t and zeros for the others,
// column 2t + 1 the rest. So a lane's results, rows r and r + 8 in columns 2j and 2j + 1, are both halves of token j,
// to be scaled in float32, and no lane sums what others do. What token there is not is not looked at. About 230
// instructions for 16 x 256 weights of Q4_K whatever the number of tokens, where a row at a time (decode_mma.cuh) has
// 84 and 96 for each. Integers become floats, and minimums are summed, as in int8_dot.cuh. Bound by instructions: a
// step of four rows of 8B Q4_K_M has 50 % of the read speed of an H200, 2026-11-27, 43 % of it in here.
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

/// int8 activations of M tokens in shared memory, as a step's lanes read them side by side:
///
///   codes    [four groups][token][half][quad of the half][group of the four], a quad is four codes; the four of a quad
///            change places, by the number of the four groups, so that neighbours are in different banks
///   scales   [two groups][token][group of the two][half], f32
///   sums     [eight groups][token][half][group of the eight]: the scale times the sum of the half's codes, f32
template <int M>
struct TokenActs {
  static constexpr int kFourBytes = 128 * M;
  int at, scales, sums;  ///< in decode_memory
  __device__ __forceinline__ TokenActs(int begin, int n_groups)
      : at(begin), scales(begin + n_groups * 32 * M), sums(scales + n_groups * 8 * M) {}

  /// What the number of four groups does to an offset of 16 bytes within them.
  static __device__ __forceinline__ int turn(int four) { return four % 8 * 16; }

  __device__ __forceinline__ uint32_t* quad(int token, int group, int half, int quad) const {
    const int within = ((token * 2 + half) * 4 + quad) * 16 ^ turn(group / 4);
    const int byte = group / 4 * kFourBytes + within + group % 4 * 4;
    return reinterpret_cast<uint32_t*>(decode_memory() + at + byte);
  }
  __device__ __forceinline__ float* scale(int token, int group, int half) const {
    return reinterpret_cast<float*>(decode_memory() + scales) + (group / 2 * M + token) * 4 + group % 2 * 2 + half;
  }
  __device__ __forceinline__ float* sum(int token, int group, int half) const {
    return reinterpret_cast<float*>(decode_memory() + sums) + (group / 8 * M + token) * 16 + half * 8 + group % 8;
  }

  /// The 16 values of two neighbouring lanes as half a group of a token (i: column of this lane's first).
  __device__ __forceinline__ void put(int token, int i, float4 a, float4 b, bool valid) const {
    float largest = max_nan(max_nan(max_nan(fabsf(a.x), fabsf(a.y)), max_nan(fabsf(a.z), fabsf(a.w))),
                            max_nan(max_nan(fabsf(b.x), fabsf(b.y)), max_nan(fabsf(b.z), fabsf(b.w))));
    largest = max_nan(largest, __shfl_xor_sync(~0u, largest, 1));
    const Int8Scale s(largest);
    const uint32_t low = four_codes(a, s.inverse), high = four_codes(b, s.inverse);
    constexpr int kOnes = 0x01010101;
    int total = __dp4a(static_cast<int>(low), kOnes, __dp4a(static_cast<int>(high), kOnes, 0));
    total += __shfl_xor_sync(~0u, total, 1);
    if (!valid) return;
    const auto at = static_cast<unsigned>(i);  // divided without a thought for its sign
    const int group = static_cast<int>(at / 32), half = static_cast<int>(at / 16 % 2),
              first = static_cast<int>(at % 16 / 4);
    *quad(token, group, half, first) = low, *quad(token, group, half, first + 1) = high;
    if (at % 16 != 0) return;
    const float scale_of = Int8Scale::shortened(s.scale);
    *scale(token, group, half) = scale_of;
    *sum(token, group, half) = scale_of * static_cast<float>(total);
  }
  /// Half a group of codes that others have made, with their scale and their sum.
  __device__ __forceinline__ void put_codes(int token, int group, int half, uint4 codes, float of, float total) const {
    *quad(token, group, half, 0) = codes.x, *quad(token, group, half, 1) = codes.y;
    *quad(token, group, half, 2) = codes.z, *quad(token, group, half, 3) = codes.w;
    const float scale_of = fabsf(of) < 1e30f ? Int8Scale::shortened(of) : __uint_as_float(0x7fc00000u);
    *scale(token, group, half) = scale_of;
    *sum(token, group, half) = scale_of * total;
  }
};

/// A warp's part in the whole chunks of a run of tiles: kStep groups of each, always the same ones, so that all
/// addresses are known but for the chunk's number. Keeps sums of rows r and r + 8 of token j, those of minimums by
/// column, and the right operands, of which zeros stay zeros.
template <class F, int M>
class TokenDot {
 public:
  static constexpr int kStep = kStepGroups<F, M>, kSets = kStep / 4, kOf = kHalves<F>;
  static_assert(kStep == kWarpGroups<F, M> && (kSets == 1 || kSets == 2));

  __device__ __forceinline__ TokenDot(const TokenActs<M>& x, int warp) {
    const auto keep = [](int v) { return static_cast<int>(kept_in_register(static_cast<uint32_t>(v))); };
    constexpr int kParts = kPart / Chunk<F>::kPiece;
    // Where there are fewer than four tokens, lanes of others read what is there.
    const int column = lane_.row % (2 * M), g = warp * kStep, even = lane_.row % 2 == 0;
    from_ = keep(g / kPart * kParts * Chunk<F>::kPieceBytes), in_part_ = kStep == kPart ? 0 : keep(g % kPart);
    even_ = keep(even);
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const int four = g / 4 + set;
      codes_[set] =
          keep(x.at + four * TokenActs<M>::kFourBytes + ((column * 4 + lane_.j) * 16 ^ TokenActs<M>::turn(four)));
    }
    scales_ = keep(x.scales + g / 2 * (16 * M) + lane_.j % M * 16);
    sums_ = keep(x.sums + g / 8 * (64 * M) + column * 32 + (kSets == 2 ? lane_.j * 8 : (g % 8 + lane_.j) * 4));
#pragma unroll
    for (int& b : bits_) b = keep(static_cast<int>(__float_as_uint(kIntegerBits)));
  }

  __device__ __forceinline__ void step(const uint8_t* chunk, int number) {
    // A chunk's number counts for so many groups; turns of fours begin anew with each eight.
    constexpr int kGroups = Packed<F>::chunk_groups;
    static_assert(kGroups % 32 == 0);
    const uint8_t* from = chunk + from_;
    const Chunk<F> part{kPart};
    LaneScales<F, kStep> scales;
    scales.load(from, part, in_part_, lane_,
                [&](int row) { return load_scales<F>(from, part, row, in_part_ + lane_.j); });
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const int at = codes_[set] + number * (kGroups / 4 * TokenActs<M>::kFourBytes);
      b_[set][0].load(even_, at), b_[set][1].load(!even_, at);
    }
    if constexpr (kNeedsSums<F>) add_minimums(scales, decode_memory() + sums_ + number * (kGroups * 8 * M));
    const uint8_t* of_acts = decode_memory() + scales_ + number * (kGroups * 8 * M);
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      StepCodes<F> w;
      w.template load<kUpperHalves<F>>(from, part, in_part_ / 4 + set, lane_);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const float4 four = *reinterpret_cast<const float4*>(of_acts + (2 * set + pair) * (16 * M));
        const float s[2][2] = {{four.x, four.y}, {four.z, four.w}};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int group = 2 * pair + i;
          int d[4];
          mma_int8<kUpperHalves<F>>(d, w.a[group], b_[set][0].v[group], b_[set][1].v[group], bits_);
          const float of[2] = {s[i][0], kUpperHalves<F> ? s[i][1] * 0.0625f : s[i][1]};
          const float minus[2] = {-kIntegerBits * of[0], -kIntegerBits * of[1]};
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float scale[kOf];
#pragma unroll
            for (int h = 0; h < kOf; ++h) scale[h] = scales.of(r, 4 * set + group, h);
#pragma unroll
            for (int half = 0; half < 2; ++half)
              acc_[r] = fmaf(scale[half % kOf], fmaf(__int_as_float(d[2 * r + half]), of[half], minus[half]), acc_[r]);
          }
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

  /// `sums`: of groups 2j and 2j + 1 in this lane's column, or of group j.
  __device__ __forceinline__ void add_minimums(const LaneScales<F, kStep>& scales, const uint8_t* sums) {
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
