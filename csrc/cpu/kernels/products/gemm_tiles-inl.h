// Products of split operands on AMX tiles. See gemm.h.
//
// A step of 32 k multiplies two row tiles by two column tiles: tiles 0..3 hold sums, 4 and 5 hold b, 6 and 7 hold a.
namespace mmn_fast::MMN_ISA {
namespace {

constexpr int64_t kStep = 32;           // k of one tile product
constexpr int64_t kTile = 16 * kStep;   // bf16 values of one tile: 1 KB
constexpr int64_t kPairRows = 32;
constexpr int64_t kPair = 2 * kTile;
constexpr int64_t kSplitRows = 128;     // rows packed at a time; 512 KB of second-level cache at 512 complex k

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Rounds 16 floats to bf16, to nearest even, into the low half of each lane; NaN stays NaN.
__m512i round_to_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16);
}

__m512 from_bf16(__m512i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }

void store_bf16(uint16_t* to, __m512i x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(x));
}

int64_t row_of(const int32_t* rows, int64_t i, int64_t group) {
  return rows == nullptr ? i : group == 1 ? rows[i] : rows[i / group] * group + i % group;
}

// Packs a row as [pair of row tiles][step][part][term][row of 32][32]; parts are real and imaginary. All terms of a step
// lie together: at distances of 4 KB, terms would push each other and b out of the first-level cache.
template <int kTermsA>
void pack_split_row(const float* from, int64_t k, int64_t parts, uint16_t* to) {
  for (int64_t step = 0; step * kStep < k; ++step, to += parts * kTermsA * kPair) {
    for (int64_t half = 0; half < kStep; half += 16) {
      const int64_t left = k - step * kStep - half;
      const __mmask16 lanes = left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
      const __m512 x = _mm512_maskz_loadu_ps(lanes, from + step * kStep + half);
      const __m512i high = round_to_bf16(x);
      store_bf16(to + half, high);
      if (kTermsA == 2) store_bf16(to + kPair + half, round_to_bf16(_mm512_sub_ps(x, from_bf16(high))));
    }
  }
}

template <bool kBoth>
void multiply_tiles() {
  _tile_dpbf16ps(0, 6, 4);
  _tile_dpbf16ps(1, 6, 5);
  if (kBoth) {
    _tile_dpbf16ps(2, 7, 4);
    _tile_dpbf16ps(3, 7, 5);
  }
}

template <bool kBoth>
void load_a(const uint16_t* a) {
  _tile_loadd(6, a, 2 * kStep);
  if (kBoth) _tile_loadd(7, a + kTile, 2 * kStep);
}

// sums += a * b, without the product of both low terms. The terms of each half of b lie `b_left_term` and `b_right_term`
// apart.
template <int kTermsA, int kTermsB, bool kBoth>
void multiply_step(const uint16_t* a, const uint16_t* b_left, const uint16_t* b_right, int64_t b_left_term,
                   int64_t b_right_term) {
  _tile_loadd(4, b_left, 2 * kStep);
  _tile_loadd(5, b_right, 2 * kStep);
  if (kTermsA == 2) {
    load_a<kBoth>(a + kPair);
    multiply_tiles<kBoth>();
  }
  load_a<kBoth>(a);
  multiply_tiles<kBoth>();
  if (kTermsB == 2) {
    _tile_loadd(4, b_left + b_left_term, 2 * kStep);
    _tile_loadd(5, b_right + b_right_term, 2 * kStep);
    multiply_tiles<kBoth>();
  }
}

void put_sums(float* to, const float* sums, bool add) {
  const __m512 x = _mm512_loadu_ps(sums);
  _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), x) : x);
}

// Sums of a pair of row tiles that wait to be added to c. Each step of the next pair writes a few rows, because the tile
// unit would stand still while all rows were written at once.
struct SplitSums {
  alignas(64) float sums[kPairRows][kPairRows];
  float* c[kPairRows];
  int64_t second;  // from the left half of a row in c to its right half
  int64_t rows = 0, done = 0;
  bool add;

  void put(int64_t count) {
    for (const int64_t end = done + count < rows ? done + count : rows; done < end; ++done) {
      put_sums(c[done], sums[done], add);
      put_sums(c[done] + second, sums[done] + 16, add);
    }
  }
};

struct SplitPanel {
  const uint16_t* b;         // [step][term][2 column tiles]
  const uint16_t* negated;   // complex: [step][term], the negated imaginary column tiles
  int64_t steps;
  const uint16_t* ahead;     // the next panel; each step prefetches `lines` cache lines of it
  int64_t lines;
};

template <int kTermsA, int kTermsB, bool kComplex, bool kBoth>
void multiply_pair(const uint16_t* a, const SplitPanel& panel, SplitSums& before, SplitSums& now) {
  constexpr int64_t kParts = kComplex ? 2 : 1;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const uint16_t *ahead = panel.ahead, *b = panel.b, *negated = panel.negated;
  const int64_t rows_per_step = (kPairRows + panel.steps - 1) / panel.steps;
  for (int64_t step = 0; step < panel.steps; ++step) {
    for (int64_t line = 0; line < panel.lines; ++line, ahead += 32) __builtin_prefetch(ahead, 0, 2);
    multiply_step<kTermsA, kTermsB, kBoth>(a, b, b + kTile, 2 * kTile, 2 * kTile);
    if (kComplex) {
      // (x + iy)(u + iv): -yv goes to the real sums, yu to the imaginary sums.
      multiply_step<kTermsA, kTermsB, kBoth>(a + kTermsA * kPair, negated, b, kTile, 2 * kTile);
    }
    a += kParts * kTermsA * kPair;
    b += kTermsB * 2 * kTile;
    negated += kTermsB * kTile;
    before.put(rows_per_step);
  }
  float(*sums)[kPairRows] = now.sums;
  _tile_stored(0, sums[0], sizeof sums[0]);
  _tile_stored(1, sums[0] + 16, sizeof sums[0]);
  if (kBoth) {
    _tile_stored(2, sums[16], sizeof sums[0]);
    _tile_stored(3, sums[16] + 16, sizeof sums[0]);
  }
}

void negate_imaginary(const uint16_t* b, int64_t tiles, uint16_t* negated) {
  const __m512i sign = _mm512_set1_epi16(static_cast<int16_t>(0x8000));
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t i = 0; i < kTile; i += 32) {
      const __m512i x = _mm512_loadu_si512(b + (2 * tile + 1) * kTile + i);
      _mm512_storeu_si512(negated + tile * kTile + i, _mm512_xor_si512(x, sign));
    }
  }
}

template <int kTermsA, int kTermsB, bool kComplex>
void gemm_split(const GemmArgs& args, int64_t first_panel, int64_t last_panel) {
  constexpr int64_t kParts = kComplex ? 2 : 1;
  constexpr int64_t kPanelColumns = kPairRows / kParts;
  const int64_t steps = (args.k + kStep - 1) / kStep;
  const int64_t panel_size = steps * kTermsB * 2 * kTile, pair_size = steps * kParts * kTermsA * kPair;
  uint16_t* const packed = reinterpret_cast<uint16_t*>(args.pack);
  uint16_t* const negated = packed + kSplitRows / kPairRows * pair_size;
  SplitSums sums[2];
  const TileConfig config;
  _tile_loadconfig(&config);
  int turn = 0;
  for (int64_t first = 0; first < args.rows; first += kSplitRows) {
    const int64_t last = args.rows - first < kSplitRows ? args.rows : first + kSplitRows;
    const int64_t pairs = (last - first + kPairRows - 1) / kPairRows;
    for (int64_t i = first; i < last; ++i) {
      const float* row = args.a + row_of(args.a_rows, i, args.group) * args.a_stride;
      uint16_t* to = packed + (i - first) / kPairRows * pair_size + (i - first) % kPairRows * kStep;
      pack_split_row<kTermsA>(row, args.k, kParts, to);
      if (kComplex) pack_split_row<kTermsA>(row + args.imaginary_a, args.k, kParts, to + kTermsA * kPair);
    }
    for (int64_t p = first_panel; p < last_panel; ++p) {
      const uint16_t* b = reinterpret_cast<const uint16_t*>(args.b) + p * panel_size;
      if (kComplex) negate_imaginary(b, steps * kTermsB, negated);
      const int64_t lines = (panel_size / 32 + pairs * steps - 1) / (pairs * steps);
      for (int64_t pair = 0; pair < pairs; ++pair, turn ^= 1) {
        SplitSums& now = sums[turn];
        const int64_t row = first + pair * kPairRows, rows = last - row < kPairRows ? last - row : kPairRows;
        const SplitPanel panel = {b, negated, steps, b + panel_size + pair * steps * lines * 32, lines};
        const uint16_t* a = packed + pair * pair_size;
        if (rows > 16) {
          multiply_pair<kTermsA, kTermsB, kComplex, true>(a, panel, sums[turn ^ 1], now);
        } else {
          multiply_pair<kTermsA, kTermsB, kComplex, false>(a, panel, sums[turn ^ 1], now);
        }
        now.rows = rows;
        now.done = 0;
        now.add = args.add;
        now.second = kComplex ? args.imaginary_c : 16;
        for (int64_t r = 0; r < rows; ++r) {
          now.c[r] = args.c + row_of(args.c_rows, row + r, args.group) * args.c_stride + p * kPanelColumns;
        }
      }
    }
  }
  sums[turn ^ 1].put(kPairRows);
  _tile_release();
}

void gemm_split_f32(const GemmArgs& args, int64_t first_panel, int64_t last_panel) {
  if (args.terms_a == 1) {
    gemm_split<1, 1, false>(args, first_panel, last_panel);
  } else if (args.terms_b == 1) {
    gemm_split<2, 1, false>(args, first_panel, last_panel);
  } else {
    gemm_split<2, 2, false>(args, first_panel, last_panel);
  }
}

void gemm_complex_split_f32(const GemmArgs& args, int64_t first_panel, int64_t last_panel) {
  if (args.terms_a == 1) {
    gemm_split<1, 1, true>(args, first_panel, last_panel);
  } else if (args.terms_b == 1) {
    gemm_split<2, 1, true>(args, first_panel, last_panel);
  } else {
    gemm_split<2, 2, true>(args, first_panel, last_panel);
  }
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
