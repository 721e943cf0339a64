// temporal_nms, over the Vec of the including file. See ops/temporal_nms.h.
namespace mmn_fast::MMN_ISA {
namespace {

// Scores become integer keys of the same order. Scores are never NaN, so one NaN's key means "no candidate"; -infinity
// stays an ordinary candidate.
constexpr int32_t kGone = INT32_MIN;

struct Best {
  int32_t key;
  int32_t cell;
};

void fill_keys(const float* scores, int64_t cells, int32_t* keys, int64_t padded) {
  for (int64_t p = 0; p < cells; ++p) {
    int32_t bits;
    __builtin_memcpy(&bits, scores + p, sizeof bits);
    const int32_t ordered = bits ^ ((bits >> 31) & INT32_MAX);
    keys[p] = (bits & INT32_MAX) == 0 ? kGone : ordered;
  }
  for (int64_t p = cells; p < padded; ++p) keys[p] = kGone;
}

void split_moments(const float* moments, int64_t cells, const TemporalNmsScratch& scratch) {
  for (int64_t p = 0; p < cells; ++p) {
    scratch.starts[p] = moments[2 * p];
    scratch.ends[p] = moments[2 * p + 1];
  }
  for (int64_t p = cells; p < scratch.padded; ++p) scratch.starts[p] = scratch.ends[p] = 0.0f;
}

// One pass: drops the candidates that overlap [start, end] too much and finds the best of the others.
Best drop_overlapping_and_find_best(const TemporalNmsScratch& scratch, float start, float end, float threshold) {
  const Vec::F kept_start = Vec::set1(start), kept_end = Vec::set1(end), limit = Vec::set1(threshold);
  const Vec::F zero = Vec::set1(0.0f);
  const Vec::I gone = Vec::set1_i(kGone), width = Vec::set1_i(Vec::kWidth);
  Vec::I best_key = gone, best_cell = Vec::set1_i(0), cell = Vec::iota(0);
  for (int64_t p = 0; p < scratch.padded; p += Vec::kWidth) {
    const Vec::F starts = Vec::load(scratch.starts + p), ends = Vec::load(scratch.ends + p);
    const Vec::F inter = Vec::max(Vec::sub(Vec::min(ends, kept_end), Vec::max(starts, kept_start)), zero);
    const Vec::F hull = Vec::sub(Vec::max(ends, kept_end), Vec::min(starts, kept_start));
    const Vec::M overlaps = Vec::gt(Vec::div(inter, hull), limit);
    const Vec::I key = Vec::select_i(overlaps, gone, Vec::load_i(scratch.keys + p));
    Vec::store_i(scratch.keys + p, key);
    const Vec::M better = Vec::gt_i(key, best_key);  // strictly greater: each lane keeps the first of equal cells
    best_key = Vec::select_i(better, key, best_key);
    best_cell = Vec::select_i(better, cell, best_cell);
    cell = Vec::add_i(cell, width);
  }
  int32_t lane_keys[Vec::kWidth], lane_cells[Vec::kWidth];
  Vec::store_i(lane_keys, best_key);
  Vec::store_i(lane_cells, best_cell);
  Best best = {lane_keys[0], lane_cells[0]};
  for (int lane = 1; lane < Vec::kWidth; ++lane) {
    const bool earlier_equal = lane_keys[lane] == best.key && lane_cells[lane] < best.cell;
    if (lane_keys[lane] > best.key || earlier_equal) best = {lane_keys[lane], lane_cells[lane]};
  }
  return best;
}

float score_of(int32_t key) {
  const int32_t bits = key ^ ((key >> 31) & INT32_MAX);
  float score;
  __builtin_memcpy(&score, &bits, sizeof score);
  return score;
}

// Makes the greedy choice from the keys, starts and ends in `scratch`: cells [top_k], and their scores unless nullptr.
void keep_best(const TemporalNmsScratch& scratch, float iou_threshold, int64_t top_k, int32_t* cells, float* scores) {
  // Nothing is kept yet, so nothing must be dropped: no IoU exceeds infinity.
  Best best = drop_overlapping_and_find_best(scratch, 0.0f, 0.0f, __builtin_inff());
  int64_t k = 0;
  while (best.key != kGone) {
    if (scores != nullptr) scores[k] = score_of(best.key);
    cells[k++] = best.cell;
    if (k == top_k) break;
    scratch.keys[best.cell] = kGone;  // its IoU with itself, 1 (NaN if empty), need not exceed the threshold
    best = drop_overlapping_and_find_best(scratch, scratch.starts[best.cell], scratch.ends[best.cell], iou_threshold);
  }
  for (; k < top_k; ++k) {
    cells[k] = -1;
    if (scores != nullptr) scores[k] = 0.0f;
  }
}

void temporal_nms_f32(const TemporalNmsArgs& args, const TemporalNmsScratch& scratch, int64_t first_query,
                      int64_t last_query) {
  split_moments(args.moments, args.cells, scratch);
  for (int64_t q = first_query; q < last_query; ++q) {
    fill_keys(args.scores + q * args.cells, args.cells, scratch.keys, scratch.padded);
    keep_best(scratch, args.iou_threshold, args.top_k, args.out + q * args.top_k, nullptr);
  }
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
