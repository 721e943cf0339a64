// Contract of feature_pool: pre-clip t is the mean of rows starts[t] .. ends[t] - 1, after each stream of a row is divided
// by its L2 norm (at least 1e-12). A stream whose squares overflow is scaled down before its norm is computed.
//
// Implemented by cuda/device/feature_pool.h.
#pragma once

#include "ops/gpu/dtype.h"

namespace mmn_fast {

constexpr int kMostStreams = 4;

struct FeaturePoolArgs {
  const float* features;         // [rows, width], the videos' rows one after another
  const int32_t *starts, *ends;  // [pre_clips], rows; starts < ends
  float* norms;                  // [rows, streams, 2], scratch
  void* out;                     // dtype [pre_clips, width]
  int64_t rows, pre_clips, width;
  int32_t stream_ends[kMostStreams];  // end column of each stream; the last is `width`
  int streams;
  Dtype dtype;
};

}  // namespace mmn_fast
