// search_moments on one window for at most kSearchDirect sentences: rows are multiplied as they are read, and vectors hold
// rows. Over the Vec of the including file; include search_rows-inl.h first. See ops/search_moments.h.
namespace mmn_fast::MMN_ISA {
namespace {

constexpr int64_t kAhead = 32;  // rows whose steps are asked for in time: the processor does not foresee so many streams

// One branch of the rows, and of a sentence.
template <class Rows>
struct Branch {
  const typename Rows::Element* rows;
  const StoredCodes* codes;  // of these rows, or nullptr
  const float* text;
  const int16_t* text_codes;  // with codes: text is near text_scale * text_codes
  float text_scale, text_norm;
  int64_t joint;
};

template <class Rows>
Branch<Rows> branch_of(const SearchBlock& block, bool iou, int64_t s) {
  const StoredRows& rows = block.args->rows;
  const int64_t joint = block.args->joint, number = iou ? block.sentences + s : s;
  const StoredCodes* codes = iou ? rows.iou_codes : rows.contrastive_codes;
  const void* stored = codes != nullptr ? codes->codes : iou ? rows.iou : rows.contrastive;
  return {static_cast<const typename Rows::Element*>(stored), codes,
          (iou ? block.text_iou : block.text_contrastive) + s * joint,
          codes == nullptr ? nullptr : block.text_codes + number * joint, codes == nullptr ? 0 : block.text_scales[number],
          iou ? block.iou_norm : block.contrastive_norm, joint};
}

// Asks for the memory of a row.
template <class Rows>
void fetch_row(const Branch<Rows>& branch, int64_t number) {
  fetch(branch.rows + number * branch.joint, branch.joint * sizeof(typename Rows::Element));
  if (branch.codes != nullptr) fetch(branch.codes->steps + 2 * number, 1);
}

// highest[r] = the highest <rows[numbers[r]], text> that a rough product allows, but for its rounding; for kRuns rows.
template <class Rows>
inline __attribute__((always_inline)) void multiply(const Branch<Rows>& branch, const int64_t* numbers, float* highest) {
  const int64_t joint = branch.joint;
  const typename Rows::Element* rows[kRuns];
  Vec::F sums[kRuns];
#pragma GCC unroll 4  // otherwise GCC clears the sums in memory
  for (int r = 0; r < kRuns; ++r) rows[r] = branch.rows + numbers[r] * joint, sums[r] = Vec::set1(0.0f);
  int64_t j = 0;
  for (; j + Vec::kWidth <= joint; j += Vec::kWidth) {
    const Vec::F column = Vec::load(branch.text + j);
    for (int r = 0; r < kRuns; ++r) sums[r] = Vec::fma(Rows::load(rows[r] + j), column, sums[r]);
  }
  for (int r = 0; r < kRuns; ++r) {
    highest[r] = Vec::sum(sums[r]);
    for (int64_t rest = j; rest < joint; ++rest) highest[r] += Rows::one(rows[r][rest]) * branch.text[rest];
  }
}

// The same for codes, in integers: exact but for the sentence's own codes.
template <>
inline __attribute__((always_inline)) void multiply<Codes>(const Branch<Codes>& branch, const int64_t* numbers, float* highest) {
  constexpr int64_t kStep = 2 * Vec::kWidth;
  const int64_t joint = branch.joint;
  const int8_t* rows[kRuns];
  Vec::I sums[kRuns];
#pragma GCC unroll 4
  for (int r = 0; r < kRuns; ++r) rows[r] = branch.rows + numbers[r] * joint, sums[r] = Vec::set1_i(0);
  int64_t j = 0;
  for (; j + kStep <= joint; j += kStep) {
    for (int r = 0; r < kRuns; ++r) sums[r] = Vec::add_products(sums[r], rows[r] + j, branch.text_codes + j);
  }
  for (int r = 0; r < kRuns; ++r) {
    int32_t total = Vec::sum_i(sums[r]);
    for (int64_t rest = j; rest < joint; ++rest) total += rows[r][rest] * branch.text_codes[rest];
    highest[r] = highest_of(*branch.codes, numbers[r], static_cast<float>(total) * branch.text_scale, branch.text_norm);
  }
}

// A sentence's rows whose u lets them count. The memory of their contrastive branch is on its way.
struct Counting {
  static_assert(kSearchRows % kRuns == 0);
  static constexpr int64_t kPadded = (kSearchRows + Vec::kWidth - 1) / Vec::kWidth * Vec::kWidth;

  int64_t count = 0;
  int64_t numbers[kPadded];
  float most[kPadded];  // the highest u
};

// Judges the rows that both rough cosines let through.
template <class Rows>
void judge_counting(const SearchBlock& block, int64_t start, int64_t window, int64_t s, Counting& counting,
                    const SearchState& state) {
  if (counting.count == 0) return;
  alignas(64) float bounds[Counting::kPadded];
  if (rises(block)) {
    const Branch<Rows> contrastive = branch_of<Rows>(block, false, s);
    for (int64_t i = counting.count; i % kRuns != 0; ++i) counting.numbers[i] = counting.numbers[counting.count - 1];
    for (int64_t i = 0; i < counting.count; i += kRuns) multiply(contrastive, counting.numbers + i, bounds + i);
    for (int64_t i = counting.count; i % Vec::kWidth != 0; ++i) counting.most[i] = bounds[i] = 0.0f;  // read by no one
    const Vec::F error_of_c = Vec::set1(block.contrastive_errors[s]), error_of_u = Vec::set1(block.errors[s]);
    for (int64_t i = 0; i < counting.count; i += Vec::kWidth) {
      const Vec::F c = Vec::add(Vec::load(bounds + i), error_of_c), u = Vec::add(Vec::load(counting.most + i), error_of_u);
      Vec::store(bounds + i, highest_score(block, c, u));
    }
  }
  for (int64_t i = 0; i < counting.count; ++i) {
    if (rises(block) && bounds[i] < state.floors[s]) continue;
    decode_pair(block, counting.numbers[i], state.pair);
    judge(block, window, counting.numbers[i] - start, s, state);
  }
}

template <class Rows>
void search_direct(const SearchBlock& block, int64_t start, int64_t window, const SearchState& state) {
  constexpr int64_t kTurn = kSearchRows / kRuns;
  const int64_t last = block.args->proposals - 1, run = last / kRuns + 1;
  Counting counting[kSearchDirect][2];
  int number = 0;
  for (int64_t first = 0; first < run; first += kTurn, number = 1 - number) {
    for (int64_t s = 0; s < block.sentences; ++s) {
      const Branch<Rows> iou = branch_of<Rows>(block, true, s), contrastive = branch_of<Rows>(block, false, s);
      const float limit = state.limits[s];
      Counting& now = counting[s][number];
      now.count = 0;
      for (int64_t row = first; row < min_of(first + kTurn, run); ++row) {
        int64_t numbers[kRuns];  // past the end the last row comes again, which changes nothing
        float most[kRuns];
        for (int64_t r = 0; r < kRuns; ++r) numbers[r] = start + min_of(r * run + row, last);
        if (iou.codes != nullptr) {
          for (int64_t r = 0; r < kRuns; ++r) fetch(iou.codes->steps + 2 * (numbers[r] + kAhead), 1);
        }
        multiply(iou, numbers, most);
        for (int64_t r = 0; r < kRuns; ++r) {
          if (limit > most[r]) continue;
          fetch_row(contrastive, numbers[r]);
          now.numbers[now.count] = numbers[r];
          now.most[now.count++] = most[r];
        }
      }
      judge_counting<Rows>(block, start, window, s, counting[s][1 - number], state);  // their memory has come
    }
  }
  for (int64_t s = 0; s < block.sentences; ++s) {
    judge_counting<Rows>(block, start, window, s, counting[s][1 - number], state);
  }
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
