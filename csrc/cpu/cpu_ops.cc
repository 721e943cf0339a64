#include "cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "cpu/kernel_table.h"

namespace mmn_fast {
namespace {

// Waking a sleeping worker takes about 50 us, in which either kernel visits some 2^18 cells with
// AVX-512: no thread gets fewer. One sentence is thus one thread's work, a long video's map is everybody's.
int worthwhile_threads(int threads, int64_t cells) {
  return static_cast<int>(std::clamp<int64_t>(cells >> 18, 1, threads));
}

// Grown per thread and kept: no allocation after the first call of a size.
TemporalNmsScratch nms_scratch(int64_t cells) {
  thread_local std::vector<float> bounds;
  thread_local std::vector<int32_t> keys;
  const int64_t padded = (cells + kScratchPad - 1) / kScratchPad * kScratchPad;
  if (static_cast<int64_t>(keys.size()) < padded) {
    bounds.resize(2 * padded);
    keys.resize(padded);
  }
  return {bounds.data(), bounds.data() + padded, keys.data(), padded};
}

void refuse_nan_scores(const TemporalNmsArgs& args) {
  for (int64_t q = 0; q < args.queries; ++q) {
    const float* row = args.scores + q * args.cells;
    int found = 0;  // without an early exit the loop vectorises
    for (int64_t p = 0; p < args.cells; ++p) found |= row[p] != row[p];
    if (!found) continue;
    const int64_t column = std::find_if(row, row + args.cells, [](float score) { return std::isnan(score); }) - row;
    MMN_CHECK(false, "scores: expected no NaN, got NaN at row ", q, ", column ", column);
  }
}

void refuse_infinite_moments(const TemporalNmsArgs& args) {
  for (int64_t p = 0; p < args.cells; ++p) {
    const float start = args.moments[2 * p], end = args.moments[2 * p + 1];
    MMN_CHECK(std::isfinite(start) && std::isfinite(end), "moments: expected finite seconds, got (", start, ", ", end,
              ") at row ", p);
  }
}

}  // namespace

void sparse_max_pool_cpu(const SparseMaxPoolArgs& args, CpuIsa isa, int threads) {
  for (int64_t i = 0; i < args.n; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      MMN_CHECK(args.mask[i * args.n + j] == 0, "mask: expected no valid cell below the diagonal, got one at (", i,
                ", ", j, ")");
    }
  }
  const auto kernel = cpu_kernels(isa).sparse_max_pool_f32;
  parallel_for(args.channels, worthwhile_threads(threads, args.channels * args.n * args.n),
               [&](int64_t first, int64_t last) { kernel(args, first, last); });
}

void temporal_nms_cpu(const TemporalNmsArgs& args, CpuIsa isa, int threads) {
  refuse_nan_scores(args);
  refuse_infinite_moments(args);
  const auto kernel = cpu_kernels(isa).temporal_nms_f32;
  const int64_t passes = std::min(args.top_k, args.cells);  // at most: suppression may leave nothing earlier
  parallel_for(args.queries, worthwhile_threads(threads, args.queries * args.cells * passes),
               [&](int64_t first, int64_t last) { kernel(args, nms_scratch(args.cells), first, last); });
}

}  // namespace mmn_fast
