// The micro-kernels, over the Vec of the including file. See cpu/kernels/products/gemm.h.
namespace mmn_fast::MMN_ISA {
namespace {

constexpr int kTileVecs = 2;
constexpr int kTileRows = Vec::kTileRows;  // kTileRows x kTileVecs sums fill the registers
constexpr int kTileColumns = kTileVecs * Vec::kWidth;
constexpr int64_t kLine = 16;  // floats of a cache line

void copy_floats(const float* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) Vec::store(to + i, Vec::load(from + i));
  for (; i < n; ++i) to[i] = from[i];
}

template <int kRows>
void store_tile(const Vec::F (&sums)[kRows][kTileVecs], float* const* c, int64_t second, bool add) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* const first_half = c[r];
    float* const second_half = c[r] + second;
    Vec::store(first_half, add ? Vec::add(Vec::load(first_half), sums[r][0]) : sums[r][0]);
    Vec::store(second_half, add ? Vec::add(Vec::load(second_half), sums[r][1]) : sums[r][1]);
  }
}

// `a` has rows of `depth` floats; a complex row has twice as many, first real parts, then imaginary parts.
template <int kRows>
void multiply_tile(const float* a, const float* b, int64_t depth, const float* ahead, float* const* c, int64_t,
                   bool add) {
  Vec::F sums[kRows][kTileVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vec::set1(0.0f);
  for (int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(ahead + k * kLine, 0, 2);
    const Vec::F b0 = Vec::load(b + k * kTileColumns), b1 = Vec::load(b + k * kTileColumns + Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec::F x = Vec::set1(a[r * depth + k]);
      sums[r][0] = Vec::fma(x, b0, sums[r][0]);
      sums[r][1] = Vec::fma(x, b1, sums[r][1]);
    }
  }
  store_tile<kRows>(sums, c, Vec::kWidth, add);
}

template <int kRows>
void multiply_complex_tile(const float* a, const float* b, int64_t depth, const float* ahead, float* const* c,
                           int64_t imaginary, bool add) {
  Vec::F sums[kRows][kTileVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vec::set1(0.0f);
  for (int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(ahead + 2 * k * kLine, 0, 2);
    __builtin_prefetch(ahead + (2 * k + 1) * kLine, 0, 2);
    const Vec::F real = Vec::load(b + k * kTileColumns), imag = Vec::load(b + k * kTileColumns + Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec::F x = Vec::set1(a[r * 2 * depth + k]);
      sums[r][0] = Vec::fma(x, real, sums[r][0]);
      sums[r][1] = Vec::fma(x, imag, sums[r][1]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec::F y = Vec::set1(a[(r * 2 + 1) * depth + k]);
      sums[r][0] = Vec::fnma(y, imag, sums[r][0]);
      sums[r][1] = Vec::fma(y, real, sums[r][1]);
    }
  }
  store_tile<kRows>(sums, c, imaginary, add);
}

using TileFn = void (*)(const float* a, const float* b, int64_t depth, const float* ahead, float* const* c,
                        int64_t second, bool add);

constexpr TileFn kRealTiles[] = {nullptr,           multiply_tile<1>,  multiply_tile<2>,  multiply_tile<3>,
                                 multiply_tile<4>,  multiply_tile<5>,  multiply_tile<6>,
#if MMN_TILE_ROWS > 6
                                 multiply_tile<7>,  multiply_tile<8>,  multiply_tile<9>,  multiply_tile<10>,
                                 multiply_tile<11>, multiply_tile<12>, multiply_tile<13>, multiply_tile<14>,
#endif
};
constexpr TileFn kComplexTiles[] = {
    nullptr,
    multiply_complex_tile<1>,  multiply_complex_tile<2>,  multiply_complex_tile<3>,
    multiply_complex_tile<4>,  multiply_complex_tile<5>,  multiply_complex_tile<6>,
#if MMN_TILE_ROWS > 6
    multiply_complex_tile<7>,  multiply_complex_tile<8>,  multiply_complex_tile<9>,  multiply_complex_tile<10>,
    multiply_complex_tile<11>, multiply_complex_tile<12>, multiply_complex_tile<13>, multiply_complex_tile<14>,
#endif
};
static_assert(sizeof(kRealTiles) / sizeof(TileFn) == kTileRows + 1 && sizeof(kComplexTiles) == sizeof(kRealTiles));

int64_t row_of(const int32_t* rows, int64_t i, int64_t group) {
  return rows == nullptr ? i : group == 1 ? rows[i] : rows[i / group] * group + i % group;
}

int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// The size of a block of k; complex products add two terms each.
template <bool kComplex>
int64_t block_depth(int64_t k) {
  const int64_t eighth = (k + 8 * kMinDepth - 1) / (8 * kMinDepth) * kMinDepth;
  return min_of(eighth, kDepth) / (kComplex ? 2 : 1);
}

// Packs rows [first, last) of a as [block][row][depth of the block]; complex rows are twice as long.
template <bool kComplex>
void pack_rows(const GemmArgs& args, int64_t first, int64_t last, int64_t block) {
  constexpr int64_t kParts = kComplex ? 2 : 1;
  for (int64_t i = first; i < last; ++i) {
    const float* row = args.a + row_of(args.a_rows, i, args.group) * args.a_stride;
    for (int64_t k = 0; k < args.k; k += block) {
      const int64_t depth = min_of(args.k - k, block);
      float* to = args.pack + kParts * ((last - first) * k + (i - first) * depth);
      copy_floats(row + k, to, depth);
      if (kComplex) copy_floats(row + args.imaginary_a + k, to + depth, depth);
    }
  }
}

template <bool kComplex>
void gemm(const GemmArgs& args, int64_t first_panel, int64_t last_panel) {
  constexpr int64_t kParts = kComplex ? 2 : 1, kPanelColumns = kTileColumns / kParts;
  const int64_t block = block_depth<kComplex>(args.k);
  for (int64_t first = 0; first < args.rows; first += kRowBlock) {
    const int64_t last = min_of(args.rows, first + kRowBlock);
    pack_rows<kComplex>(args, first, last, block);
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      for (int64_t k = 0; k < args.k; k += block) {
        const int64_t depth = min_of(args.k - k, block), row_size = kParts * depth;
        const float* b = args.b + (panel * args.k + k) * kTileColumns;
        const float* a = args.pack + kParts * (last - first) * k;
        for (int64_t i = first; i < last; i += kTileRows) {
          const int rows = static_cast<int>(min_of(last - i, kTileRows));
          float* c[kTileRows];
          for (int r = 0; r < rows; ++r) {
            c[r] = args.c + row_of(args.c_rows, i + r, args.group) * args.c_stride + panel * kPanelColumns;
          }
          // The first tiles prefetch the next block of b into a near cache; the other tiles prefetch the next rows of a.
          const int64_t fetched = (i - first) / kTileRows * row_size * kLine;
          const float* rows_of_a = a + (i - first) * row_size;
          const float* ahead = fetched < depth * kTileColumns ? b + depth * kTileColumns + fetched
                                                              : rows_of_a + kTileRows * row_size;
          const TileFn tile = (kComplex ? kComplexTiles : kRealTiles)[rows];
          tile(rows_of_a, b, depth, ahead, c, args.imaginary_c, args.add || k > 0);
        }
      }
    }
  }
}

void gemm_f32(const GemmArgs& args, int64_t first_panel, int64_t last_panel) {
  gemm<false>(args, first_panel, last_panel);
}
void gemm_complex_f32(const GemmArgs& args, int64_t first_panel, int64_t last_panel) {
  gemm<true>(args, first_panel, last_panel);
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
