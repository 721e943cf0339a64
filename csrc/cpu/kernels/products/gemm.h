// Contract of the micro-kernels: listed rows times packed panels of columns.
//
//   c[row, column] (+)= sum over k of a[row, k] * b[k, column]
//
// `b` is packed in panels of `gemm_columns` columns (CpuKernels): [panel][k][columns], zeros past the last column. A
// complex panel covers half as many columns: [panel][k][real half | imaginary half].
//
// Every element is summed in blocks of rising k, each block in one chain from zero, with fused multiply-adds (`generic`
// has none and rounds twice). So an element's bits depend neither on the other rows nor on their number. A block holds
// an eighth of k, from kMinDepth to kDepth, because the rounding errors of a chain grow with its length.
//
// The split kernels multiply bf16 terms: x = high + low, each rounded to bf16, together 16 bits of x. With terms_a =
// terms_b = 2 a product is high high + low high + high low (relative error about 2^-17). With terms_b = 1 the packed
// operand is rounded to bf16, with terms_a = 1 the other operand too. Sums are float32, in blocks of k as above (of
// another depth). `b` is packed in panels of 32 columns: [panel][step of 32 k][term][column / 16][k pair][column % 16][2]
// bf16, k padded with zeros; the two halves of a complex panel are 16 real and 16 imaginary columns.
#pragma once

#include <cstdint>

namespace mmn_fast {

constexpr int64_t kDepth = 128, kMinDepth = 16;  // 32 columns of a block fill 16 KB of first-level cache
constexpr int64_t kRowBlock = 224;              // rows packed at a time; 448 KB of second-level cache at k = 512

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
  bool add;               // add to c instead of overwriting it
  int terms_a, terms_b;   // for the split kernels only
  float* pack;            // gemm_pack_size(k) floats of scratch, see cpu/row_layout.h
};

// A whole row block is packed before its first result is written, so c may be a itself if rows <= kRowBlock.

}  // namespace mmn_fast
