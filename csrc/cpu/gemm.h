// Contract of the micro-kernels: listed rows times packed panels of columns.
//
//   c[row, column] (+)= sum over k of a[row, k] * b[k, column]
//
// `b` is packed in panels of `gemm_columns` columns (CpuKernels): [panel][k][columns], zeros past the last column. A
// complex panel covers half as many columns: [panel][k][real half | imaginary half].
//
// Every element is summed in blocks of kDepth in rising k, each block in one chain from zero, with fused multiply-adds
// (with separate ones on `generic`, which has none): its bits depend neither on the other rows nor on their number.
#pragma once

#include <cstdint>

namespace mmn_fast {

constexpr int64_t kDepth = 256;         // k per block: 32 columns of it fill 32 KB of first-level cache
constexpr int64_t kRowBlock = 224;      // rows packed at a time: with kDepth 224 KB of second-level cache
constexpr int64_t kPackStride = kDepth + 16;  // one cache line more than a power of two, against set conflicts

// Row i of a matrix is at (rows[i / group] * group + i % group) * stride: a list of cells serves any batch.
struct GemmArgs {
  const float* a;
  const int32_t* a_rows;  // nullptr: 0, 1, 2, ...
  int64_t a_stride;
  const float* b;
  float* c;
  const int32_t* c_rows;  // nullptr: 0, 1, 2, ...
  int64_t c_stride;
  int64_t rows;           // group included
  int64_t group;
  int64_t k;
  int64_t imaginary_a, imaginary_c;  // complex: from a real part to its imaginary part
  bool add;               // to what c holds
  float* pack;            // gemm_pack_size(k) floats of scratch, see cpu/row_layout.h
};

// All of a row block is packed before its first result is written: c may be a itself where rows <= kRowBlock.

}  // namespace mmn_fast
