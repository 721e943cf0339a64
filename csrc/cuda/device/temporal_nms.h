// Greedy non-maximum suppression by one block, in rounds of a masked arg-max. It compares integers, so the order of
// threads does not matter. See ops/temporal_nms.h.
#pragma once

#include "cuda/device/block.h"

namespace mmn_fast {

constexpr uint32_t kGone = 0;  // the key of a NaN, which is never a candidate

// Maps floats to unsigned integers of the same order.
MMN_DEVICE uint32_t key_of(float score) {
  if (score == 0.0f || is_nan(score)) return kGone;
  const uint32_t bits = float_to_bits(score);
  return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

// Packs a candidate into one integer; the larger key wins, then the lower cell.
MMN_DEVICE uint64_t pack_candidate(uint32_t key, int32_t cell) {
  return key == kGone ? 0 : static_cast<uint64_t>(key) << 32 | (0xffffffffu - static_cast<uint32_t>(cell));
}

struct Span {
  float start, end;
};

// Divides exactly (nvcc's default, with -fmad=false); 0 / 0 overlaps nothing.
MMN_DEVICE bool overlaps(Span moment, Span kept, float threshold) {
  const float inter = fmaxf(fminf(moment.end, kept.end) - fmaxf(moment.start, kept.start), 0.0f);
  const float hull = fmaxf(moment.end, kept.end) - fminf(moment.start, kept.start);
  return inter / hull > threshold;
}

// Writes out[0 .. top_k): cells, best first, then -1. `keys` is scratch, [cells]; span_of(cell) gives a Span.
template <class Group, class SpanOf>
MMN_DEVICE void select_greedily(const Group& group, const float* scores, int64_t cells, uint32_t* keys, SpanOf span_of,
                                float threshold, int64_t top_k, int32_t* out) {
  typename Group::template PerThread<uint64_t> best_of;
  group.each([&](int thread) {
    uint64_t best = 0;
    for (int64_t p = thread; p < cells; p += Group::kThreads) {
      keys[p] = key_of(scores[p]);
      best = Max()(best, pack_candidate(keys[p], static_cast<int32_t>(p)));
    }
    best_of[thread] = best;
  });
  uint64_t best = group.reduce(best_of, uint64_t{0}, Max());

  int64_t k = 0;
  while (best != 0) {  // `best` is the same in every thread, so all leave the loop together
    const auto kept = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best));
    group.each([&](int thread) {
      if (thread == 0) out[k] = kept;
    });
    if (++k == top_k) break;
    const Span span = span_of(kept);
    group.each([&](int thread) {
      uint64_t next = 0;
      for (int64_t p = thread; p < cells; p += Group::kThreads) {
        // The kept cell is dropped explicitly: its IoU with itself, 1 (NaN if empty), need not exceed the threshold.
        if (p == kept || overlaps(span_of(p), span, threshold)) keys[p] = kGone;
        next = Max()(next, pack_candidate(keys[p], static_cast<int32_t>(p)));
      }
      best_of[thread] = next;
    });
    best = group.reduce(best_of, uint64_t{0}, Max());
  }
  group.each([&](int thread) {
    for (int64_t rest = k + thread; rest < top_k; rest += Group::kThreads) out[rest] = -1;
  });
}

}  // namespace mmn_fast
