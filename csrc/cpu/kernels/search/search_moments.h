// What the search driver (cpu/search/search_moments.cc) and the kernel on one window share.
#pragma once

#include <cstdint>

#include "ops/search_moments.h"

namespace mmn_fast {

constexpr int64_t kSearchRows = 56;   // most rows that a kernel multiplies at once
constexpr int64_t kSearchDirect = 6;  // sentences up to which rows are multiplied as they are read

// From a score to the u that a row needs at least: see ops/search_moments.h. One per sentence.
struct SearchLimit {
  double factor;  // F, rounded up; infinity if no bound exists
  double error;   // bound of the rough u's rounding error
  float contrastive_error;  // the same of the rough c
};
float search_limit(const SearchLimit& limit, float score);

// One block of sentences. Arrays have kSearchSentences elements unless a size is given.
struct SearchBlock {
  const SearchMomentsArgs* args;
  const float *text_contrastive, *text_iou;  // [sentences, joint]
  const float* packed;                       // text_iou in panels of `search_columns`: [panel][joint][column], padded
  // For at most kSearchDirect sentences and rows with codes: text_contrastive[s] is near text_scales[0, s] *
  // text_codes[0, s] and text_iou[s] near text_scales[1, s] * text_codes[1, s]; no sum of joint products overflows.
  const int16_t* text_codes;  // [2, sentences, joint]
  const float* text_scales;   // [2, sentences]
  int64_t sentences;
  float contrastive_norm, iou_norm;          // lengths of the longest text_contrastive and text_iou
  const SearchLimit* limits_of;
  const float *errors, *contrastive_errors;  // of limits_of, padded with zeros
};

// A thread's state in one video.
struct SearchState {
  float* limits;     // u below which a row does not count; infinity past the last sentence
  float* floors;     // the score below which a row does not count
  float* scores;     // best of the video so far
  int64_t* windows;  // its window, -1 if there is none
  int32_t* cells;
  float* tiles;      // [2, kSearchRows, kSearchSentences]
  float* decoded;    // [kSearchRows, joint], rows that are multiplied, later the one that is judged
  float* pair;       // [2, joint], the decoded row of both branches
  float* cosines;    // rough c of a row
  bool* nan;         // set if a score is NaN
};

}  // namespace mmn_fast
