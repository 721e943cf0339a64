// match_scores and top_moments: cosines, sigmoid, fusion and the choice of moments, over the Vec of the including file.
// Include temporal_nms-inl.h first. See ops/match_scores.h and ops/top_moments.h.
namespace mmn_fast::MMN_ISA {
namespace {

// The bits of a Vec::F, as the compiler's own integer vector: it needs no wrapper per instruction.
using Bits = int32_t __attribute__((vector_size(sizeof(Vec::F))));

constexpr int kTileProposals = 4;
constexpr int kTileSentences = Vec::kWidth == 16 ? 4 : 2;  // sums take 16 of AVX-512's 32 registers, else 8 of 16
constexpr int64_t kProposalsAtOnce = 32;                   // 32 KB per branch at J = 256
static_assert(kProposalsAtOnce % kScratchPad == 0);

// out[c * stride + r] = <rows[r], columns[c]>. Lane l of a sum takes the components l, l + kWidth, ... in order; then the
// lanes are added in Vec::sum's order, then the remaining components one by one. So bits do not depend on the tile's size.
template <int kRows, int kColumns>
void multiply_vectors(const float* rows, const float* columns, int64_t joint, float* out, int64_t stride) {
  Vec::F sums[kRows][kColumns];
  for (auto& row : sums) {
    for (Vec::F& sum : row) sum = Vec::set1(0.0f);
  }
  int64_t j = 0;
  for (; j + Vec::kWidth <= joint; j += Vec::kWidth) {
    Vec::F row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = Vec::load(rows + r * joint + j);
    for (int c = 0; c < kColumns; ++c) {
      const Vec::F column = Vec::load(columns + c * joint + j);
      for (int r = 0; r < kRows; ++r) sums[r][c] = Vec::fma(row[r], column, sums[r][c]);
    }
  }
  for (int c = 0; c < kColumns; ++c) {
    for (int r = 0; r < kRows; ++r) {
      float total = Vec::sum(sums[r][c]);
      for (int64_t rest = j; rest < joint; ++rest) total += rows[r * joint + rest] * columns[c * joint + rest];
      out[c * stride + r] = total;
    }
  }
}

template <int kRows>
void multiply_sentences(const float* rows, const float* text, int64_t sentences, int64_t joint, float* out,
                        int64_t stride) {
  int64_t s = 0;
  for (; s + kTileSentences <= sentences; s += kTileSentences) {
    multiply_vectors<kRows, kTileSentences>(rows, text + s * joint, joint, out + s * stride, stride);
  }
  for (; s < sentences; ++s) multiply_vectors<kRows, 1>(rows, text + s * joint, joint, out + s * stride, stride);
}

// Writes the cosines of all pairs to out[s * stride + p].
void cosines(const float* video, int64_t proposals, const float* text, int64_t sentences, int64_t joint, float* out,
             int64_t stride) {
  int64_t p = 0;
  for (; p + kTileProposals <= proposals; p += kTileProposals) {
    multiply_sentences<kTileProposals>(video + p * joint, text, sentences, joint, out + p, stride);
  }
  for (; p < proposals; ++p) multiply_sentences<1>(video + p * joint, text, sentences, joint, out + p, stride);
}

// e^x within 2 ulp for x from -87 to 88; a smaller or larger x takes the value at the nearer end. NaN stays NaN.
Vec::F exp_f32(Vec::F x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = Vec::max(Vec::set1(-87.0f), Vec::min(Vec::set1(88.0f), x));  // both return their second operand on NaN
  const Vec::F shifted = Vec::fma(x, Vec::set1(1.44269504f), Vec::set1(kRound));
  const Vec::F n = Vec::sub(shifted, Vec::set1(kRound));
  // ln 2 in two parts; the first has 9 bits, so n times it is exact.
  Vec::F r = Vec::fnma(n, Vec::set1(0.693359375f), x);
  r = Vec::fnma(n, Vec::set1(-2.12194440e-4f), r);
  // The series up to r^7: |r| <= 0.35, so the next term is below 2^-27.
  Vec::F sum = Vec::set1(1.0f / 5040);
  constexpr float kSeries[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (float coefficient : kSeries) sum = Vec::fma(sum, r, Vec::set1(coefficient));
  const Bits whole = (Bits)shifted - (Bits)Vec::set1(kRound);
  return (Vec::F)((Bits)sum + (whole << 23));
}

// ln x for normal x > 0, within 2 ulp or 2^-24 of the largest of its two terms.
Vec::F log_f32(Vec::F x) {
  constexpr int32_t kRootHalf = 0x3f3504f3;  // sqrt(0.5); x = m * 2^e with m from sqrt(0.5) to sqrt(2)
  const Bits bits = (Bits)x;
  const Bits exponent = (bits - kRootHalf) >> 23;
  const Vec::F m = (Vec::F)(bits - (exponent << 23)), e = __builtin_convertvector(exponent, Vec::F);
  // ln m = 2 artanh(t), t = (m - 1) / (m + 1): |t| <= 0.1716, so the first omitted term is below 2^-28 of ln m.
  const Vec::F one = Vec::set1(1.0f);
  const Vec::F t = Vec::div(Vec::sub(m, one), Vec::add(m, one)), square = Vec::mul(t, t);
  Vec::F sum = Vec::set1(2.0f / 9);
  constexpr float kSeries[] = {2.0f / 7, 2.0f / 5, 2.0f / 3};
  for (float coefficient : kSeries) sum = Vec::fma(sum, square, Vec::set1(coefficient));
  const Vec::F tail = Vec::fma(Vec::mul(sum, square), t, Vec::mul(e, Vec::set1(-2.12194440e-4f)));
  return Vec::fma(e, Vec::set1(0.693359375f), Vec::add(Vec::add(t, t), tail));
}

Vec::F sigmoid_of_10(Vec::F cosine) {
  const Vec::F one = Vec::set1(1.0f);
  return Vec::div(one, Vec::add(one, exp_f32(Vec::mul(Vec::set1(-10.0f), cosine))));
}

struct Fusion {
  enum { kProduct, kRoot, kPower } kind;
  Vec::F power, of_zero;

  Fusion(ScoreFusion fusion, float exponent)
      : kind(fusion == ScoreFusion::kProduct ? kProduct : exponent == 0.5f ? kRoot : kPower),
        power(Vec::set1(exponent)),
        of_zero(Vec::set1(exponent > 0.0f ? 0.0f : exponent < 0.0f ? __builtin_inff() : 1.0f)) {}

  Vec::F operator()(Vec::F c, Vec::F u) const {
    if (kind == kProduct) return Vec::mul(c, u);
    const Vec::F half = Vec::set1(0.5f), zero = Vec::set1(0.0f);
    const Vec::F base = Vec::max(zero, Vec::add(Vec::mul(half, c), half));  // max returns its second operand on NaN
    if (kind == kRoot) return Vec::mul(Vec::sqrt(base), u);
    const Vec::F raised = exp_f32(Vec::mul(power, log_f32(base)));
    return Vec::mul(Vec::select(Vec::gt(base, zero), raised, of_zero), u);
  }
};

// Computes the keys (temporal_nms-inl.h) of some sentences and all proposals, rows `padded` apart. Sets nan[s] if a score
// of sentence s is NaN.
void score_keys(const TopMomentsArgs& args, int64_t first, int64_t sentences, int32_t* keys, int64_t padded,
                bool* nan) {
  const MatchInputs& in = args.inputs;
  const Fusion fuse(args.fusion, args.power);
  alignas(64) float contrastive[kScoredAtOnce * kProposalsAtOnce] = {}, iou[kScoredAtOnce * kProposalsAtOnce] = {};
  for (int64_t p = 0; p < in.proposals; p += kProposalsAtOnce) {
    const int64_t count = in.proposals - p < kProposalsAtOnce ? in.proposals - p : kProposalsAtOnce;
    cosines(in.video_contrastive + p * in.joint, count, in.text_contrastive + first * in.joint, sentences,
            in.joint, contrastive, kProposalsAtOnce);
    cosines(in.video_iou + p * in.joint, count, in.text_iou + first * in.joint, sentences, in.joint, iou,
            kProposalsAtOnce);
    for (int64_t s = 0; s < sentences; ++s) {
      Bits unordered = {};
      for (int64_t i = 0; i < count; i += Vec::kWidth) {
        const int64_t at = s * kProposalsAtOnce + i;
        const Vec::F c = Vec::load(contrastive + at), u = sigmoid_of_10(Vec::load(iou + at)), fused = fuse(c, u);
        unordered |= (Bits)(c != c) | (Bits)(u != u) | (Bits)(fused != fused);
        const Bits bits = (Bits)fused, ordered = bits ^ ((bits >> 31) & INT32_MAX);
        const Bits key = (bits & INT32_MAX) == 0 ? Bits{} + kGone : ordered;
        __builtin_memcpy(keys + s * padded + p + i, &key, sizeof key);
      }
      for (int lane = 0; lane < Vec::kWidth; ++lane) nan[s] |= unordered[lane] != 0;
    }
  }
  for (int64_t s = 0; s < sentences; ++s) {
    for (int64_t p = in.proposals; p < padded; ++p) keys[s * padded + p] = kGone;
  }
}

int64_t top_moments_f32(const TopMomentsArgs& args, const TemporalNmsScratch& scratch, int64_t first_sentence,
                          int64_t last_sentence) {
  int64_t refused = -1;
  split_moments(args.moments, args.inputs.proposals, scratch);
  for (int64_t first = first_sentence; first < last_sentence; first += kScoredAtOnce) {
    const int64_t sentences = last_sentence - first < kScoredAtOnce ? last_sentence - first : kScoredAtOnce;
    bool nan[kScoredAtOnce] = {};
    score_keys(args, first, sentences, scratch.keys, scratch.padded, nan);
    for (int64_t s = 0; s < sentences; ++s) {
      if (nan[s] && refused < 0) refused = first + s;
      const TemporalNmsScratch row = {scratch.starts, scratch.ends, scratch.keys + s * scratch.padded, scratch.padded};
      const int64_t out = (first + s) * args.top_k;
      keep_best(row, args.iou_threshold, args.top_k, args.cells + out, args.scores + out);
    }
  }
  return refused;
}

void match_scores_f32(const MatchScoresArgs& args, int64_t first_sentence, int64_t last_sentence) {
  const MatchInputs& in = args.inputs;
  alignas(64) float tile[kScoredAtOnce * kProposalsAtOnce] = {};
  for (int64_t first = first_sentence; first < last_sentence; first += kScoredAtOnce) {
    const int64_t sentences = last_sentence - first < kScoredAtOnce ? last_sentence - first : kScoredAtOnce;
    for (int64_t p = 0; p < in.proposals; p += kProposalsAtOnce) {
      const int64_t count = in.proposals - p < kProposalsAtOnce ? in.proposals - p : kProposalsAtOnce;
      const int64_t out = first * in.proposals + p;
      cosines(in.video_contrastive + p * in.joint, count, in.text_contrastive + first * in.joint, sentences,
              in.joint, args.contrastive + out, in.proposals);
      cosines(in.video_iou + p * in.joint, count, in.text_iou + first * in.joint, sentences, in.joint,
              tile, kProposalsAtOnce);
      for (int64_t s = 0; s < sentences; ++s) {
        for (int64_t i = 0; i < count; i += Vec::kWidth) {
          const Vec::F u = sigmoid_of_10(Vec::load(tile + s * kProposalsAtOnce + i));
          const int lanes = count - i < Vec::kWidth ? static_cast<int>(count - i) : Vec::kWidth;
          Vec::store_first(args.iou + out + s * in.proposals + i, u, lanes);
        }
      }
    }
  }
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
