// The ops on a CUDA device. All pointers are device memory of `device`; `stream` is a cudaStream_t of it. A launch
// returns before the work is done and throws std::runtime_error if CUDA refuses it. Free of CUDA headers, for bindings.
#pragma once

#include <cstdint>

#include "ops/sparse_max_pool.h"
#include "ops/temporal_nms.h"

namespace mmn_fast {

void launch_sparse_max_pool(const SparseMaxPoolArgs& args, int device, void* stream);

// `keys` is scratch memory, [queries, cells].
void launch_temporal_nms(const TemporalNmsArgs& args, uint32_t* keys, int device, void* stream);

}  // namespace mmn_fast
