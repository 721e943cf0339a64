// search_moments on one window, over the Vec of the including file. Include products/gemm-inl.h and match_scores-inl.h
// first. See ops/search_moments.h.
namespace mmn_fast::MMN_ISA {
namespace {

constexpr int64_t kRowsAtOnce = kSearchRows / kTileRows * kTileRows;
constexpr int64_t kAhead = 16;  // rows whose memory is asked for before they are multiplied
static_assert(kSearchSentences % kTileColumns == 0);

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

// out[r * kSearchSentences] = <rows[r], text>, roughly.
template <class Rows, int kRows>
void multiply_stored(const typename Rows::Element* rows, const float* text, int64_t joint, float* out) {
  Vec::F sums[kRows];
  for (Vec::F& sum : sums) sum = Vec::set1(0.0f);
  int64_t j = 0;
  for (; j + Vec::kWidth <= joint; j += Vec::kWidth) {
    const Vec::F column = Vec::load(text + j);
    for (int r = 0; r < kRows; ++r) sums[r] = Vec::fma(Rows::load(rows + r * joint + j), column, sums[r]);
  }
  for (int r = 0; r < kRows; ++r) {
    float total = Vec::sum(sums[r]);
    for (int64_t rest = j; rest < joint; ++rest) total += Rows::one(rows[r * joint + rest]) * text[rest];
    out[r * kSearchSentences] = total;
  }
}

// The same for one sentence and rows of codes, in integers: exact but for the sentence's own codes.
template <int kRows>
void multiply_codes(const int8_t* rows, const int16_t* text, float scale, int64_t joint, float* out) {
  constexpr int64_t kStep = 2 * Vec::kWidth;
  Vec::I sums[kRows];
  for (Vec::I& sum : sums) sum = Vec::set1_i(0);
  int64_t j = 0;
  for (; j + kStep <= joint; j += kStep) {
    for (int r = 0; r < kRows; ++r) sums[r] = Vec::add_products(sums[r], rows + r * joint + j, text + j);
  }
  for (int r = 0; r < kRows; ++r) {
    int32_t lanes[Vec::kWidth], total = 0;
    Vec::store_i(lanes, sums[r]);
    for (int32_t lane : lanes) total += lane;
    for (int64_t rest = j; rest < joint; ++rest) total += rows[r * joint + rest] * text[rest];
    out[r * kSearchSentences] = static_cast<float>(total) * scale;
  }
}

template <int kRows>
void multiply_direct(const SearchBlock& block, const int8_t* rows, int64_t s, float* out) {
  static_assert(kSearchDirect == 1);  // one sentence has codes
  multiply_codes<kRows>(rows, block.text_codes, block.text_scale, block.args->joint, out + s);
}
template <int kRows>
void multiply_direct(const SearchBlock& block, const uint16_t* rows, int64_t s, float* out) {
  multiply_stored<Halves, kRows>(rows, block.text_iou + s * block.args->joint, block.args->joint, out + s);
}
template <int kRows>
void multiply_direct(const SearchBlock& block, const float* rows, int64_t s, float* out) {
  multiply_stored<Floats, kRows>(rows, block.text_iou + s * block.args->joint, block.args->joint, out + s);
}

void fetch(const void* start, int64_t bytes) {
  constexpr int64_t kLineBytes = 64;
  for (int64_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(static_cast<const char*>(start) + at);
}

// tile[r * kSearchSentences + s] = <rows[r], text_iou[s]>, roughly.
template <class Rows>
void rough_products(const SearchBlock& block, const typename Rows::Element* rows, int64_t count,
                    const SearchState& state, float* tile) {
  const int64_t joint = block.args->joint;
  if (block.sentences <= kSearchDirect) {
    for (int64_t s = 0; s < block.sentences; ++s) {
      int64_t r = 0;
      for (; r + 4 <= count; r += 4) {
        fetch(rows + (r + kAhead) * joint, 4 * joint * sizeof *rows);
        multiply_direct<4>(block, rows + r * joint, s, tile + r * kSearchSentences);
      }
      for (; r < count; ++r) multiply_direct<1>(block, rows + r * joint, s, tile + r * kSearchSentences);
    }
    return;
  }
  for (int64_t r = 0; r < count; ++r) decode_row<Rows>(rows + r * joint, joint, state.decoded + r * joint);
  const int64_t panels = (block.sentences + kTileColumns - 1) / kTileColumns;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const float* packed = block.packed + panel * joint * kTileColumns;
    for (int64_t r = 0; r < count; r += kTileRows) {
      const int tile_rows = static_cast<int>(min_of(count - r, kTileRows));
      float* c[kTileRows];
      for (int i = 0; i < tile_rows; ++i) c[i] = tile + (r + i) * kSearchSentences + panel * kTileColumns;
      kRealTiles[tile_rows](state.decoded + r * joint, packed, joint, packed, c, 0, false);
    }
  }
}

// Scores one row for one sentence as top_moments does, and keeps it if it is the video's best so far.
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
  if (score == 0.0f || !(state.windows[s] < 0 || score > state.scores[s])) return;
  state.scores[s] = score;
  state.windows[s] = window;
  state.cells[s] = static_cast<int32_t>(cell);
  if (score <= state.floors[s]) return;
  state.floors[s] = score;
  const float limit = search_limit(block.limits_of[s], score);
  if (limit > state.limits[s]) state.limits[s] = limit;
}

// <a, b>, roughly: four sums hide the latency of the additions.
float rough_product(const float* a, const float* b, int64_t joint) {
  Vec::F sums[4];
  for (Vec::F& sum : sums) sum = Vec::set1(0.0f);
  int64_t j = 0;
  for (; j + 4 * Vec::kWidth <= joint; j += 4 * Vec::kWidth) {
    for (int i = 0; i < 4; ++i) {
      const int64_t at = j + i * Vec::kWidth;
      sums[i] = Vec::fma(Vec::load(a + at), Vec::load(b + at), sums[i]);
    }
  }
  for (; j + Vec::kWidth <= joint; j += Vec::kWidth) sums[0] = Vec::fma(Vec::load(a + j), Vec::load(b + j), sums[0]);
  float total = Vec::sum(Vec::add(Vec::add(sums[0], sums[1]), Vec::add(sums[2], sums[3])));
  for (; j < joint; ++j) total += a[j] * b[j];
  return total;
}

void decode_stored(bool half, const void* rows, int64_t row, int64_t joint, float* out) {
  if (half) {
    decode_row<Halves>(static_cast<const uint16_t*>(rows) + row * joint, joint, out);
  } else {
    decode_row<Floats>(static_cast<const float*>(rows) + row * joint, joint, out);
  }
}

// Which of kWidth sentences can reach their floors with this row: `counting`, less those that both rough cosines rule
// out. A score is at most the fusion of both cosines with their errors added, if it rises with both; 1e-4 covers the
// roundings of the sigmoid and the fusion. A product is at most 0 if c is negative, and then it matters for floors up to 0.
unsigned still_counting(const SearchBlock& block, int64_t first, unsigned counting, Vec::F most,
                        const SearchState& state) {
  const SearchMomentsArgs& args = *block.args;
  for (unsigned left = counting; left != 0; left &= left - 1) {
    const int64_t s = first + __builtin_ctz(left);
    state.cosines[s] = rough_product(state.pair, block.text_contrastive + s * args.joint, args.joint);
  }
  const Fusion fuse(args.fusion, args.power);
  const Vec::F u = sigmoid_of_10(Vec::add(most, Vec::load(block.errors + first)));
  Vec::F c = Vec::add(Vec::load(state.cosines + first), Vec::load(block.contrastive_errors + first));
  if (args.fusion == ScoreFusion::kProduct) c = Vec::max(c, Vec::set1(0.0f));
  const Vec::F bound = Vec::mul(fuse(c, u), Vec::set1(1.0001f));
  return counting & ~Vec::bits(Vec::gt(Vec::load(state.floors + first), bound));
}

// The highest u that a row's rough products allow, from sentence `first` on.
Vec::F highest(const SearchBlock& block, int64_t row, const float* rough, int64_t first) {
  const StoredRows& rows = block.args->rows;
  if (rows.codes == nullptr) return Vec::load(rough + first);
  return Vec::fma(Vec::load(rough + first), Vec::set1(rows.scales[row]), Vec::set1(rows.errors[row] * block.text_norm));
}

// Bit i: sentence first + i may count. Limits past the last sentence are infinite.
unsigned counting_of(Vec::F most, const float* limits) {
  return ~Vec::bits(Vec::gt(Vec::load(limits), most)) & ((1u << Vec::kWidth) - 1);
}

bool any_counts(const SearchBlock& block, int64_t row, const float* rough, const SearchState& state) {
  unsigned counting = 0;
  for (int64_t first = 0; first < block.sentences; first += Vec::kWidth) {
    counting |= counting_of(highest(block, row, rough, first), state.limits + first);
  }
  return counting != 0;
}

// Judges the sentences of one row that its rough products let through.
void judge_row(const SearchBlock& block, int64_t window, int64_t row, int64_t cell, const float* rough,
               const SearchState& state) {
  const SearchMomentsArgs& args = *block.args;
  const StoredRows& rows = args.rows;
  const bool rises = args.fusion == ScoreFusion::kProduct || args.power >= 0.0f;
  bool has_contrastive = false, has_iou = false;
  for (int64_t first = 0; first < block.sentences; first += Vec::kWidth) {
    const Vec::F most = highest(block, row, rough, first);
    unsigned counting = counting_of(most, state.limits + first);
    if (counting == 0) continue;
    if (!has_contrastive) decode_stored(rows.half, rows.contrastive, row, args.joint, state.pair);
    has_contrastive = true;
    if (rises) counting = still_counting(block, first, counting, most, state);
    if (counting == 0) continue;
    if (!has_iou) decode_stored(rows.half, rows.iou, row, args.joint, state.pair + args.joint);
    has_iou = true;
    for (; counting != 0; counting &= counting - 1) judge(block, window, cell, first + __builtin_ctz(counting), state);
  }
}

// Rows that count, at random places of the contrastive branch: their memory is on its way.
struct Pending {
  const float* tile;
  int64_t first, count, rows[kSearchRows];
};

void judge_pending(const SearchBlock& block, int64_t start, int64_t window, const Pending& pending,
                   const SearchState& state) {
  for (int64_t i = 0; i < pending.count; ++i) {
    const int64_t r = pending.rows[i], cell = pending.first + r;
    judge_row(block, window, start + cell, cell, pending.tile + r * kSearchSentences, state);
  }
}

template <class Rows>
void search_rows(const SearchBlock& block, const typename Rows::Element* stored, int64_t start, int64_t window,
                 const SearchState& state) {
  const int64_t proposals = block.args->proposals, joint = block.args->joint;
  const int64_t row_bytes = joint * (block.args->rows.half ? 2 : 4);
  const char* const contrastive = static_cast<const char*>(block.args->rows.contrastive) + start * row_bytes;
  Pending pending[2] = {{nullptr, 0, 0, {}}, {nullptr, 0, 0, {}}};
  int64_t turn = 0;
  for (int64_t first = 0; first < proposals; first += kRowsAtOnce, ++turn) {
    const int64_t count = min_of(proposals - first, kRowsAtOnce);
    float* const tile = state.tiles + turn % 2 * kSearchRows * kSearchSentences;
    rough_products<Rows>(block, stored + (start + first) * joint, count, state, tile);
    Pending& now = pending[turn % 2];
    now.tile = tile, now.first = first, now.count = 0;
    for (int64_t r = 0; r < count; ++r) {
      if (!any_counts(block, start + first + r, tile + r * kSearchSentences, state)) continue;
      fetch(contrastive + (first + r) * row_bytes, row_bytes);
      now.rows[now.count++] = r;
    }
    judge_pending(block, start, window, pending[(turn + 1) % 2], state);  // one turn later, when their memory has come
  }
  judge_pending(block, start, window, pending[(turn + 1) % 2], state);
}

void search_window_f32(const SearchBlock& block, int64_t w, const SearchState& state) {
  const SearchMomentsArgs& args = *block.args;
  const int64_t start = args.starts[w], number = args.window_numbers[w];
  if (args.rows.codes != nullptr) {
    search_rows<Codes>(block, args.rows.codes, start, number, state);
  } else if (args.rows.half) {
    search_rows<Halves>(block, static_cast<const uint16_t*>(args.rows.iou), start, number, state);
  } else {
    search_rows<Floats>(block, static_cast<const float*>(args.rows.iou), start, number, state);
  }
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
