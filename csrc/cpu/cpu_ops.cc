#include "cpu/cpu_ops.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "cpu/isa/kernel_table.h"

namespace mmn_fast {
namespace {

// Waking a sleeping worker takes about 50 us. With AVX-512 a kernel visits some 2^18 cells in that time, so no thread
// gets fewer: one thread handles a single sentence, all threads share a long video's map.
int worthwhile_threads(int threads, int64_t cells) {
  return static_cast<int>(std::clamp<int64_t>(cells >> 18, 1, threads));
}

// Each thread's scratch memory grows and is kept, so only the first call of a size allocates.
TemporalNmsScratch nms_scratch(int64_t cells, int64_t rows_of_keys) {
  thread_local std::vector<float> bounds;
  thread_local std::vector<int32_t> keys;
  const int64_t padded = (cells + kScratchPad - 1) / kScratchPad * kScratchPad;
  if (static_cast<int64_t>(bounds.size()) < 2 * padded) bounds.resize(2 * padded);
  if (static_cast<int64_t>(keys.size()) < rows_of_keys * padded) keys.resize(rows_of_keys * padded);
  return {bounds.data(), bounds.data() + padded, keys.data(), padded};
}

// The cost of all comparisons, in the cell visits of worthwhile_threads; one comparison at J = 256 takes 128 visits.
int64_t cells_worth(const MatchInputs& inputs) {
  return inputs.sentences * inputs.proposals * std::max<int64_t>(inputs.joint / 2, 1);
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

void refuse_infinite_moments(const float* moments, int64_t cells) {
  for (int64_t p = 0; p < cells; ++p) {
    const float start = moments[2 * p], end = moments[2 * p + 1];
    MMN_CHECK(std::isfinite(start) && std::isfinite(end), "moments: expected finite seconds, got (", start, ", ", end,
              ") at row ", p);
  }
}

// Keeps the least number that is not negative; -1 while there is none.
void keep_least(std::atomic<int64_t>& least, int64_t found) {
  int64_t before = least.load();
  while (found >= 0 && (before < 0 || found < before) && !least.compare_exchange_weak(before, found)) {
  }
}

}  // namespace

void temporal_nms_cpu(const TemporalNmsArgs& args, CpuIsa isa, int threads) {
  refuse_nan_scores(args);
  refuse_infinite_moments(args.moments, args.cells);
  const auto kernel = cpu_kernels(isa).temporal_nms_f32;
  const int64_t passes = std::min(args.top_k, args.cells);  // at most: suppression may end earlier
  parallel_for(args.queries, worthwhile_threads(threads, args.queries * args.cells * passes),
               [&](int64_t first, int64_t last) { kernel(args, nms_scratch(args.cells, 1), first, last); });
}

void match_scores_cpu(const MatchScoresArgs& args, CpuIsa isa, int threads) {
  const auto kernel = cpu_kernels(isa).match_scores_f32;
  parallel_for(args.inputs.sentences, worthwhile_threads(threads, cells_worth(args.inputs)),
               [&](int64_t first, int64_t last) { kernel(args, first, last); });
}

void top_moments_cpu(const TopMomentsArgs& args, CpuIsa isa, int threads) {
  const MatchInputs& inputs = args.inputs;
  refuse_infinite_moments(args.moments, inputs.proposals);
  const auto kernel = cpu_kernels(isa).top_moments_f32;
  std::atomic<int64_t> refused = -1;
  parallel_for(inputs.sentences, worthwhile_threads(threads, cells_worth(inputs)), [&](int64_t first, int64_t last) {
    const int64_t rows = std::min(kScoredAtOnce, last - first);
    keep_least(refused, kernel(args, nms_scratch(inputs.proposals, rows), first, last));
  });
  MMN_CHECK(refused < 0, "embeddings: expected no NaN score, got one for sentence ", refused.load());
}

void top_moments_of_pairs_cpu(const std::vector<TopMomentsArgs>& pairs, CpuIsa isa, int threads) {
  const auto B = static_cast<int64_t>(pairs.size());
  if (B < threads) {  // threads share each pair's sentences
    for (const TopMomentsArgs& pair : pairs) top_moments_cpu(pair, isa, threads);
    return;
  }
  int64_t worth = 0;
  for (const TopMomentsArgs& pair : pairs) {
    refuse_infinite_moments(pair.moments, pair.inputs.proposals);
    worth += cells_worth(pair.inputs);
  }
  const auto kernel = cpu_kernels(isa).top_moments_f32;
  std::atomic<int64_t> refused = -1;  // the pair
  parallel_for(B, worthwhile_threads(threads, worth), [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const MatchInputs& inputs = pairs[b].inputs;
      const int64_t rows = std::min(kScoredAtOnce, inputs.sentences);
      const int64_t found = kernel(pairs[b], nms_scratch(inputs.proposals, rows), 0, inputs.sentences);
      keep_least(refused, found < 0 ? -1 : b);
    }
  });
  MMN_CHECK(refused < 0, "embeddings: expected no NaN score, got one for a sentence of pair ", refused.load());
}

}  // namespace mmn_fast
