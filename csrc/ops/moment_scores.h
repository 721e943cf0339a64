// Contract of moment_scores: every sentence against every proposal of one video.
//
//   contrastive[s, p] = <text_contrastive[s], video_contrastive[p]>
//   iou[s, p]         = 1 / (1 + exp(-10 <text_iou[s], video_iou[p]>))
//
// - A score depends on its own two vectors and the instruction set alone: neither on the rest of the call nor on threads.
// - No output overlaps an input. S, P = 0 is valid and touches nothing.
//
// Implemented by cpu/kernels/moment_scores-inl.h, called by cpu/cpu_ops.cc.
#pragma once

#include <cstdint>

namespace mmn_fast {

// What is compared, all unit vectors over J.
struct MomentPairs {
  const float *video_contrastive, *video_iou;  // [proposals, joint]
  const float *text_contrastive, *text_iou;    // [sentences, joint]
  int64_t proposals, sentences, joint;
};

struct MomentScoresArgs {
  MomentPairs pairs;
  float *contrastive, *iou;  // [sentences, proposals]
};

}  // namespace mmn_fast
