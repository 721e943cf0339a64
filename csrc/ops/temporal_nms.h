// Contract of temporal_nms: the best moments of every query that do not overlap too much.
//
// For each query, greedily: keep the remaining candidate of the highest score, then drop every candidate whose
// IoU with it is strictly greater than `iou_threshold`; stop after `top_k` or when none remains.
//
// - A score of exactly 0 (either sign) is no candidate: official MMN writes 0 outside the valid cells. Negative and
//   infinite scores are ordinary values. NaN is the caller's error: the CPU entry point refuses it; the CUDA kernel
//   cannot refuse it and treats it as no candidate.
// - The lower cell comes first if scores are equal.
// - IoU is float32, operation by operation (no FMA): inter = max(min(e1, e2) - max(s1, s2), 0),
//   hull = max(e1, e2) - min(s1, s2), IoU = inter / hull. 0 / 0 is NaN and drops nothing.
// - out[q, :] holds cells, best first, then -1. Every element is written. top_k may exceed `cells`.
// - `out` overlaps no input. queries = 0 or cells = 0 is valid (the latter gives rows of -1).
//
// Implemented by cpu/kernels/temporal_nms-inl.h, called by cpu/cpu_ops.cc, and by cuda/device/temporal_nms.h.
#pragma once

#include <cstdint>

namespace mmn_fast {

struct TemporalNmsArgs {
  const float* scores;   // [queries, cells]
  const float* moments;  // [cells, 2] (start, end), finite seconds
  int32_t* out;          // [queries, top_k]
  int64_t queries;       // S
  int64_t cells;         // P < 2^31 - 16, so that an index fits int32 after padding
  int64_t top_k;         // >= 1
  float iou_threshold;   // [0, 1]
};

}  // namespace mmn_fast
