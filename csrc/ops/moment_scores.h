// Contract of moment_scores: every sentence against every proposal of one video.
//
//   contrastive[s, p] = <text_contrastive[s], video_contrastive[p]>
//   iou[s, p]         = 1 / (1 + exp(-10 <text_iou[s], video_iou[p]>))
//
// - Each dot product is one chain over j = 0..J-1: a score depends on nothing else in the call.
// - No output overlaps an input. S, P = 0 is valid and touches nothing.
#pragma once

#include <cstdint>

namespace mmn_fast {

struct MomentScoresArgs {
  const float *video_contrastive, *video_iou;  // [proposals, joint]
  const float *text_contrastive, *text_iou;    // [sentences, joint]
  float *contrastive, *iou;                    // [sentences, proposals]
  int64_t proposals, sentences, joint;
};

}  // namespace mmn_fast
