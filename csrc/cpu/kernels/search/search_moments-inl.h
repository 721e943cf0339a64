// search_moments on one window, over the Vec of the including file. Include products/gemm-inl.h, search_rows-inl.h and
// search_direct-inl.h first. See ops/search_moments.h.
namespace mmn_fast::MMN_ISA {
namespace {

constexpr int64_t kRowsAtOnce = kSearchRows / kTileRows * kTileRows;
static_assert(kSearchSentences % kTileColumns == 0);

// Rows that are multiplied together, as numbers within their window.
struct Turn {
  int64_t count, cells[kSearchRows];
};

// The window's rows in the order of reading: the first of every run, then the second of every run, and so on.
class Turns {
 public:
  explicit Turns(int64_t proposals) : proposals_(proposals), run_((proposals + kRuns - 1) / kRuns) {}

  // False when all rows have had their turn.
  bool next(Turn& turn) {
    turn.count = 0;
    for (; turn.count < kRowsAtOnce && place_ < kRuns * run_; ++place_) {
      const int64_t cell = place_ % kRuns * run_ + place_ / kRuns;
      if (cell < proposals_) turn.cells[turn.count++] = cell;
    }
    return turn.count > 0;
  }

 private:
  int64_t proposals_, run_, place_ = 0;
};

// tile[r * kSearchSentences + s] = <rows[cells[r]], text_iou[s]>, roughly.
template <class Rows>
void rough_products(const SearchBlock& block, const typename Rows::Element* rows, const Turn& turn,
                    const SearchState& state, float* tile) {
  const int64_t joint = block.args->joint;
  for (int64_t r = 0; r < turn.count; ++r) {
    decode_row<Rows>(rows + turn.cells[r] * joint, joint, state.decoded + r * joint);
  }
  const int64_t panels = (block.sentences + kTileColumns - 1) / kTileColumns;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const float* packed = block.packed + panel * joint * kTileColumns;
    for (int64_t r = 0; r < turn.count; r += kTileRows) {
      const int tile_rows = static_cast<int>(min_of(turn.count - r, kTileRows));
      float* c[kTileRows];
      for (int i = 0; i < tile_rows; ++i) c[i] = tile + (r + i) * kSearchSentences + panel * kTileColumns;
      kRealTiles[tile_rows](state.decoded + r * joint, packed, joint, packed, c, 0, false);
    }
  }
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

// Which of kWidth sentences can reach their floors with this row: `counting`, less those that both rough cosines rule out.
// state.decoded holds the contrastive row, or its codes.
unsigned still_counting(const SearchBlock& block, int64_t row, int64_t first, unsigned counting, Vec::F most,
                        const SearchState& state) {
  const int64_t joint = block.args->joint;
  const StoredCodes* codes = block.args->rows.contrastive_codes;
  for (unsigned left = counting; left != 0; left &= left - 1) {
    const int64_t s = first + __builtin_ctz(left);
    const float rough = rough_product(state.decoded, block.text_contrastive + s * joint, joint);
    state.cosines[s] = codes == nullptr ? rough : highest_of(*codes, row, rough, block.contrastive_norm);
  }
  const Vec::F u = Vec::add(most, Vec::load(block.errors + first));
  const Vec::F c = Vec::add(Vec::load(state.cosines + first), Vec::load(block.contrastive_errors + first));
  return counting & ~Vec::bits(Vec::gt(Vec::load(state.floors + first), highest_score(block, c, u)));
}

// The highest u that a row's rough products allow, from sentence `first` on.
Vec::F highest(const SearchBlock& block, int64_t row, const float* rough, int64_t first) {
  const StoredCodes* codes = block.args->rows.iou_codes;
  if (codes == nullptr) return Vec::load(rough + first);
  const float* steps = codes->steps + 2 * row;
  return Vec::fma(Vec::load(rough + first), Vec::set1(steps[0]), Vec::set1(steps[1] * block.iou_norm));
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
  const StoredRows& rows = block.args->rows;
  bool has_contrastive = false, has_pair = false;
  for (int64_t first = 0; first < block.sentences; first += Vec::kWidth) {
    const Vec::F most = highest(block, row, rough, first);
    unsigned counting = counting_of(most, state.limits + first);
    if (counting == 0) continue;
    if (rises(block)) {
      if (!has_contrastive && rows.contrastive_codes != nullptr) {
        decode_row<Codes>(rows.contrastive_codes->codes + row * block.args->joint, block.args->joint, state.decoded);
      } else if (!has_contrastive) {
        decode_stored(rows.half, rows.contrastive, row, block.args->joint, state.decoded);
      }
      has_contrastive = true;
      counting = still_counting(block, row, first, counting, most, state);
      if (counting == 0) continue;
    }
    if (!has_pair) decode_pair(block, row, state.pair);
    has_pair = true;
    for (; counting != 0; counting &= counting - 1) judge(block, window, cell, first + __builtin_ctz(counting), state);
  }
}

// Asks for the memory of a row of the contrastive branch, or of its codes.
void fetch_contrastive(const StoredRows& rows, int64_t row, int64_t joint) {
  if (rows.contrastive_codes != nullptr) {
    const StoredCodes& stored = *rows.contrastive_codes;
    fetch(stored.codes + row * joint, joint);
    fetch(stored.steps + 2 * row, 1);
  } else {
    const int64_t row_bytes = joint * (rows.half ? 2 : 4);
    fetch(static_cast<const char*>(rows.contrastive) + row * row_bytes, row_bytes);
  }
}

// Rows that count, at random places of the contrastive branch: their memory is on its way.
struct Pending {
  const float* tile;
  int64_t count, rows[kSearchRows], cells[kSearchRows];  // rows of the tile
};

void judge_pending(const SearchBlock& block, int64_t start, int64_t window, const Pending& pending,
                   const SearchState& state) {
  for (int64_t i = 0; i < pending.count; ++i) {
    const int64_t cell = pending.cells[i];
    judge_row(block, window, start + cell, cell, pending.tile + pending.rows[i] * kSearchSentences, state);
  }
}

template <class Rows>
void search_rows(const SearchBlock& block, const typename Rows::Element* stored, int64_t start, int64_t window,
                 const SearchState& state) {
  const int64_t joint = block.args->joint;
  Pending pending[2] = {{nullptr, 0, {}, {}}, {nullptr, 0, {}, {}}};
  Turns turns(block.args->proposals);
  Turn turn;
  int64_t number = 0;
  for (; turns.next(turn); ++number) {
    float* const tile = state.tiles + number % 2 * kSearchRows * kSearchSentences;
    rough_products<Rows>(block, stored + start * joint, turn, state, tile);
    Pending& now = pending[number % 2];
    now.tile = tile, now.count = 0;
    for (int64_t r = 0; r < turn.count; ++r) {
      const int64_t cell = turn.cells[r];
      if (!any_counts(block, start + cell, tile + r * kSearchSentences, state)) continue;
      fetch_contrastive(block.args->rows, start + cell, joint);
      now.rows[now.count] = r, now.cells[now.count++] = cell;
    }
    judge_pending(block, start, window, pending[(number + 1) % 2], state);  // one turn later: their memory has come
  }
  judge_pending(block, start, window, pending[(number + 1) % 2], state);
}

template <class Rows>
void search_stored(const SearchBlock& block, const typename Rows::Element* stored, int64_t start, int64_t window,
                   const SearchState& state) {
  if (block.sentences <= kSearchDirect) {
    search_direct<Rows>(block, start, window, state);
  } else {
    search_rows<Rows>(block, stored, start, window, state);
  }
}

void search_window_f32(const SearchBlock& block, int64_t w, const SearchState& state) {
  const SearchMomentsArgs& args = *block.args;
  const int64_t start = args.starts[w], number = args.window_numbers[w];
  if (args.rows.iou_codes != nullptr) {
    search_stored<Codes>(block, args.rows.iou_codes->codes, start, number, state);
  } else if (args.rows.half) {
    search_stored<Halves>(block, static_cast<const uint16_t*>(args.rows.iou), start, number, state);
  } else {
    search_stored<Floats>(block, static_cast<const float*>(args.rows.iou), start, number, state);
  }
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
