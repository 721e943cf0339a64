// Contract of clip_pool: bias, ReLU and average over `kernel` pre-clips, after the product of the 1x1 convolution.
//   out[n, b, c] = mean over k of max(products[b, n * stride + k, c] + bias[c], 0)
//
// Implemented by cuda/device/video_bodies.h.
#pragma once

#include "ops/gpu/dtype.h"

namespace mmn_fast {

struct ClipPoolArgs {
  const void* products;  // dtype [videos, pre_clips, channels]
  const float* bias;     // [channels]
  void* out;             // dtype [clips, videos, channels], clips = (pre_clips - kernel) / stride + 1
  int64_t videos, pre_clips, channels, clips, kernel, stride;
  Dtype dtype;
};

}  // namespace mmn_fast
