// Kernels for hosts with AVX2, FMA and F16C. Compiler flags: CMakeLists.txt; tests before use: isa.cc.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/isa/kernels.h"

#define MMN_ISA isa_avx2
#define MMN_TILE_ROWS 6

namespace mmn_fast::MMN_ISA {
namespace {

struct Vec {
  static constexpr int kWidth = 8;
  static constexpr int kTileRows = MMN_TILE_ROWS;
  using F = __m256;
  using I = __m256i;
  using M = __m256i;  // -1 or 0 per lane

  static F set1(float x) { return _mm256_set1_ps(x); }
  static I set1_i(int32_t x) { return _mm256_set1_epi32(x); }
  static I iota(int32_t first) { return _mm256_add_epi32(set1_i(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static F load_codes(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  // sum + codes[2 l] text[2 l] + codes[2 l + 1] text[2 l + 1] in lane l.
  static I add_products(I sum, const int8_t* codes, const int16_t* text) {
    const I wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(wide, _mm256_loadu_si256(reinterpret_cast<const I*>(text))));
  }
  static I load_i(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static void store_i(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static void store_first(float* p, F v, int lanes) { _mm256_maskstore_ps(p, gt_i(set1_i(lanes), iota(0)), v); }

  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }    // a * b + c
  static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F sqrt(F a) { return _mm256_sqrt_ps(a); }
  static float sum(F a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static int32_t sum_i(I a) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
  }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F max_or_nan(F a, F b) { return _mm256_blendv_ps(max(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
  static M gt(F a, F b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
  static unsigned bits(M m) { return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(m))); }
  static F select(M m, F a, F b) { return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(m)); }

  static I add_i(I a, I b) { return _mm256_add_epi32(a, b); }
  static M gt_i(I a, I b) { return _mm256_cmpgt_epi32(a, b); }
  static I select_i(M m, I a, I b) { return _mm256_blendv_epi8(b, a, m); }
};

}  // namespace
}  // namespace mmn_fast::MMN_ISA

#include "cpu/kernels/vector_row-inl.h"
