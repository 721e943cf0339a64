// Kernels for hosts with AVX-512 F, BW, DQ and VL. Compiler flags: CMakeLists.txt; tests before use: isa.cc.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/isa/kernels.h"

#define MMN_ISA isa_avx512
#define MMN_TILE_ROWS 14

namespace mmn_fast::MMN_ISA {
namespace {

struct Vec {
  static constexpr int kWidth = 16;
  static constexpr int kTileRows = MMN_TILE_ROWS;
  using F = __m512;
  using I = __m512i;
  using M = __mmask16;

  static F set1(float x) { return _mm512_set1_ps(x); }
  static I set1_i(int32_t x) { return _mm512_set1_epi32(x); }
  static I iota(int32_t first) {
    return _mm512_add_epi32(set1_i(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }
  static M first(int lanes) { return static_cast<M>((1u << lanes) - 1); }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  // Full masks, because GCC 12 warns about its own unmasked forms (GCC bug 105593); `sum` has them too.
  static F load_half(const uint16_t* p) {
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_codes(const int8_t* p) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, codes));
  }
  // sum + codes[2 l] text[2 l] + codes[2 l + 1] text[2 l + 1] in lane l.
  static I add_products(I sum, const int8_t* codes, const int16_t* text) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const I wide = _mm512_maskz_cvtepi8_epi16(0xffffffff, bytes);
    return _mm512_add_epi32(sum, _mm512_maskz_madd_epi16(0xffff, wide, _mm512_loadu_si512(text)));
  }
  static I load_i(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store_i(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static void store_first(float* p, F v, int lanes) { _mm512_mask_storeu_ps(p, first(lanes), v); }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }    // a * b + c
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F sqrt(F a) { return _mm512_sqrt_ps(a); }
  static float sum(F a) {
    const __m256 eight = _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, a, 0), _mm512_maskz_extractf32x8_ps(0xff, a, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static int32_t sum_i(I a) {
    const __m256i low = _mm512_maskz_extracti32x8_epi32(0xff, a, 0), high = _mm512_maskz_extracti32x8_epi32(0xff, a, 1);
    const __m256i eight = _mm256_add_epi32(low, high);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
  }
  static F min(F a, F b) { return _mm512_maskz_min_ps(0xffff, a, b); }
  static F max(F a, F b) { return _mm512_maskz_max_ps(0xffff, a, b); }
  static F max_or_nan(F a, F b) { return select(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a, max(a, b)); }
  static M gt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static unsigned bits(M m) { return m; }
  static F select(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }

  static I add_i(I a, I b) { return _mm512_add_epi32(a, b); }
  static M gt_i(I a, I b) { return _mm512_cmpgt_epi32_mask(a, b); }
  static I select_i(M m, I a, I b) { return _mm512_mask_blend_epi32(m, b, a); }
};

}  // namespace
}  // namespace mmn_fast::MMN_ISA

#include "cpu/kernels/vector_row-inl.h"
