// Sizes that follow from the kernels' contracts. Not for kernels_<isa>.cc: these functions are compiled for any host.
#pragma once

#include "cpu/gemm.h"
#include "cpu/rows.h"

namespace mmn_fast {

constexpr int64_t padded_width(int64_t width) { return (width + kRowPad - 1) / kRowPad * kRowPad; }

// Floats of GemmArgs::pack: a complex row has 2 k, and every kernel pads a little.
constexpr int64_t gemm_pack_size(int64_t k) { return kRowBlock * ((2 * k + 63) / 64 * 68 + 64); }

}  // namespace mmn_fast
