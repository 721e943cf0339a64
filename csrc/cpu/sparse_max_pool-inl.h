// sparse_max_pool, written once over the Vec of the file that includes this. See ops/sparse_max_pool.h.
namespace mmn_fast::MMN_ISA {
namespace {

// Fills columns [j0, j0 + kVecs * width) of one channel's map, or the first `lanes` of them if kPartial. Rows are
// walked upwards from the last one: the max over i..j is that of clip i and of i+1..j, so the maxima stay in registers.
template <int kVecs, bool kPartial>
void pool_columns(const float* clips, const uint8_t* mask, float* out, int64_t n, int64_t j0, int lanes) {
  const Vec::F zero = Vec::set1(0.0f);
  Vec::F running[kVecs];
  Vec::I column[kVecs];
  for (int v = 0; v < kVecs; ++v) {
    running[v] = Vec::set1(-__builtin_inff());
    column[v] = Vec::iota(static_cast<int32_t>(j0 + v * Vec::kWidth));
  }
  const int64_t last_column = j0 + (kPartial ? lanes : kVecs * Vec::kWidth) - 1;
  for (int64_t i = n - 1; i >= 0; --i) {
    float* out_row = out + i * n + j0;
    const uint8_t* mask_row = mask + i * n + j0;
    if (i > last_column) {
      for (int v = 0; v < kVecs; ++v) {
        kPartial ? Vec::store_first(out_row, zero, lanes) : Vec::store(out_row + v * Vec::kWidth, zero);
      }
      continue;
    }
    const Vec::F clip = Vec::set1(clips[i]);
    const Vec::I before = Vec::set1_i(static_cast<int32_t>(i - 1));
    for (int v = 0; v < kVecs; ++v) {
      const Vec::M on_or_above_diagonal = Vec::gt_i(column[v], before);
      running[v] = Vec::select(on_or_above_diagonal, Vec::max_or_nan(running[v], clip), running[v]);
      if (kPartial) {
        const Vec::M valid = Vec::load_mask_first(mask_row, lanes);
        Vec::store_first(out_row, Vec::select(valid, running[v], zero), lanes);
      } else {
        const Vec::M valid = Vec::load_mask(mask_row + v * Vec::kWidth);
        Vec::store(out_row + v * Vec::kWidth, Vec::select(valid, running[v], zero));
      }
    }
  }
}

void sparse_max_pool_f32(const SparseMaxPoolArgs& args, int64_t first_channel, int64_t last_channel) {
  constexpr int kVecs = 4;  // columns of one go: 64 with AVX-512, the whole row of the largest common map
  const int64_t n = args.n;
  for (int64_t c = first_channel; c < last_channel; ++c) {
    const float* clips = args.clips + c * n;
    float* out = args.out + c * n * n;
    int64_t j = 0;
    for (; j + kVecs * Vec::kWidth <= n; j += kVecs * Vec::kWidth) {
      pool_columns<kVecs, false>(clips, args.mask, out, n, j, 0);
    }
    for (; j + Vec::kWidth <= n; j += Vec::kWidth) pool_columns<1, false>(clips, args.mask, out, n, j, 0);
    if (j < n) pool_columns<1, true>(clips, args.mask, out, n, j, static_cast<int>(n - j));
  }
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
