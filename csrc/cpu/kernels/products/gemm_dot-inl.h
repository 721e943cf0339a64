// Products of split operands by bf16 dot products on vectors; a lane adds two products at a time. See gemm.h.
namespace mmn_fast::MMN_ISA {
namespace {

constexpr int64_t kStep = 32;             // k of one packed step of b: 16 pairs
constexpr int64_t kTile = 16 * kStep;     // bf16 values in one step of 16 columns
constexpr int64_t kPanelColumns = 32;
constexpr int64_t kBlockSteps = 8;        // steps per block of k; one term of a panel then fills 16 KB
constexpr int64_t kRowPadding = kStep;    // a cache line, against set conflicts
constexpr int kDotRows = 14;              // two vectors of columns give 28 sums and leave four registers

int64_t row_of(const int32_t* rows, int64_t i, int64_t group) {
  return rows == nullptr ? i : group == 1 ? rows[i] : rows[i / group] * group + i % group;
}

__m512 from_bf16(__m256bh x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16));
}

// Copies both bf16 values of a pair to every lane.
__m512bh broadcast_pair(const uint16_t* pair) {
  int32_t bits;
  __builtin_memcpy(&bits, pair, sizeof bits);
  return (__m512bh)_mm512_set1_epi32(bits);
}

__m512bh load_pairs(const uint16_t* pairs) { return (__m512bh)_mm512_loadu_si512(pairs); }

// Operands of one call of a tile. `a` has rows a_row apart, each [part][term][depth]; `b` is [step][term][2 tiles].
struct DotTile {
  const uint16_t* a;
  int64_t a_row, depth;
  const uint16_t* b;
  const uint16_t* ahead;  // prefetched meanwhile, a cache line per pair of k
  float* const* c;
  int64_t second;         // from the left half of a row of c to its right half
  bool add;
};

// sums[r] += x[r] * (left | right), where x holds the rows' pairs at `a`.
template <int kRows>
void add_products(__m512 (&sums)[kRows][2], const uint16_t* a, int64_t a_row, __m512bh left, __m512bh right) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const __m512bh x = broadcast_pair(a + r * a_row);
    sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, left);
    sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, right);
  }
}

// (x + iy)(u + iv) for the given terms: -yv goes to the real sums.
template <int kRows, bool kComplex>
void add_term(__m512 (&sums)[kRows][2], const DotTile& tile, const uint16_t* a, int64_t part, __m512bh left,
              __m512bh right) {
  add_products<kRows>(sums, a, tile.a_row, left, right);
  if (kComplex) {
    const __m512i sign = _mm512_set1_epi16(static_cast<int16_t>(0x8000));
    const __m512bh negated = (__m512bh)_mm512_xor_si512((__m512i)right, sign);
    add_products<kRows>(sums, a + part, tile.a_row, negated, left);
  }
}

template <int kRows, int kTermsA, int kTermsB, bool kComplex>
void multiply_tile(const DotTile& tile) {
  __m512 sums[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
  const int64_t low = tile.depth, part = kTermsA * tile.depth;
  const uint16_t *b = tile.b, *ahead = tile.ahead;
  for (int64_t k = 0; k < tile.depth; k += kStep, b += kTermsB * 2 * kTile) {
    for (int64_t pair = 0; pair < kStep; pair += 2, ahead += kStep) {
      __builtin_prefetch(ahead, 0, 2);
      const uint16_t *a = tile.a + k + pair, *columns = b + pair * 16;
      const __m512bh left = load_pairs(columns), right = load_pairs(columns + kTile);
      if (kTermsA == 2) add_term<kRows, kComplex>(sums, tile, a + low, part, left, right);
      add_term<kRows, kComplex>(sums, tile, a, part, left, right);
      if (kTermsB == 2) {
        const uint16_t* const rest = columns + 2 * kTile;
        add_term<kRows, kComplex>(sums, tile, a, part, load_pairs(rest), load_pairs(rest + kTile));
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    for (int half = 0; half < 2; ++half) {
      float* const to = tile.c[r] + half * tile.second;
      _mm512_storeu_ps(to, tile.add ? _mm512_add_ps(_mm512_loadu_ps(to), sums[r][half]) : sums[r][half]);
    }
  }
}

template <int kTermsA, int kTermsB, bool kComplex, int kRows = kDotRows>
void multiply_rows(int64_t rows, const DotTile& tile) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_rows<kTermsA, kTermsB, kComplex, kRows - 1>(rows, tile);
  }
  multiply_tile<kRows, kTermsA, kTermsB, kComplex>(tile);
}

// Packs k values from `from` as one or two bf16 terms, then zeros up to `depth`.
template <int kTermsA>
void pack_terms(const float* from, int64_t k, int64_t depth, uint16_t* to) {
  for (int64_t i = 0; i < depth; i += 16) {
    const int64_t left = k - i;
    const __mmask16 lanes = left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
    const __m512 x = _mm512_maskz_loadu_ps(lanes, from + i);
    const __m256bh high = _mm512_cvtneps_pbh(x);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), (__m256i)high);
    if (kTermsA == 2) {
      const __m256bh low = _mm512_cvtneps_pbh(_mm512_sub_ps(x, from_bf16(high)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + depth + i), (__m256i)low);
    }
  }
}

template <int kTermsA, int kTermsB, bool kComplex>
void gemm_dot(const GemmArgs& args, int64_t first_panel, int64_t last_panel) {
  constexpr int64_t kParts = kComplex ? 2 : 1, kBlock = kBlockSteps * kStep;
  const int64_t steps = (args.k + kStep - 1) / kStep, panel_size = steps * kTermsB * 2 * kTile;
  const auto depth_of = [&](int64_t k) { return (steps * kStep - k < kBlock ? steps * kStep - k : kBlock); };
  const auto row_size = [](int64_t depth) { return kParts * kTermsA * depth + kRowPadding; };
  for (int64_t first = 0; first < args.rows; first += kRowBlock) {
    const int64_t last = args.rows - first < kRowBlock ? args.rows : first + kRowBlock;
    uint16_t* packed = reinterpret_cast<uint16_t*>(args.pack);
    for (int64_t k = 0; k < args.k; k += kBlock) {
      const int64_t depth = depth_of(k);
      for (int64_t i = first; i < last; ++i, packed += row_size(depth)) {
        const float* row = args.a + row_of(args.a_rows, i, args.group) * args.a_stride + k;
        pack_terms<kTermsA>(row, args.k - k, depth, packed);
        if (kComplex) pack_terms<kTermsA>(row + args.imaginary_a, args.k - k, depth, packed + kTermsA * depth);
      }
    }
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const uint16_t* a = reinterpret_cast<const uint16_t*>(args.pack);
      const uint16_t* b = reinterpret_cast<const uint16_t*>(args.b) + panel * panel_size;
      for (int64_t k = 0; k < args.k; k += kBlock) {
        const int64_t depth = depth_of(k), block = depth * kTermsB * kPanelColumns;
        for (int64_t i = first; i < last; i += kDotRows) {
          const int64_t rows = last - i < kDotRows ? last - i : kDotRows;
          float* c[kDotRows];
          for (int64_t r = 0; r < rows; ++r) {
            c[r] = args.c + row_of(args.c_rows, i + r, args.group) * args.c_stride +
                   panel * (kPanelColumns / kParts);
          }
          // The first tiles prefetch the next block of b into a near cache.
          const int64_t fetched = (i - first) / kDotRows * (depth / 2 * kStep);
          const uint16_t* ahead = fetched < block ? b + block + fetched : a + (i - first + kDotRows) * row_size(depth);
          multiply_rows<kTermsA, kTermsB, kComplex>(
              rows, {a + (i - first) * row_size(depth), row_size(depth), depth, b, ahead, c,
                     kComplex ? args.imaginary_c : kPanelColumns / 2, args.add || k > 0});
        }
        a += (last - first) * row_size(depth);
        b += block;
      }
    }
  }
}

void gemm_split_f32(const GemmArgs& args, int64_t first_panel, int64_t last_panel) {
  const auto gemm = args.terms_a == 1 ? gemm_dot<1, 1, false> : args.terms_b == 1 ? gemm_dot<2, 1, false> : gemm_dot<2, 2, false>;
  gemm(args, first_panel, last_panel);
}

void gemm_complex_split_f32(const GemmArgs& args, int64_t first_panel, int64_t last_panel) {
  const auto gemm = args.terms_a == 1 ? gemm_dot<1, 1, true> : args.terms_b == 1 ? gemm_dot<2, 1, true> : gemm_dot<2, 2, true>;
  gemm(args, first_panel, last_panel);
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
