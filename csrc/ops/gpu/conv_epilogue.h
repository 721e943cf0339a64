// Contract of conv_epilogue: bias, ReLU and cell weight after a convolution over a box of cells; each cell goes to its
// place.
//   out[positions[p] * cell_stride + b * video_stride + c] = max(products[b, p, c] + bias[c], 0) * weights[p]
// if positions[p] is not -1; nothing else is written.
//
// Implemented by cuda/device/video_bodies.h.
#pragma once

#include "ops/gpu/dtype.h"

namespace mmn_fast {

struct ConvEpilogueArgs {
  const void* products;      // dtype [videos, cells, channels]
  const float* bias;         // [channels]
  const float* weights;      // [cells]
  const int32_t* positions;  // [cells]
  void* out;                 // dtype
  int64_t videos, cells, channels;
  int64_t cell_stride, video_stride;  // elements
  Dtype dtype;
};

}  // namespace mmn_fast
