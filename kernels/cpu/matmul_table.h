// What the files compiled for one instruction set hand to matmul.cpp: plain functions behind a table, so that nothing
// compiled for a newer CPU is reached before the CPU was asked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/dtype.h"

namespace infer::cpu {

struct MatmulCall {
  const uint8_t* w;  ///< packed [rows, cols]
  int64_t rows, cols;
  const uint8_t* acts;  ///< prepared [m, cols]
  const uint8_t* rest;  ///< int8_rest [m, cols] or null
  int64_t m;
  float* out;  ///< f32 [m, rows], rows of out_stride
  int64_t out_stride;
  const float* bias;  ///< f32 [rows] or null
  int64_t tile_begin, tile_end;
  uint8_t* scratch;  ///< kScratchBytes, aligned to 64
};

/// Brings one row of k floats into an activation form at dst.
using PrepareFn = void (*)(const float* x, int64_t k, void* dst);
using MatmulFn = void (*)(const MatmulCall& call);

struct MatmulTable {
  PrepareFn prepare_int8, prepare_int8_rest;
  MatmulFn (*find)(DType dtype);  ///< null for formats outside quant/formats.h
};

/// Of a matmul call: four tiles of a chunk, taken apart.
inline constexpr size_t kScratchBytes = 4 * (8 * 512 + 2 * 8 * 2 * 16 * 4);

extern const MatmulTable kScalarMatmul, kAvx2Matmul, kAvx512Matmul;

}  // namespace infer::cpu
