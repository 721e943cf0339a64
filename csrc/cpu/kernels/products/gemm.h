// Contract of the micro-kernels: listed rows times packed panels of columns.
//
//   c[row, column] (+)= sum over k of a[row, k] * b[k, column]
//
// `b` is packed in panels of `gemm_columns` columns (CpuKernels): [panel][k][columns], zeros past the last column. A
// complex panel covers half as many columns: [panel][k][real half | imaginary half].
//
// Every element is summed in blocks in rising k, each block in one chain from zero, with fused multiply-adds (with
// separate ones on `generic`, which has none): its bits depend neither on the other rows nor on their number. A block
// holds an eighth of k, from kMinDepth to kDepth: the rounding errors of a chain grow with its length.
//
// The split kernels multiply bf16 terms: x = high + low, each rounded to bf16, 16 bits of x together. With terms_a =
// terms_b = 2 a product is high high + low high + high low (an error of some 2^-17 of it), with terms_b = 1 the packed
// operand is rounded to bf16, with both 1 both are. Sums are float32, in blocks of k as above (of another depth).
// `b` is packed in panels of 32 columns: [panel][step of 32 k][term][column / 16][k pair][column % 16][2] bf16, k
// padded with zeros; the two halves of a complex panel are 16 real and 16 imaginary columns.
#pragma once

#include <cstdint>

namespace mmn_fast {

constexpr int64_t kDepth = 128, kMinDepth = 16;  // 32 columns of a block fill 16 KB of first-level cache
constexpr int64_t kRowBlock = 224;              // rows packed at a time: with 512 k 448 KB of second-level cache

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
  int terms_a, terms_b;   // of the split kernels only
  float* pack;            // gemm_pack_size(k) floats of scratch, see cpu/row_layout.h
};

// All of a row block is packed before its first result is written: c may be a itself where rows <= kRowBlock.

}  // namespace mmn_fast
