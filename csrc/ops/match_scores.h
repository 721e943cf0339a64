// Contract of match_scores: every sentence against every proposal of one video.
//
//   contrastive[s, p] = <text_contrastive[s], video_contrastive[p]>
//   iou[s, p]         = 1 / (1 + exp(-10 <text_iou[s], video_iou[p]>))
//
// - A score depends on its own two vectors and the instruction set alone, not on the rest of the call or on threads.
// - No output overlaps an input. S, P = 0 is valid and touches nothing.
//
// Implemented by cpu/kernels/match_scores-inl.h, called by cpu/cpu_ops.cc.
#pragma once

#include <cstdint>

namespace mmn_fast {

// The vectors to compare, of unit norm over J.
struct MatchInputs {
  const float *video_contrastive, *video_iou;  // [proposals, joint]
  const float *text_contrastive, *text_iou;    // [sentences, joint]
  int64_t proposals, sentences, joint;
};

struct MatchScoresArgs {
  MatchInputs inputs;
  float *contrastive, *iou;  // [sentences, proposals]
};

}  // namespace mmn_fast
