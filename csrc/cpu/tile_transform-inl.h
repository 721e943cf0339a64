// The tile transforms, written once over the Vec of the file that includes this. See cpu/tile_transform.h.
namespace mmn_fast::MMN_ISA {
namespace {

// One line of a Winograd tile. Its points are 0, three pairs of opposite numbers, infinity: both of a pair share their
// even and odd halves, which the matrix gives; it is zero elsewhere.
void winograd_forward(const float* bt, const Vec::F* in, int step, Vec::F* out) {
  const auto term = [&](int row, int i) { return Vec::mul(Vec::set1(bt[row * 8 + i]), in[i * step]); };
  const auto add = [&](int row, int i, Vec::F sum) { return Vec::fma(Vec::set1(bt[row * 8 + i]), in[i * step], sum); };
  Vec::F y[8];
  y[0] = add(0, 6, add(0, 4, add(0, 2, term(0, 0))));
  y[7] = add(7, 7, add(7, 5, add(7, 3, term(7, 1))));
#pragma GCC unroll 3
  for (int r = 1; r < 7; r += 2) {
    const Vec::F even = add(r, 6, add(r, 4, term(r, 2))), odd = add(r, 5, add(r, 3, term(r, 1)));
    y[r] = Vec::add(even, odd);
    y[r + 1] = Vec::sub(even, odd);
  }
#pragma GCC unroll 8
  for (int o = 0; o < 8; ++o) out[o * step] = y[o];
}

void winograd_inverse(const float* at, int m, const Vec::F* in, int step, Vec::F* out) {
  Vec::F halves[2][3];  // of each pair the sum, for even powers, and the difference, for odd ones
#pragma GCC unroll 3
  for (int pair = 0; pair < 3; ++pair) {
    halves[0][pair] = Vec::add(in[(2 * pair + 1) * step], in[(2 * pair + 2) * step]);
    halves[1][pair] = Vec::sub(in[(2 * pair + 1) * step], in[(2 * pair + 2) * step]);
  }
  const Vec::F zero_point = in[0], infinity = in[7 * step];
  for (int row = 0; row < m; ++row) {
    const float* a = at + row * 8;
    const Vec::F* half = halves[row % 2];
    Vec::F sum = Vec::mul(Vec::set1(a[1]), half[0]);
    sum = Vec::fma(Vec::set1(a[3]), half[1], sum);
    sum = Vec::fma(Vec::set1(a[5]), half[2], sum);
    if (row == 0) sum = Vec::add(sum, zero_point);
    if (row == m - 1) sum = Vec::add(sum, infinity);
    out[row * step] = sum;
  }
}

constexpr float kCos1 = 0.92387953251128674f;  // cos(pi / 8)
constexpr float kCos2 = 0.70710678118654752f;  // cos(2 pi / 8)
constexpr float kCos3 = 0.38268343236508977f;  // cos(3 pi / 8)

// a x + b y + c z
Vec::F combine(float a, Vec::F x, float b, Vec::F y, float c, Vec::F z) {
  return Vec::fma(Vec::set1(a), x, Vec::fma(Vec::set1(b), y, Vec::mul(Vec::set1(c), z)));
}

// One line of 16 reals to its cosine sums C(0..8) and sine sums S(1..7): x[y] and x[16 - y] share their cosine and
// differ in the sign of their sine, and so do y and 8 - y for even and odd frequencies.
void fourier_forward(const Vec::F* in, int step, Vec::F* out) {
  Vec::F e[9], o[8];
  e[0] = in[0];
  e[8] = in[8 * step];
#pragma GCC unroll 7
  for (int y = 1; y < 8; ++y) {
    e[y] = Vec::add(in[y * step], in[(16 - y) * step]);
    o[y] = Vec::sub(in[y * step], in[(16 - y) * step]);
  }
  Vec::F a[4], b[4], p[4], q[4];
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) {
    a[y] = Vec::add(e[y], e[8 - y]);
    b[y] = Vec::sub(e[y], e[8 - y]);
    if (y == 0) continue;
    p[y] = Vec::add(o[y], o[8 - y]);
    q[y] = Vec::sub(o[y], o[8 - y]);
  }
  const Vec::F mid = Vec::add(a[0], e[4]), far = Vec::sub(a[0], e[4]), sum13 = Vec::add(a[1], a[3]);
  const Vec::F turn = Vec::mul(Vec::set1(kCos2), Vec::sub(a[1], a[3])), ends = Vec::add(mid, a[2]);
  out[0] = Vec::add(ends, sum13);
  out[8 * step] = Vec::sub(ends, sum13);
  out[4 * step] = Vec::sub(mid, a[2]);
  out[2 * step] = Vec::add(far, turn);
  out[6 * step] = Vec::sub(far, turn);
  out[1 * step] = Vec::add(b[0], combine(kCos1, b[1], kCos2, b[2], kCos3, b[3]));
  out[3 * step] = Vec::add(b[0], combine(kCos3, b[1], -kCos2, b[2], -kCos1, b[3]));
  out[5 * step] = Vec::add(b[0], combine(-kCos3, b[1], -kCos2, b[2], kCos1, b[3]));
  out[7 * step] = Vec::add(b[0], combine(-kCos1, b[1], kCos2, b[2], -kCos3, b[3]));
  Vec::F* const sines = out + 8 * step;
  sines[1 * step] = Vec::add(combine(kCos3, p[1], kCos2, p[2], kCos1, p[3]), o[4]);
  sines[3 * step] = Vec::sub(combine(kCos1, p[1], kCos2, p[2], -kCos3, p[3]), o[4]);
  sines[5 * step] = Vec::add(combine(kCos1, p[1], -kCos2, p[2], -kCos3, p[3]), o[4]);
  sines[7 * step] = Vec::sub(combine(kCos3, p[1], -kCos2, p[2], kCos1, p[3]), o[4]);
  const Vec::F outer = Vec::mul(Vec::set1(kCos2), Vec::add(q[1], q[3]));
  sines[2 * step] = Vec::add(outer, q[2]);
  sines[4 * step] = Vec::sub(q[1], q[3]);
  sines[6 * step] = Vec::sub(outer, q[2]);
}

// The inverse of fourier_forward times 16, the same symmetries backwards; `out` takes outputs [0, m).
void fourier_inverse(const Vec::F* in, int step, int m, Vec::F* out) {
  const Vec::F two = Vec::set1(2.0f);
  Vec::F c[9], s[8];
#pragma GCC unroll 7
  for (int u = 1; u < 8; ++u) {
    c[u] = Vec::mul(two, in[u * step]);
    s[u] = Vec::mul(two, in[(8 + u) * step]);
  }
  const Vec::F sum08 = Vec::add(in[0], in[8 * step]), difference08 = Vec::sub(in[0], in[8 * step]);
  const Vec::F sum26 = Vec::add(c[2], c[6]), turn = Vec::mul(Vec::set1(kCos2), Vec::sub(c[2], c[6]));
  const Vec::F ends = Vec::add(sum08, c[4]);
  const Vec::F even[5] = {Vec::add(ends, sum26), Vec::add(difference08, turn), Vec::sub(sum08, c[4]),
                          Vec::sub(difference08, turn), Vec::sub(ends, sum26)};
  const Vec::F sum17 = Vec::add(c[1], c[7]), sum35 = Vec::add(c[3], c[5]);
  const Vec::F d17 = Vec::sub(c[1], c[7]), d35 = Vec::sub(c[3], c[5]);
  const Vec::F one = Vec::set1(kCos1), two8 = Vec::set1(kCos2), three = Vec::set1(kCos3);
  const Vec::F odd[4] = {Vec::add(sum17, sum35), Vec::fma(one, d17, Vec::mul(three, d35)),
                         Vec::mul(two8, Vec::sub(sum17, sum35)), Vec::fnma(one, d35, Vec::mul(three, d17))};
  const Vec::F t17 = Vec::add(s[1], s[7]), t35 = Vec::add(s[3], s[5]);
  const Vec::F f17 = Vec::sub(s[1], s[7]), f35 = Vec::sub(s[3], s[5]);
  const Vec::F outer = Vec::mul(two8, Vec::add(s[2], s[6]));
  const Vec::F sine_odd[5] = {f17, Vec::fma(one, t35, Vec::mul(three, t17)), Vec::mul(two8, Vec::add(f17, f35)),
                              Vec::fnma(three, t35, Vec::mul(one, t17)), Vec::sub(f17, f35)};
  const Vec::F sine_even[4] = {outer, Vec::add(outer, s[4]), Vec::sub(s[2], s[6]), Vec::sub(outer, s[4])};
  Vec::F y[16];
  y[0] = Vec::add(even[0], odd[0]);
  y[8] = Vec::sub(even[0], odd[0]);
  y[4] = Vec::add(even[4], sine_odd[4]);
  y[12] = Vec::sub(even[4], sine_odd[4]);
#pragma GCC unroll 3
  for (int p = 1; p < 4; ++p) {
    const Vec::F near = Vec::add(even[p], odd[p]), far = Vec::sub(even[p], odd[p]);
    const Vec::F near_sine = Vec::add(sine_odd[p], sine_even[p]), far_sine = Vec::sub(sine_odd[p], sine_even[p]);
    y[p] = Vec::add(near, near_sine);
    y[16 - p] = Vec::sub(near, near_sine);
    y[8 - p] = Vec::add(far, far_sine);
    y[8 + p] = Vec::sub(far, far_sine);
  }
#pragma GCC unroll 16
  for (int p = 0; p < 16; ++p) {
    if (p < m) out[p * step] = y[p];
  }
}

// Visits every spectral point with the places of its real coefficients; see the order in cpu/tile_transform.h.
template <class Pair, class Single, class Real>
void for_each_spectral_point(Pair&& pair, Single&& single, Real&& real) {
  constexpr int kSin = 8;  // row of sin u is kSin + u
  int point = 0;
  for (int u = 1; u < 8; ++u) {
    for (int v = 1; v < 8; ++v, point += 2) {
      pair(point, u * 16 + v, (kSin + u) * 16 + kSin + v, (kSin + u) * 16 + v, u * 16 + kSin + v);
    }
  }
  for (int v = 1; v < 8; ++v, point += 2) {
    single(point, v, kSin + v);
    single(point + 1, 8 * 16 + v, 8 * 16 + kSin + v);
  }
  for (int u = 1; u < 8; ++u, point += 2) {
    single(point, u * 16, (kSin + u) * 16);
    single(point + 1, u * 16 + 8, (kSin + u) * 16 + 8);
  }
  real(point, 0), real(point + 1, 8), real(point + 2, 8 * 16), real(point + 3, 8 * 16 + 8);
}

template <int kTile>
void forward_tiles(const TileTransformArgs& args, int64_t first, int64_t last, bool spectral) {
  constexpr int kCells = kTile * kTile;
  const Vec::F zero = Vec::set1(0.0f);
  Vec::F x[kCells], y[kCells];
  for (int64_t i = first; i < last; ++i) {
    const int32_t* cells = args.cells + i / args.group * kCells;
    float* point_row = args.points + i * args.point_row;
    for (int64_t c = 0; c < args.width; c += Vec::kWidth) {
      for (int cell = 0; cell < kCells; ++cell) {
        const int64_t row = cells[cell] * args.group + i % args.group;
        x[cell] = cells[cell] < 0 ? zero : Vec::load(args.rows + row * args.row_stride + c);
      }
      for (int line = 0; line < kTile; ++line) {
        if (kTile == kSpectralTile) {
          fourier_forward(x + line, kTile, y + line);
        } else {
          winograd_forward(args.matrix, x + line, kTile, y + line);
        }
      }
      for (int line = 0; line < kTile; ++line) {
        if (kTile == kSpectralTile) {
          fourier_forward(y + line * kTile, 1, x + line * kTile);
        } else {
          winograd_forward(args.matrix, y + line * kTile, 1, x + line * kTile);
        }
      }
      float* out = point_row + c;
      if (!spectral) {
        for (int p = 0; p < kCells; ++p) Vec::store(out + p * args.point_stride, x[p]);
        continue;
      }
      const auto put = [&](int point, Vec::F re, Vec::F im) {
        Vec::store(out + point * args.point_stride, re);
        Vec::store(out + point * args.point_stride + args.imaginary, im);
      };
      if constexpr (kTile == kSpectralTile) {
        for_each_spectral_point(
            [&](int point, int cc, int ss, int sc, int cs) {
              put(point, Vec::sub(x[cc], x[ss]), Vec::sub(zero, Vec::add(x[sc], x[cs])));
              put(point + 1, Vec::add(x[cc], x[ss]), Vec::sub(x[cs], x[sc]));
            },
            [&](int point, int cosine, int sine) { put(point, x[cosine], Vec::sub(zero, x[sine])); },
            [&](int point, int cosine) { Vec::store(out + point * args.point_stride, x[cosine]); });
      }
    }
  }
}

template <int kTile>
void inverse_tiles(const TileTransformArgs& args, int64_t first, int64_t last, bool spectral) {
  constexpr int kCells = kTile * kTile;
  const Vec::F zero = Vec::set1(0.0f), half_scale = Vec::set1(0.5f / 256), scale = Vec::set1(1.0f / 256);
  const int m = static_cast<int>(args.m);
  Vec::F x[kCells], y[kCells];
  for (int64_t i = first; i < last; ++i) {
    const int32_t* cells = args.cells + i / args.group * m * m;
    const float* point_row = args.points + i * args.point_row;
    for (int64_t c = 0; c < args.width; c += Vec::kWidth) {
      const float* in = point_row + c;
      if (!spectral) {
        for (int p = 0; p < kCells; ++p) x[p] = Vec::load(in + p * args.point_stride);
      }
      if constexpr (kTile == kSpectralTile) {
        const auto re = [&](int point) { return Vec::load(in + point * args.point_stride); };
        const auto im = [&](int point) { return Vec::load(in + point * args.point_stride + args.imaginary); };
        if (spectral) {
          for_each_spectral_point(
              [&](int point, int cc, int ss, int sc, int cs) {
                const Vec::F a = re(point), b = im(point), d = re(point + 1), e = im(point + 1);
                x[cc] = Vec::mul(half_scale, Vec::add(a, d));
                x[ss] = Vec::mul(half_scale, Vec::sub(d, a));
                x[sc] = Vec::mul(half_scale, Vec::sub(zero, Vec::add(b, e)));
                x[cs] = Vec::mul(half_scale, Vec::sub(e, b));
              },
              [&](int point, int cosine, int sine) {
                x[cosine] = Vec::mul(scale, re(point));
                x[sine] = Vec::mul(scale, Vec::sub(zero, im(point)));
              },
              [&](int point, int cosine) { x[cosine] = Vec::mul(scale, re(point)); });
        }
      }
      for (int line = 0; line < kTile; ++line) {
        if (kTile == kSpectralTile) {
          fourier_inverse(x + line, kTile, m, y + line);
        } else {
          winograd_inverse(args.matrix, m, x + line, kTile, y + line);
        }
      }
      for (int line = 0; line < m; ++line) {
        if (kTile == kSpectralTile) {
          fourier_inverse(y + line * kTile, 1, m, x + line * kTile);
        } else {
          winograd_inverse(args.matrix, m, y + line * kTile, 1, x + line * kTile);
        }
      }
      const Vec::F bias = Vec::load(args.bias + c);
      for (int p = 0; p < m; ++p) {
        for (int q = 0; q < m; ++q) {
          if (cells[p * m + q] < 0) continue;
          const int64_t row = cells[p * m + q] * args.group + i % args.group;
          const Vec::F sum = Vec::add(x[p * kTile + q], bias);
          const Vec::F weight = Vec::set1(args.cell_weights[cells[p * m + q]]);
          Vec::store(args.rows + row * args.row_stride + c, Vec::mul(args.relu ? Vec::max(zero, sum) : sum, weight));
        }
      }
    }
  }
}

// Items [first, last): tile * group + video.
void tile_forward_f32(const TileTransformArgs& args, int64_t first, int64_t last) {
  if (args.tile == 8) {
    forward_tiles<8>(args, first, last, false);
  } else {
    forward_tiles<kSpectralTile>(args, first, last, true);
  }
}

void tile_inverse_f32(const TileTransformArgs& args, int64_t first, int64_t last) {
  if (args.tile == 8) {
    inverse_tiles<8>(args, first, last, false);
  } else {
    inverse_tiles<kSpectralTile>(args, first, last, true);
  }
}

}  // namespace
}  // namespace mmn_fast::MMN_ISA
