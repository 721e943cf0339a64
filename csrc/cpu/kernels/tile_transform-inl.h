// The tile transforms, over the Vec of the including file. See cpu/kernels/tile_transform.h.
#include "common/fourier_lines.h"

namespace mmn_fast::MMN_ISA {
namespace {

// Transforms one line of a Winograd tile. The points are 0, three pairs of opposite numbers, and infinity. The points of
// a pair share their sums over even and over odd powers; `bt` gives the coefficients and is zero elsewhere.
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
  Vec::F halves[2][3];  // each pair's sum (even powers) and difference (odd powers)
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

// Visits every spectral point with the places of its real coefficients, in the order of cpu/kernels/tile_transform.h.
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
          fourier_line_forward<Vec>(x + line, kTile, y + line);
        } else {
          winograd_forward(args.matrix, x + line, kTile, y + line);
        }
      }
      for (int line = 0; line < kTile; ++line) {
        if (kTile == kSpectralTile) {
          fourier_line_forward<Vec>(y + line * kTile, 1, x + line * kTile);
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
          fourier_line_inverse<Vec>(x + line, kTile, m, y + line);
        } else {
          winograd_inverse(args.matrix, m, x + line, kTile, y + line);
        }
      }
      for (int line = 0; line < m; ++line) {
        if (kTile == kSpectralTile) {
          fourier_line_inverse<Vec>(y + line * kTile, 1, m, x + line * kTile);
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

// Transforms items [first, last); an item is tile * group + video.
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
