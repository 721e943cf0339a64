// The discrete Fourier transform of a line of N reals: sums over symmetries for N = 12 or 24, common/fourier_lines.h for
// N = 16. All have the same order: cosine sums in places 0..N/2, then sine sums of 1..N/2-1.
#pragma once

#include "common/fourier_lines.h"

namespace mmn_fast {

// cos(2 pi j / 24)
MMN_DEVICE constexpr float cosine_of_24(int j) {
  j %= 24;
  j = j > 12 ? 24 - j : j;
  const int q = j > 6 ? 12 - j : j;
  const float value = q == 0   ? 1.0f
                      : q == 1 ? 0.96592582628906829f
                      : q == 2 ? 0.86602540378443865f
                      : q == 3 ? 0.70710678118654752f
                      : q == 4 ? 0.5f
                      : q == 5 ? 0.25881904510252076f
                               : 0.0f;
  return j > 6 ? -value : value;
}

// sum + c x; the compiler knows c once loops are unrolled.
template <class A, class F = typename A::F>
MMN_DEVICE F plus_scaled(F sum, float c, F x) {
  if (c == 0.0f) return sum;
  if (c == 1.0f) return A::add(sum, x);
  if (c == -1.0f) return A::sub(sum, x);
  return A::fma(A::set1(c), x, sum);
}

template <int N>
struct FourierLine {
  static_assert(24 % N == 0 && N % 4 == 0, "the cosines are those of 24, the symmetries those of quarters");
  static constexpr int kHalf = N / 2, kQuarter = N / 4;

  static MMN_DEVICE constexpr float cosine(int j) { return cosine_of_24(j * (24 / N)); }
  static MMN_DEVICE constexpr float sine(int j) { return cosine(j + 3 * kQuarter); }

  // Places y and N - y have the same cosine and opposite sines. So have y and N/2 - y, up to a sign that depends on the
  // frequency's parity.
  template <class A, class F = typename A::F>
  static MMN_DEVICE void forward(const F* in, F* out) {
    F e[kHalf + 1], o[kHalf], even[kQuarter], odd[kQuarter], sine_odd[kQuarter], sine_even[kQuarter];
    e[0] = in[0];
    e[kHalf] = in[kHalf];
    MMN_UNROLL_ALL
    for (int y = 1; y < kHalf; ++y) {
      e[y] = A::add(in[y], in[N - y]);
      o[y] = A::sub(in[y], in[N - y]);
    }
    MMN_UNROLL_ALL
    for (int y = 0; y < kQuarter; ++y) {
      even[y] = A::add(e[y], e[kHalf - y]);
      odd[y] = A::sub(e[y], e[kHalf - y]);
      if (y == 0) continue;
      sine_odd[y] = A::add(o[y], o[kHalf - y]);
      sine_even[y] = A::sub(o[y], o[kHalf - y]);
    }
    MMN_UNROLL_ALL
    for (int u = 0; u <= kHalf; ++u) {
      F sum = u % 2 == 0 ? plus_scaled<A>(even[0], cosine(u * kQuarter), e[kQuarter]) : odd[0];
      MMN_UNROLL_ALL
      for (int y = 1; y < kQuarter; ++y) sum = plus_scaled<A>(sum, cosine(u * y), u % 2 == 0 ? even[y] : odd[y]);
      out[u] = sum;
    }
    MMN_UNROLL_ALL
    for (int u = 1; u < kHalf; ++u) {
      F sum = u % 2 == 0 ? A::set1(0.0f) : A::mul(A::set1(sine(u * kQuarter)), o[kQuarter]);
      MMN_UNROLL_ALL
      for (int y = 1; y < kQuarter; ++y) {
        sum = plus_scaled<A>(sum, sine(u * y), u % 2 == 0 ? sine_even[y] : sine_odd[y]);
      }
      out[kHalf + u] = sum;
    }
  }

  // The inverse of `forward`, times N, by the same symmetries backwards.
  template <class A, class F = typename A::F>
  static MMN_DEVICE void inverse(const F* in, F* out) {
    MMN_UNROLL_ALL
    for (int p = 0; p <= kQuarter; ++p) {
      F even = plus_scaled<A>(in[0], p % 2 == 0 ? 1.0f : -1.0f, in[kHalf]);
      F odd = A::set1(0.0f), sine_odd = odd, sine_even = odd;
      MMN_UNROLL_ALL
      for (int u = 1; u < kHalf; ++u) {
        F& cosines = u % 2 == 0 ? even : odd;
        F& sines = u % 2 == 0 ? sine_even : sine_odd;
        cosines = plus_scaled<A>(cosines, 2.0f * cosine(u * p), in[u]);
        sines = plus_scaled<A>(sines, 2.0f * sine(u * p), in[kHalf + u]);
      }
      const F near = A::add(even, odd), far = A::sub(even, odd);
      const F near_sine = A::add(sine_odd, sine_even), far_sine = A::sub(sine_odd, sine_even);
      out[p] = A::add(near, near_sine);
      if (p > 0) out[N - p] = A::sub(near, near_sine);
      if (p < kQuarter) out[kHalf - p] = A::add(far, far_sine);
      if (p > 0 && p < kQuarter) out[kHalf + p] = A::sub(far, far_sine);
    }
  }
};

template <>
struct FourierLine<16> {
  template <class A, class F = typename A::F>
  static MMN_DEVICE void forward(const F* in, F* out) {
    fourier_line_forward<A>(in, 1, out);
  }
  template <class A, class F = typename A::F>
  static MMN_DEVICE void inverse(const F* in, F* out) {
    fourier_line_inverse<A>(in, 1, 16, out);
  }
};

}  // namespace mmn_fast
