// Contract of sparse_max_pool: the 2D map of max pools. Cell (i, j), the maximum over clips i..j, goes to row
// positions[i, j] of `map`; -1 writes nothing, so the caller's zeros (the border and the invalid cells) stay. NaN
// propagates as in torch.max_pool1d. The earlier of two equal clips wins, so -0 and +0 come out as in torch.
//
// Implemented by cuda/device/video_bodies.h; the CPU makes the same cells in cpu/video_encoder.cc (pool_cells).
#pragma once

#include "ops/gpu/dtype.h"

namespace mmn_fast {

struct SparseMaxPoolArgs {
  const void* clips;         // dtype [n, videos, channels]
  const int32_t* positions;  // [n, n], rows of `map`, -1 for none; each row at most once
  void* map;                 // dtype [map rows, videos, channels]
  int64_t n, videos, channels;
  Dtype dtype;
};

}  // namespace mmn_fast
