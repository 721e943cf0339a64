// Sizes that follow from the kernels' contracts. kernels_<isa>.cc must not include this: its functions are inline and
// compiled for any host.
#pragma once

#include "cpu/kernels/products/gemm.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/text.h"

namespace mmn_fast {

constexpr int64_t padded_width(int64_t width) { return (width + kRowPad - 1) / kRowPad * kRowPad; }

// Floats of GemmArgs::pack: a complex row has 2 k, and every kernel pads a little.
constexpr int64_t gemm_pack_size(int64_t k) { return kRowBlock * ((2 * k + 63) / 64 * 68 + 64); }

// Scratch floats of attend_f32 for sentences of at most `tokens`: a head's transposed keys, and scores of a few queries.
constexpr int64_t attention_scratch_size(int64_t tokens, int64_t head_width) {
  return (head_width + kQueryBlock) * padded_width(tokens);
}

}  // namespace mmn_fast
