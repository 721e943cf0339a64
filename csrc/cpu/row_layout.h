// Sizes that follow from the kernels' contracts. Not for kernels_<isa>.cc: these functions are compiled for any host.
#pragma once

#include "cpu/gemm.h"
#include "cpu/rows.h"

namespace mmn_fast {

constexpr int64_t padded_width(int64_t width) { return (width + kRowPad - 1) / kRowPad * kRowPad; }

// Floats of GemmArgs::pack. A complex row takes twice the depth.
constexpr int64_t gemm_pack_size(int64_t k) { return (2 * k + kDepth - 1) / kDepth * kRowBlock * kPackStride; }

}  // namespace mmn_fast
