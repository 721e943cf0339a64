// Contract of target_iou: how well every span of every tube of a video fits the video's true tube.
//
//   out[t, i, j] = vIoU(truth, rows bounds[t, i] : bounds[t, j + 1] of tube t), 0 where that span is empty
//
// A tube has one box per frame, and its frames follow one another. For two tubes whose frames are a..b and g..h (both
// included), f0 = max(a, g) and f1 = min(b, h): the vIoU is 0 where f1 < f0, else
//   (sum over frames f0..f1 of the IoU of the two boxes) / (max(b, h) - min(a, g) + 1).
//
// - A box is (x1, y1, x2, y2) with x2 >= x1 and y2 >= y1. Its width is x2 - x1 + `extent`: 1 for inclusive pixels, 0
//   for half-open boxes; its height likewise. The IoU of two boxes without an area is 0.
// - Box IoUs are float64, summed in the order of the frames; a cell is a difference of two such sums, divided, and then
//   rounded to float32. So it is within 1e-12 of the float64 definition before the last rounding.
// - The entry point refuses boxes that are not finite, bounds that fall or leave the tube, starts that fall or leave the
//   boxes, and an empty truth.
// - Every element of `out` is written; `out` overlaps no input. tubes = 0 is valid, and so is a tube without rows.
// - A tube's cells do not depend on the other tubes or on the number of threads. Memory per thread: one sum per frame
//   of the longest overlap.
//
// Implemented by cpu/target_iou.cc, once for every instruction set: it is float64 and takes a few microseconds per tube.
#pragma once

#include <cstdint>

namespace mmn_fast {

struct TargetIouArgs {
  const double* boxes;          // [rows, 4], one tube after another
  const int64_t* starts;        // [tubes + 1]: tube t has rows starts[t] : starts[t + 1]
  const int64_t* first_frames;  // [tubes]
  const int64_t* bounds;        // [tubes, clips + 1], rows within the tube
  const double* truth;          // [truth_rows, 4]
  float* out;                   // [tubes, clips, clips]
  int64_t tubes;                // K
  int64_t clips;                // N
  int64_t rows;
  int64_t truth_rows;
  int64_t truth_first_frame;
  double extent;
};

}  // namespace mmn_fast
