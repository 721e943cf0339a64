// What an instruction set implements. kernels_<isa>.cc includes this, so it holds declarations only: an inline function
// compiled there with wide instructions could become the copy that the linker keeps for every host.
#pragma once

#include <cstdint>

#include "ops/sparse_max_pool.h"
#include "ops/temporal_nms.h"

namespace mmn_fast {

// Per-thread memory of temporal_nms, each array of `padded` elements: cells rounded up to kScratchPad.
struct TemporalNmsScratch {
  float* starts;
  float* ends;
  int32_t* keys;
  int64_t padded;
};
constexpr int64_t kScratchPad = 16;  // lanes of the widest vector

// One function per op: it handles items [first, last) on the calling thread. nullptr where an instruction set brings no
// code of its own for the op.
struct CpuKernels {
  void (*sparse_max_pool_f32)(const SparseMaxPoolArgs& args, int64_t first_channel, int64_t last_channel);
  void (*temporal_nms_f32)(const TemporalNmsArgs& args, const TemporalNmsScratch& scratch, int64_t first_query,
                           int64_t last_query);
};

namespace isa_generic {
extern const CpuKernels kernels;
}
namespace isa_avx2 {
extern const CpuKernels kernels;
}
namespace isa_avx512 {
extern const CpuKernels kernels;
}

}  // namespace mmn_fast
