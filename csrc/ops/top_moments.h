// Contract of top_moments: from embeddings to every sentence's best moments, without an array of size S x P.
//
//   c, u as in ops/match_scores.h, bit for bit
//   fused = c * u                                   (kProduct)
//   fused = max(0.5 c + 0.5, 0) ^ power * u         (kPower)
//   then ops/temporal_nms.h on row s of fused: same order, same ties, same IoU
//
// - power = 0.5 is a correctly rounded square root. Any other power is exp(power log(base)), with a relative error of at
//   most (2 + |power log base|) 2^-23; 0 gives 0 to a positive power, 1 to the power 0, infinity to a negative power.
// - A sentence's row depends on its own vectors, the video and the instruction set alone.
// - cells[s, :] is best first, then -1; scores[s, :] holds the cells' fused scores, then 0. Every element is written.
// - No output overlaps an input. S, P = 0 is valid (P = 0 gives rows of -1).
// - Returns the first sentence of the range whose fused scores hold a NaN, or -1; the output of such a row is undefined.
// - Memory per thread: kScoredAtOnce rows of P keys.
//
// Implemented by cpu/kernels/match_scores-inl.h, called by cpu/cpu_ops.cc.
#pragma once

#include <cstdint>

#include "ops/match_scores.h"

namespace mmn_fast {

enum class ScoreFusion { kPower, kProduct };

struct TopMomentsArgs {
  MatchInputs inputs;
  const float* moments;  // [proposals, 2] (start, end), finite seconds
  ScoreFusion fusion;
  float power;          // exponent for kPower, finite
  float iou_threshold;  // [0, 1]
  int64_t top_k;        // >= 1
  int32_t* cells;       // [sentences, top_k]
  float* scores;        // [sentences, top_k]
};

}  // namespace mmn_fast
