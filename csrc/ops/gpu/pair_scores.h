// Contract of pair_scores: the scores of pairs of a video and a sentence, in both branches and fused. A pair with video
// -1 gets zeros.
//   c = <contrastive>, u = 1 / (1 + exp(-10 <iou>)), fused = product ? c u : max(0.5 c + 0.5, 0)^power u
//
// Implemented by cuda/device/moment_bodies.h.
#pragma once

#include "ops/gpu/dtype.h"

namespace mmn_fast {

struct PairScoresArgs {
  const void *video_contrastive, *video_iou;     // dtype [videos, proposals, joint], unit norm
  const void *text_contrastive, *text_iou;       // dtype [sentences, joint], unit norm
  const int32_t *pair_videos, *pair_sentences;   // [pairs]
  float* fused;                                  // [pairs, proposals]
  float *contrastive, *iou;                      // [pairs, proposals], or both null
  int64_t pairs, proposals, joint;
  float power;
  bool product;
  Dtype dtype;
};

}  // namespace mmn_fast
