// Norms, gelu and attention, over the Vec of the including file. See cpu/kernels/text.h.
namespace mmn_fast::MMN_ISA {
namespace {

// The bits of a Vec::F, as the compiler's own vector: it has the shift that Vec lacks.
using Bits = int32_t __attribute__((vector_size(Vec::kWidth * sizeof(float))));

float sum_of_lanes(Vec::F x) {
  float lanes[Vec::kWidth];
  Vec::store(lanes, x);
  float total = 0.0f;
  for (float lane : lanes) total += lane;
  return total;
}

// Evaluates a polynomial; the first coefficient belongs to the highest power.
template <int kCount>
Vec::F polynomial(const float (&coefficients)[kCount], Vec::F x) {
  Vec::F sum = Vec::set1(coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < kCount; ++i) sum = Vec::fma(sum, x, Vec::set1(coefficients[i]));
  return sum;
}

// e^x for x <= 0, relative error 2e-7. Below -87 the result stays at e^-87 (1.6e-38): e^-88 is no normal number.
Vec::F exp_of_negative(Vec::F x) {
  // x = n ln 2 + r: adding 1.5 * 2^23 leaves n, rounded to nearest, in the low bits. ln 2 has two parts, and n times the
  // first part is exact.
  const Vec::F magic = Vec::set1(12582912.0f);
  const Vec::F clamped = Vec::max(Vec::set1(-87.0f), x);  // NaN stays
  const Vec::F shifted = Vec::fma(clamped, Vec::set1(1.44269504f), magic);
  const Vec::F n = Vec::sub(shifted, magic);
  const Vec::F r = Vec::fnma(n, Vec::set1(-2.12194440e-4f), Vec::fnma(n, Vec::set1(0.693359375f), clamped));
  // Chebyshev fit on |r| <= ln(2) / 2, error 2e-8.
  constexpr float kPowers[] = {0.00139486999f, 0.00837521255f, 0.0416662171f, 0.166664138f, 0.5f, 1.0f, 1.0f};
  const Vec::F p = polynomial(kPowers, r);
  return (Vec::F)((Bits)p + ((Bits)shifted << 23));  // the shift drops the bits above n
}

// erf(z) = z p(z^2) on |z| <= 3.8; at 3.8 erf is within 8e-8 of 1. p is a Chebyshev fit of degree 15 in
// u = 2 z^2 / 3.8^2 - 1. The magnitudes of p's coefficients sum to 1.13, so float32 loses little: the error is at most
// 1.4e-7.
Vec::F erf(Vec::F x) {
  const Vec::F limit = Vec::set1(3.8f);
  const Vec::F z = Vec::max(Vec::set1(-3.8f), Vec::min(limit, x));  // NaN stays
  const Vec::F u = Vec::fma(Vec::mul(z, z), Vec::set1(2.0f / (3.8f * 3.8f)), Vec::set1(-1.0f));
  constexpr float kPowers[] = {-0.000419876663f, 0.00119092083f, -0.00120669906f, 0.00181946543f,
                               -0.00540517922f,  0.0106436275f,  -0.0168221649f,  0.0262599923f,
                               -0.0395180956f,   0.0551940836f,  -0.0724023432f,  0.0908121243f,
                               -0.111195289f,    0.137740657f,   -0.185640961f,   0.372107625f};
  return Vec::mul(polynomial(kPowers, u), z);
}

// Works in place; `count` is a multiple of kRowPad.
void gelu_f32(float* data, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::kWidth) {
    const Vec::F x = Vec::load(data + i), half = Vec::mul(x, Vec::set1(0.5f));
    Vec::store(data + i, Vec::fma(half, erf(Vec::mul(x, Vec::set1(0.707106781f))), half));
  }
}

// out = (x - mean) / sqrt(variance + eps) * weight + bias with x = row + added, or x = row if added is nullptr. out may be
// row or added.
void layer_norm_row_f32(const float* row, const float* added, const LayerNormArgs& norm, float* out) {
  const int64_t vectors = norm.width / Vec::kWidth * Vec::kWidth;
  Vec::F sums = Vec::set1(0.0f);
  for (int64_t c = 0; c < vectors; c += Vec::kWidth) {
    const Vec::F x = added == nullptr ? Vec::load(row + c) : Vec::add(Vec::load(row + c), Vec::load(added + c));
    Vec::store(out + c, x);
    sums = Vec::add(sums, x);
  }
  float total = sum_of_lanes(sums);
  for (int64_t c = vectors; c < norm.width; ++c) {
    out[c] = added == nullptr ? row[c] : row[c] + added[c];
    total += out[c];
  }
  const float mean = total / static_cast<float>(norm.width);
  Vec::F squares = Vec::set1(0.0f);
  for (int64_t c = 0; c < vectors; c += Vec::kWidth) {
    const Vec::F x = Vec::sub(Vec::load(out + c), Vec::set1(mean));
    squares = Vec::fma(x, x, squares);
  }
  float variance = sum_of_lanes(squares);
  for (int64_t c = vectors; c < norm.width; ++c) variance += (out[c] - mean) * (out[c] - mean);
  const float scale = 1.0f / __builtin_sqrtf(variance / static_cast<float>(norm.width) + norm.eps);
  for (int64_t c = 0; c < vectors; c += Vec::kWidth) {
    const Vec::F x = Vec::mul(Vec::sub(Vec::load(out + c), Vec::set1(mean)), Vec::set1(scale));
    Vec::store(out + c, Vec::fma(x, Vec::load(norm.weight + c), Vec::load(norm.bias + c)));
  }
  for (int64_t c = vectors; c < norm.width; ++c) out[c] = (out[c] - mean) * scale * norm.weight[c] + norm.bias[c];
}

// Replaces scores[j], j < padded, by e^(scores[j] - maximum), 0 from `tokens` on; returns the sum.
float exponentials(float* scores, int64_t tokens, int64_t padded) {
  const Vec::F lowest = Vec::set1(-__builtin_inff());
  Vec::F best = lowest;
  for (int64_t j = 0; j < padded; j += Vec::kWidth) {
    const Vec::M real = Vec::gt_i(Vec::set1_i(static_cast<int32_t>(tokens)), Vec::iota(static_cast<int32_t>(j)));
    best = Vec::max(best, Vec::select(real, Vec::load(scores + j), lowest));
  }
  float lanes[Vec::kWidth];
  Vec::store(lanes, best);
  float greatest = lanes[0];
  for (float lane : lanes) greatest = lane > greatest ? lane : greatest;
  Vec::F sums = Vec::set1(0.0f);
  for (int64_t j = 0; j < padded; j += Vec::kWidth) {
    const Vec::M real = Vec::gt_i(Vec::set1_i(static_cast<int32_t>(tokens)), Vec::iota(static_cast<int32_t>(j)));
    const Vec::F e = exp_of_negative(Vec::sub(Vec::load(scores + j), Vec::set1(greatest)));
    const Vec::F kept = Vec::select(real, e, Vec::set1(0.0f));
    Vec::store(scores + j, kept);
    sums = Vec::add(sums, kept);
  }
  return sum_of_lanes(sums);
}

// Transposes keys to [head_width][padded], zeros past the last token: a vector holds one component of several tokens.
void turn_keys(const float* keys, int64_t stride, int64_t tokens, int64_t padded, int64_t head_width, float scale,
               float* turned) {
  for (int64_t d = 0; d < head_width; ++d) {
    for (int64_t j = 0; j < tokens; ++j) turned[d * padded + j] = keys[j * stride + d] * scale;
    for (int64_t j = tokens; j < padded; ++j) turned[d * padded + j] = 0.0f;
  }
}

// `scratch`: see attention_scratch_size in cpu/row_layout.h.
void attend_f32(const AttentionArgs& args, float* scratch, int64_t first, int64_t last) {
  const int64_t head_width = args.width / args.heads;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_width));
  for (int64_t item = first; item < last; ++item) {
    const int64_t* const bounds = args.starts + item / args.heads;
    const int64_t start = bounds[0] - args.starts[0], tokens = bounds[1] - bounds[0];
    const int64_t padded = (tokens + Vec::kWidth - 1) / Vec::kWidth * Vec::kWidth;
    const float* const queries = args.qkv + start * args.stride + item % args.heads * head_width;
    const float* const keys = queries + args.width;
    const float* const values = keys + args.width;
    float* const out = args.out + start * args.out_stride + item % args.heads * head_width;

    float* const scores = scratch;
    float* const turned = scratch + kQueryBlock * padded;
    turn_keys(keys, args.stride, tokens, padded, head_width, scale, turned);
    for (int64_t i = 0; i < tokens; i += kQueryBlock) {
      const float* query[kQueryBlock];
      for (int64_t r = 0; r < kQueryBlock; ++r) {
        query[r] = queries + (i + r < tokens ? i + r : tokens - 1) * args.stride;  // filler repeats the last, unused
      }
      for (int64_t j = 0; j < padded; j += Vec::kWidth) {
        Vec::F sums[kQueryBlock];
        for (Vec::F& sum : sums) sum = Vec::set1(0.0f);
        for (int64_t d = 0; d < head_width; ++d) {
          const Vec::F key = Vec::load(turned + d * padded + j);
#pragma GCC unroll 4
          for (int64_t r = 0; r < kQueryBlock; ++r) sums[r] = Vec::fma(Vec::set1(query[r][d]), key, sums[r]);
        }
        for (int64_t r = 0; r < kQueryBlock; ++r) Vec::store(scores + r * padded + j, sums[r]);
      }
      Vec::F shares[kQueryBlock];
      for (int64_t r = 0; r < kQueryBlock; ++r) {
        shares[r] = Vec::set1(1.0f / exponentials(scores + r * padded, tokens, padded));
      }
      for (int64_t d = 0; d < head_width; d += Vec::kWidth) {
        Vec::F sums[kQueryBlock];
        for (Vec::F& sum : sums) sum = Vec::set1(0.0f);
        for (int64_t j = 0; j < tokens; ++j) {
          const Vec::F value = Vec::load(values + j * args.stride + d);
#pragma GCC unroll 4
          for (int64_t r = 0; r < kQueryBlock; ++r) {
            sums[r] = Vec::fma(Vec::set1(scores[r * padded + j]), value, sums[r]);
          }
        }
        for (int64_t r = 0; r < kQueryBlock && i + r < tokens; ++r) {
          float* const to = out + (i + r) * args.out_stride + d;
          const Vec::F attended = Vec::mul(sums[r], shares[r]);
          if (head_width - d >= Vec::kWidth) {
            Vec::store(to, attended);
          } else {
            Vec::store_first(to, attended, static_cast<int>(head_width - d));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
