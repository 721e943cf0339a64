// Contract of pair_top_moments: each pair's best proposals after greedy non-maximum suppression, as in
// ops/temporal_nms.h. Cell (i, j) lasts from i * duration / clips to (j + 1) * duration / clips, each step rounded to
// float32. NaN is no candidate. chosen_scores is 0 where chosen is -1.
//
// Implemented by cuda/device/moment_bodies.h.
#pragma once

#include <cstdint>

namespace mmn_fast {

struct PairTopMomentsArgs {
  const float* fused;      // [pairs, proposals]
  const int32_t* cells;    // [proposals, 2]
  const float* durations;  // [pairs], seconds
  uint32_t* keys;          // [pairs, proposals], scratch
  int32_t* chosen;         // [pairs, top_k]
  float* chosen_scores;    // [pairs, top_k]
  int64_t pairs, proposals, top_k;
  float clips;
  float iou_threshold;
};

}  // namespace mmn_fast
