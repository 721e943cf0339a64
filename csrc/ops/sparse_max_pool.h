// Contract of sparse_max_pool: the 2D map of all moments, from the clips' features.
//
//   out[c, i, j] = max(clips[c, i], ..., clips[c, j])   where mask[i, j]
//                = 0                                    elsewhere
//
// - Every element of `out` is written, whatever it held before.
// - `mask` is 0 below the diagonal (i > j). It comes from geometry.py; no kernel works it out again.
// - NaN propagates as in torch.max_pool1d: a moment that holds a NaN clip is NaN. Of two equal values the
//   earlier one wins, so that -0 and +0 come out as torch's do. The result is exact, bit for bit, everywhere.
// - `out` overlaps neither `clips` nor `mask`. Nothing needs an alignment beyond that of its type.
// - channels = 0 or n = 0 is valid and touches nothing.
#pragma once

#include <cstdint>

namespace mmn_fast {

struct SparseMaxPoolArgs {
  const float* clips;   // [channels, n]
  const uint8_t* mask;  // [n, n], non-zero = valid proposal
  float* out;           // [channels, n, n]
  int64_t channels;     // B * C
  int64_t n;            // N, clips on the time axis
};

}  // namespace mmn_fast
