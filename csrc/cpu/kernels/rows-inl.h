// Work on rows between the products, over the Vec of the including file. See cpu/kernels/rows.h.
namespace mmn_fast::MMN_ISA {
namespace {

void start_rows_f32(const StartRowsArgs& args, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    float* row = args.data + i * args.stride;
    for (int64_t c = 0; c < args.width; c += Vec::kWidth) Vec::store(row + c, Vec::load(args.bias + c));
  }
}

void finish_rows_f32(const FinishRowsArgs& args, int64_t first, int64_t last) {
  const Vec::F zero = Vec::set1(0.0f);
  for (int64_t i = first; i < last; ++i) {
    float* row = args.data + i * args.stride;
    const Vec::F weight = Vec::set1(args.weights == nullptr ? 1.0f : args.weights[i / args.group]);
    for (int64_t c = 0; c < args.width; c += Vec::kWidth) {
      const Vec::F x = Vec::load(row + c);
      Vec::store(row + c, Vec::mul(args.relu ? Vec::max(zero, x) : x, weight));  // max returns its second operand on NaN
    }
  }
}

// out = max(earlier, later); NaN if either is NaN; the earlier one of two zeros.
void max_rows_f32(const float* earlier, const float* later, float* out, int64_t width) {
  for (int64_t c = 0; c < width; c += Vec::kWidth) {
    Vec::store(out + c, Vec::max_or_nan(Vec::load(later + c), Vec::load(earlier + c)));
  }
}

// out = row / max(|row|, 1e-12), like torch.nn.functional.normalize, for any `width`.
void normalize_row_f32(const float* row, float* out, int64_t width) {
  Vec::F squares = Vec::set1(0.0f);
  int64_t c = 0;
  for (; c + Vec::kWidth <= width; c += Vec::kWidth) {
    const Vec::F x = Vec::load(row + c);
    squares = Vec::fma(x, x, squares);
  }
  float lanes[Vec::kWidth];
  Vec::store(lanes, squares);
  float total = 0.0f;
  for (float lane : lanes) total += lane;
  for (int64_t rest = c; rest < width; ++rest) total += row[rest] * row[rest];
  const float norm = __builtin_sqrtf(total);
  const float scale = 1.0f / (norm < 1e-12f ? 1e-12f : norm);
  for (int64_t i = 0; i < width; ++i) out[i] = row[i] * scale;
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
