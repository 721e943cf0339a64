// Contract of search_moments: the videos of a shard whose best proposal fits a sentence best, exactly.
//
//   score[s, p] = the fused score of ops/top_moments.h for row p decoded to float32, bit for bit
//   best[s, v]  = the largest score of a row of video v; among equal ones the first window's first row
//   the k best videos of each sentence: larger scores first, then smaller video numbers
//
// - The call merges a shard into `scores`, `videos`, `windows` and `cells`, which hold the result of earlier shards (none:
//   video -1), best first. Called for every shard of a library, in any order, it gives the k best videos of the library.
// - A score of exactly 0 is no candidate, and neither is one below least[s].
// - A window takes `proposals` rows from starts[w]. Windows of one video are adjacent; no video is in two shards.
// - Memory beside the outputs: per thread k entries for each of kSearchSentences sentences, and some 100 KB.
// - Throws std::invalid_argument for a NaN score.
//
// Why it is exact although it reads few rows of the contrastive branch: a score is at most F sigmoid(10 u), where F bounds
// the other factor by the vectors' lengths (`norm`). A row counts only if this bound reaches the sentence's k-th best
// score so far, and its own video's best one. Then so must the fusion of its c and u; then both branches are multiplied
// as top_moments multiplies them. The first looks at u and c may be rough: their errors are bounded (rounding: by `norm`;
// int8 codes: by their distance, because |<t, x - y>| <= |t| |x - y|) and added before the comparison.
//
// Implemented by cpu/kernels/search/search_moments-inl.h and its neighbours, called by cpu/search/search_moments.cc.
#pragma once

#include <cstdint>

#include "ops/top_moments.h"

namespace mmn_fast {

constexpr int64_t kSearchSentences = 64;  // sentences that one pass over the rows serves

// A branch's rows rounded to 8 bits.
struct StoredCodes {
  const int8_t* codes;  // [rows, joint]
  const float* steps;   // [rows, 2]: row r is near steps[r, 0] codes[r], at a Euclidean distance of at most steps[r, 1]
};

struct StoredRows {
  bool half;                                      // IEEE half precision, else float32; all values finite
  const void *contrastive, *iou;                  // [rows, joint]
  const StoredCodes *contrastive_codes, *iou_codes;  // both nullptr: the rows themselves are read
  float norm;                                     // >= the Euclidean length of every row of both branches
};

struct SearchMomentsArgs {
  StoredRows rows;
  const int64_t *starts, *window_videos, *window_numbers;  // [num_windows]
  int64_t num_windows, proposals, joint;
  const float *text_contrastive, *text_iou;  // [sentences, joint], finite
  int64_t sentences;
  ScoreFusion fusion;
  float power;         // exponent for kPower, finite
  const float* least;  // [sentences]
  int64_t k;           // >= 1
  float* scores;       // [sentences, k], -infinity where there is no video
  int64_t *videos, *windows;  // [sentences, k], -1 where there is none
  int32_t* cells;             // [sentences, k], the row within the window, -1 where there is none
};

}  // namespace mmn_fast
