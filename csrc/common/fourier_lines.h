// The discrete Fourier transform of a line of 16 reals, for all instruction sets of the CPU and for the device. It is
// written over A, the arithmetic of a vector of lines: A::F with set1, add, sub, mul, fma (a b + c), fnma (c - a b).
#pragma once

#include "common/device.h"

namespace mmn_fast {

constexpr float kCos1 = 0.92387953251128674f;  // cos(pi / 8)
constexpr float kCos2 = 0.70710678118654752f;  // cos(2 pi / 8)
constexpr float kCos3 = 0.38268343236508977f;  // cos(3 pi / 8)

// a x + b y + c z
template <class A, class F = typename A::F>
MMN_DEVICE F combine(float a, F x, float b, F y, float c, F z) {
  return A::fma(A::set1(a), x, A::fma(A::set1(b), y, A::mul(A::set1(c), z)));
}

// Transforms one line of 16 reals to its cosine sums C(0..8) and sine sums S(1..7). Places y and 16 - y have the same
// cosine and opposite sines; so have y and 8 - y, up to a sign, for even and for odd frequencies.
template <class A, class F = typename A::F>
MMN_DEVICE void fourier_line_forward(const F* in, int step, F* out) {
  F e[9], o[8];
  e[0] = in[0];
  e[8] = in[8 * step];
  MMN_UNROLL(7)
  for (int y = 1; y < 8; ++y) {
    e[y] = A::add(in[y * step], in[(16 - y) * step]);
    o[y] = A::sub(in[y * step], in[(16 - y) * step]);
  }
  F a[4], b[4], p[4], q[4];
  MMN_UNROLL(4)
  for (int y = 0; y < 4; ++y) {
    a[y] = A::add(e[y], e[8 - y]);
    b[y] = A::sub(e[y], e[8 - y]);
    if (y == 0) continue;
    p[y] = A::add(o[y], o[8 - y]);
    q[y] = A::sub(o[y], o[8 - y]);
  }
  const F mid = A::add(a[0], e[4]), far = A::sub(a[0], e[4]), sum13 = A::add(a[1], a[3]);
  const F turn = A::mul(A::set1(kCos2), A::sub(a[1], a[3])), ends = A::add(mid, a[2]);
  out[0] = A::add(ends, sum13);
  out[8 * step] = A::sub(ends, sum13);
  out[4 * step] = A::sub(mid, a[2]);
  out[2 * step] = A::add(far, turn);
  out[6 * step] = A::sub(far, turn);
  out[1 * step] = A::add(b[0], combine<A>(kCos1, b[1], kCos2, b[2], kCos3, b[3]));
  out[3 * step] = A::add(b[0], combine<A>(kCos3, b[1], -kCos2, b[2], -kCos1, b[3]));
  out[5 * step] = A::add(b[0], combine<A>(-kCos3, b[1], -kCos2, b[2], kCos1, b[3]));
  out[7 * step] = A::add(b[0], combine<A>(-kCos1, b[1], kCos2, b[2], -kCos3, b[3]));
  F* const sines = out + 8 * step;
  sines[1 * step] = A::add(combine<A>(kCos3, p[1], kCos2, p[2], kCos1, p[3]), o[4]);
  sines[3 * step] = A::sub(combine<A>(kCos1, p[1], kCos2, p[2], -kCos3, p[3]), o[4]);
  sines[5 * step] = A::add(combine<A>(kCos1, p[1], -kCos2, p[2], -kCos3, p[3]), o[4]);
  sines[7 * step] = A::sub(combine<A>(kCos3, p[1], -kCos2, p[2], kCos1, p[3]), o[4]);
  const F outer = A::mul(A::set1(kCos2), A::add(q[1], q[3]));
  sines[2 * step] = A::add(outer, q[2]);
  sines[4 * step] = A::sub(q[1], q[3]);
  sines[6 * step] = A::sub(outer, q[2]);
}

// The inverse of fourier_line_forward, times 16, by the same symmetries backwards; `out` takes outputs [0, m).
template <class A, class F = typename A::F>
MMN_DEVICE void fourier_line_inverse(const F* in, int step, int m, F* out) {
  const F two = A::set1(2.0f);
  F c[9], s[8];
  MMN_UNROLL(7)
  for (int u = 1; u < 8; ++u) {
    c[u] = A::mul(two, in[u * step]);
    s[u] = A::mul(two, in[(8 + u) * step]);
  }
  const F sum08 = A::add(in[0], in[8 * step]), difference08 = A::sub(in[0], in[8 * step]);
  const F sum26 = A::add(c[2], c[6]), turn = A::mul(A::set1(kCos2), A::sub(c[2], c[6]));
  const F ends = A::add(sum08, c[4]);
  const F even[5] = {A::add(ends, sum26), A::add(difference08, turn), A::sub(sum08, c[4]),
                          A::sub(difference08, turn), A::sub(ends, sum26)};
  const F sum17 = A::add(c[1], c[7]), sum35 = A::add(c[3], c[5]);
  const F d17 = A::sub(c[1], c[7]), d35 = A::sub(c[3], c[5]);
  const F one = A::set1(kCos1), two8 = A::set1(kCos2), three = A::set1(kCos3);
  const F odd[4] = {A::add(sum17, sum35), A::fma(one, d17, A::mul(three, d35)),
                         A::mul(two8, A::sub(sum17, sum35)), A::fnma(one, d35, A::mul(three, d17))};
  const F t17 = A::add(s[1], s[7]), t35 = A::add(s[3], s[5]);
  const F f17 = A::sub(s[1], s[7]), f35 = A::sub(s[3], s[5]);
  const F outer = A::mul(two8, A::add(s[2], s[6]));
  const F sine_odd[5] = {f17, A::fma(one, t35, A::mul(three, t17)), A::mul(two8, A::add(f17, f35)),
                              A::fnma(three, t35, A::mul(one, t17)), A::sub(f17, f35)};
  const F sine_even[4] = {outer, A::add(outer, s[4]), A::sub(s[2], s[6]), A::sub(outer, s[4])};
  F y[16];
  y[0] = A::add(even[0], odd[0]);
  y[8] = A::sub(even[0], odd[0]);
  y[4] = A::add(even[4], sine_odd[4]);
  y[12] = A::sub(even[4], sine_odd[4]);
  MMN_UNROLL(3)
  for (int p = 1; p < 4; ++p) {
    const F near = A::add(even[p], odd[p]), far = A::sub(even[p], odd[p]);
    const F near_sine = A::add(sine_odd[p], sine_even[p]), far_sine = A::sub(sine_odd[p], sine_even[p]);
    y[p] = A::add(near, near_sine);
    y[16 - p] = A::sub(near, near_sine);
    y[8 - p] = A::add(far, far_sine);
    y[8 + p] = A::sub(far, far_sine);
  }
  MMN_UNROLL(16)
  for (int p = 0; p < 16; ++p) {
    if (p < m) out[p * step] = y[p];
  }
}

}  // namespace mmn_fast
