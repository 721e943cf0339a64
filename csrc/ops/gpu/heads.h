// Contract of heads: bias and L2 normalisation (norm at least 1e-12) after the product with both heads.
//   contrastive[b, p, :] = normalised(products[p, b, :joint] + bias[:joint]), iou from the other half
//
// Implemented by cuda/device/video_bodies.h.
#pragma once

#include "ops/gpu/dtype.h"

namespace mmn_fast {

struct HeadsArgs {
  const void* products;     // dtype [proposals, videos, 2 joint]
  const float* bias;        // [2 joint]
  void *contrastive, *iou;  // dtype [videos, proposals, joint]
  int64_t proposals, videos, joint;
  Dtype dtype;
};

}  // namespace mmn_fast
