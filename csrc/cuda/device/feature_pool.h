// Bodies of feature_pool; see ops/gpu.
#pragma once

#include "cuda/run.h"
#include "ops/gpu/feature_pool.h"

namespace mmn_fast {

constexpr float kSmallestNorm = 1e-12f;

// A warp computes the two divisors of one stream of a row. The first divisor is 1 unless the squares overflow.
struct StreamNormBody {
  FeaturePoolArgs a;
  MMN_DEVICE int64_t items() const { return a.rows * a.streams; }

  template <class Group>
  MMN_DEVICE float sum_of_squares(const Group& group, const float* row, int first, int last, float scale) const {
    typename Group::template PerThread<float> sums;
    group.each([&](int thread) {
      float sum = 0.0f;
      for (int d = first + thread; d < last; d += Group::kThreads) {
        const float value = row[d] / scale;
        sum += value * value;
      }
      sums[thread] = sum;
    });
    return group.reduce(sums, 0.0f, Sum());
  }

  template <class Group>
  MMN_DEVICE void operator()(const Group& group, int64_t item) const {
    const int stream = static_cast<int>(item % a.streams);
    const float* row = a.features + item / a.streams * a.width;
    // Here and below, all indices are constant: a variable index would copy the arguments to local memory.
    int first = 0, last = a.stream_ends[0];
    MMN_UNROLL_ALL
    for (int s = 1; s < kMostStreams; ++s) {
      if (s <= stream) {
        first = last;
        last = a.stream_ends[s];
      }
    }
    float scale = 1.0f, squares = sum_of_squares(group, row, first, last, scale);
    if (squares == INFINITY) {
      typename Group::template PerThread<float> largest;
      group.each([&](int thread) {
        float most = 0.0f;
        for (int d = first + thread; d < last; d += Group::kThreads) most = fmaxf(most, fabsf(row[d]));
        largest[thread] = most;
      });
      scale = group.reduce(largest, 0.0f, Max());
      squares = sum_of_squares(group, row, first, last, scale);
    }
    const float norm = fmaxf(sqrtf(squares), kSmallestNorm);
    group.each([&](int thread) {
      if (thread == 0) {
        a.norms[2 * item] = scale;
        a.norms[2 * item + 1] = norm;
      }
    });
  }
};

// A thread computes one output element. Neighbouring threads take neighbouring columns, so a warp reads 128 contiguous
// bytes.
template <class T>
struct FeatureMeanBody {
  FeaturePoolArgs a;
  MMN_DEVICE int64_t items() const { return a.pre_clips * a.width; }
  MMN_DEVICE void operator()(int64_t item) const {
    const int64_t t = item / a.width;
    const int d = static_cast<int>(item % a.width);
    int stream = 0;
    MMN_UNROLL_ALL
    for (int s = 0; s + 1 < kMostStreams; ++s) {
      if (s + 1 < a.streams && d >= a.stream_ends[s]) ++stream;
    }
    const int first = a.starts[t], last = a.ends[t];
    float sum = 0.0f;
    for (int row = first; row < last; ++row) {
      const float* norm = a.norms + 2 * (static_cast<int64_t>(row) * a.streams + stream);
      sum += a.features[row * a.width + d] / norm[0] / norm[1];
    }
    from_float(sum / static_cast<float>(last - first), static_cast<T*>(a.out)[item]);
  }
};

template <class Runner>
void run_feature_pool(const FeaturePoolArgs& args, const Runner& runner) {
  runner.warps(StreamNormBody{args});
  with_elements(args.dtype, 1, {}, [&](auto element, auto) { runner.elements(FeatureMeanBody<decltype(element)>{args}); });
}

}  // namespace mmn_fast
