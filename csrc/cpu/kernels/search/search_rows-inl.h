// Stored rows, one at a time: how they are read, in which order, and how a row is scored. Over the Vec of the including
// file; include match_scores-inl.h first.
namespace mmn_fast::MMN_ISA {
namespace {

// A window is read as so many runs of rows side by side: one run after another takes half as long again.
constexpr int64_t kRuns = 4;

// How a kind of stored row is read: a vector of elements, or one.
struct Floats {
  using Element = float;
  static Vec::F load(const float* p) { return Vec::load(p); }
  static float one(float x) { return x; }
};
struct Halves {
  using Element = uint16_t;
  static Vec::F load(const uint16_t* p) { return Vec::load_half(p); }
  static float one(uint16_t x) {
    // A normal number moves its exponent from bias 15 to bias 127; a subnormal one is a multiple of 2^-24.
    const uint32_t bits = (x & 0x7c00u) != 0 ? (x & 0x7fffu) * 8192u + (112u << 23) : 0u;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    if ((x & 0x7c00u) == 0) value = static_cast<float>(x & 0x3ffu) * 0x1p-24f;
    return (x & 0x8000u) != 0 ? -value : value;
  }
};
struct Codes {
  using Element = int8_t;
  static Vec::F load(const int8_t* p) { return Vec::load_codes(p); }
  static float one(int8_t x) { return static_cast<float>(x); }
};

template <class Rows>
void decode_row(const typename Rows::Element* row, int64_t joint, float* out) {
  int64_t j = 0;
  for (; j + Vec::kWidth <= joint; j += Vec::kWidth) Vec::store(out + j, Rows::load(row + j));
  for (; j < joint; ++j) out[j] = Rows::one(row[j]);
}

void fetch(const void* start, int64_t bytes) {
  constexpr int64_t kLineBytes = 64;
  for (int64_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(static_cast<const char*>(start) + at);
}

// Scores one row for one sentence as top_moments does, and keeps it if it is the video's best so far. Windows come in
// their order, rows within one do not.
void judge(const SearchBlock& block, int64_t window, int64_t cell, int64_t s, const SearchState& state) {
  const SearchMomentsArgs& args = *block.args;
  float c, u;
  multiply_vectors<1, 1>(state.pair, block.text_contrastive + s * args.joint, args.joint, &c, 1);
  multiply_vectors<1, 1>(state.pair + args.joint, block.text_iou + s * args.joint, args.joint, &u, 1);
  const Fusion fuse(args.fusion, args.power);
  alignas(64) float lanes[Vec::kWidth];
  Vec::store(lanes, fuse(Vec::set1(c), sigmoid_of_10(Vec::set1(u))));
  const float score = lanes[0];
  if (score != score) *state.nan = true;
  const bool first = score == state.scores[s] && window == state.windows[s] && cell < state.cells[s];
  if (score == 0.0f || !(state.windows[s] < 0 || score > state.scores[s] || first)) return;
  state.scores[s] = score;
  state.windows[s] = window;
  state.cells[s] = static_cast<int32_t>(cell);
  if (score <= state.floors[s]) return;
  state.floors[s] = score;
  const float limit = search_limit(block.limits_of[s], score);
  if (limit > state.limits[s]) state.limits[s] = limit;
}

// What a rough product with a row's codes says of the product with the row: the highest that it can be.
float highest_of(const StoredCodes& stored, int64_t row, float rough, float text_norm) {
  return rough * stored.steps[2 * row] + stored.steps[2 * row + 1] * text_norm;
}

void decode_stored(bool half, const void* rows, int64_t row, int64_t joint, float* out) {
  if (half) {
    decode_row<Halves>(static_cast<const uint16_t*>(rows) + row * joint, joint, out);
  } else {
    decode_row<Floats>(static_cast<const float*>(rows) + row * joint, joint, out);
  }
}

// Decodes both branches of a row for `judge`.
void decode_pair(const SearchBlock& block, int64_t row, float* pair) {
  const StoredRows& rows = block.args->rows;
  decode_stored(rows.half, rows.contrastive, row, block.args->joint, pair);
  decode_stored(rows.half, rows.iou, row, block.args->joint, pair + block.args->joint);
}

// What a row of fused scores is at most, from bounds of both cosines: the fusion must rise with both. 1e-4 covers the
// roundings of the sigmoid and the fusion. A product is at most 0 if c is negative, and then it matters for floors up to 0.
Vec::F highest_score(const SearchBlock& block, Vec::F c, Vec::F u) {
  const SearchMomentsArgs& args = *block.args;
  if (args.fusion == ScoreFusion::kProduct) c = Vec::max(c, Vec::set1(0.0f));
  return Vec::mul(Fusion(args.fusion, args.power)(c, sigmoid_of_10(u)), Vec::set1(1.0001f));
}

bool rises(const SearchBlock& block) { return block.args->fusion == ScoreFusion::kProduct || block.args->power >= 0.0f; }

}  // namespace
}  // namespace mmn_fast::MMN_ISA
