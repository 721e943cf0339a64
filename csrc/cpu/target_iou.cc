#include <algorithm>
#include <cmath>
#include <vector>

#include "common/check.h"
#include "common/parallel.h"
#include "cpu/cpu_ops.h"

namespace mmn_fast {
namespace {

// Largest frame number: differences of larger ones would overflow. A billion frames is a year of video.
constexpr int64_t kMaxFrame = int64_t{1} << 60;

// A tube's cells take about as long as this many frames' boxes, and waking a worker as long as some 2^14 boxes.
int worthwhile_threads(const TargetIouArgs& args, int threads) {
  const int64_t work = args.rows + args.tubes * args.clips * args.clips / 2;
  return static_cast<int>(std::clamp<int64_t>(work >> 14, 1, threads));
}

void refuse_unusable_boxes(const double* boxes, int64_t rows, const char* argument) {
  for (int64_t r = 0; r < rows; ++r) {
    const double* box = boxes + 4 * r;
    const bool finite = std::isfinite(box[0]) && std::isfinite(box[1]) && std::isfinite(box[2]) && std::isfinite(box[3]);
    MMN_CHECK(finite && box[2] >= box[0] && box[3] >= box[1], argument, ": expected finite x1 <= x2 and y1 <= y2, got (",
              box[0], ", ", box[1], ", ", box[2], ", ", box[3], ") at row ", r);
  }
}

void refuse_unusable_rows(const TargetIouArgs& args) {
  MMN_CHECK(args.starts[0] == 0 && args.starts[args.tubes] == args.rows, "starts: expected 0 to ", args.rows, ", got ",
            args.starts[0], " to ", args.starts[args.tubes]);
  const int64_t sides = args.clips + 1;
  for (int64_t t = 0; t < args.tubes; ++t) {
    const int64_t rows = args.starts[t + 1] - args.starts[t];
    MMN_CHECK(rows >= 0, "starts: expected rising numbers, got a fall after tube ", t);
    MMN_CHECK(std::abs(args.first_frames[t]) < kMaxFrame, "first_frames: expected frames below 2^60, got ",
              args.first_frames[t], " for tube ", t);
    const int64_t* bounds = args.bounds + t * sides;
    MMN_CHECK(std::is_sorted(bounds, bounds + sides) && bounds[0] >= 0 && bounds[args.clips] <= rows,
              "bounds: expected rising rows from 0 to ", rows, ", got others for tube ", t);
  }
}

double box_iou(const double* a, const double* b, double extent) {
  const double width = std::max(0.0, std::min(a[2], b[2]) + extent - std::max(a[0], b[0]));
  const double height = std::max(0.0, std::min(a[3], b[3]) + extent - std::max(a[1], b[1]));
  const double inter = width * height;
  const double area_a = (a[2] - a[0] + extent) * (a[3] - a[1] + extent);
  const double area_b = (b[2] - b[0] + extent) * (b[3] - b[1] + extent);
  const double all = area_a + area_b - inter;
  return all > 0.0 ? inter / all : 0.0;
}

void fill_tube(const TargetIouArgs& args, int64_t t, std::vector<double>& sums) {
  const int64_t N = args.clips, a = args.first_frames[t], rows = args.starts[t + 1] - args.starts[t];
  const int64_t g = args.truth_first_frame, h = g + args.truth_rows - 1;
  const int64_t f0 = std::max(a, g), frames = std::max<int64_t>(std::min(a + rows - 1, h) - f0 + 1, 0);
  if (static_cast<int64_t>(sums.size()) < frames + 1) sums.resize(frames + 1);
  sums[0] = 0.0;
  for (int64_t f = 0; f < frames; ++f) {
    const double* box = args.boxes + 4 * (args.starts[t] + f0 - a + f);
    sums[f + 1] = sums[f] + box_iou(box, args.truth + 4 * (f0 - g + f), args.extent);
  }
  const int64_t* bounds = args.bounds + t * (N + 1);
  float* out = args.out + t * N * N;
  for (int64_t i = 0; i < N; ++i) {
    for (int64_t j = 0; j < N; ++j) {
      const int64_t first = a + bounds[i], last = a + bounds[j + 1] - 1;
      const int64_t from = std::max(first, g), to = std::min(last, h);
      const bool meets = last >= first && to >= from;
      const double hull = static_cast<double>(std::max(last, h) - std::min(first, g) + 1);
      out[i * N + j] = meets ? static_cast<float>((sums[to - f0 + 1] - sums[from - f0]) / hull) : 0.0f;
    }
  }
}

}  // namespace

void target_iou_cpu(const TargetIouArgs& args, int threads) {
  MMN_CHECK(args.truth_rows > 0, "truth: expected at least one frame, got none");
  MMN_CHECK(std::abs(args.truth_first_frame) < kMaxFrame, "truth_first_frame: expected a frame below 2^60, got ",
            args.truth_first_frame);
  refuse_unusable_rows(args);
  refuse_unusable_boxes(args.boxes, args.rows, "boxes");
  refuse_unusable_boxes(args.truth, args.truth_rows, "truth");
  parallel_for(args.tubes, worthwhile_threads(args, threads), [&](int64_t first, int64_t last) {
    thread_local std::vector<double> sums;
    for (int64_t t = first; t < last; ++t) fill_tube(args, t, sums);
  });
}

}  // namespace mmn_fast
