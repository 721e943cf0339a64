// Kernels for any host, on the compiler's own 16-byte vectors: SSE2 on x86-64, NEON on AArch64.
#include <cstddef>
#include <cstdint>

#include "cpu/isa/kernels.h"

#define MMN_ISA isa_generic
#define MMN_TILE_ROWS 6

namespace mmn_fast::MMN_ISA {
namespace {

struct Vec {
  static constexpr int kWidth = 4;
  static constexpr int kTileRows = MMN_TILE_ROWS;
  using F = float __attribute__((vector_size(16)));
  using I = int32_t __attribute__((vector_size(16)));
  using M = I;  // -1 or 0 per lane

  static F set1(float x) { return F{x, x, x, x}; }
  static I set1_i(int32_t x) { return I{x, x, x, x}; }
  static I iota(int32_t first) { return I{first, first + 1, first + 2, first + 3}; }

  static F load(const float* p) { F v; __builtin_memcpy(&v, p, sizeof v); return v; }
  static F load_half(const uint16_t* p) {
    // A normal number moves its exponent from bias 15 to bias 127; a subnormal one is a multiple of 2^-24.
    const I half = {p[0], p[1], p[2], p[3]}, rest = half & 0x3ff;
    const F normal = (F)(((half & 0x7fff) << 13) + (112 << 23)), subnormal = __builtin_convertvector(rest, F) * 0x1p-24f;
    return (F)((I)((half & 0x7c00) != 0 ? normal : subnormal) | (half & 0x8000) << 16);
  }
  static F load_codes(const int8_t* p) { return __builtin_convertvector((I{p[0], p[1], p[2], p[3]}), F); }
  // sum + codes[2 l] text[2 l] + codes[2 l + 1] text[2 l + 1] in lane l.
  static I add_products(I sum, const int8_t* codes, const int16_t* text) {
    const I even = I{codes[0], codes[2], codes[4], codes[6]} * I{text[0], text[2], text[4], text[6]};
    return sum + even + I{codes[1], codes[3], codes[5], codes[7]} * I{text[1], text[3], text[5], text[7]};
  }
  static I load_i(const int32_t* p) { I v; __builtin_memcpy(&v, p, sizeof v); return v; }
  static void store(float* p, F v) { __builtin_memcpy(p, &v, sizeof v); }
  static void store_i(int32_t* p, I v) { __builtin_memcpy(p, &v, sizeof v); }
  static void store_first(float* p, F v, int lanes) { __builtin_memcpy(p, &v, lanes * sizeof(float)); }

  static F add(F a, F b) { return a + b; }
  static F mul(F a, F b) { return a * b; }
  static F fma(F a, F b, F c) { return a * b + c; }  // rounds twice: std::fma is a library call without the instruction
  static F fnma(F a, F b, F c) { return c - a * b; }
  static F sub(F a, F b) { return a - b; }
  static F div(F a, F b) { return a / b; }
  static F sqrt(F a) {
    return F{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]), __builtin_sqrtf(a[3])};
  }
  static float sum(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static int32_t sum_i(I a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static F min(F a, F b) { return a < b ? a : b; }  // like MINPS and MAXPS: b if either is NaN or both are equal
  static F max(F a, F b) { return a > b ? a : b; }
  static F max_or_nan(F a, F b) { return a != a ? a : max(a, b); }
  static M gt(F a, F b) { return a > b; }
  static unsigned bits(M m) { return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8); }
  static F select(M m, F a, F b) { return m ? a : b; }

  static I add_i(I a, I b) { return a + b; }
  static M gt_i(I a, I b) { return a > b; }
  static I select_i(M m, I a, I b) { return m ? a : b; }
};

}  // namespace
}  // namespace mmn_fast::MMN_ISA

#include "cpu/kernels/vector_row-inl.h"
