// The tile transforms, written once over the Vec of the file that includes this. See cpu/tile_transform.h.
namespace mmn_fast::MMN_ISA {
namespace {

// out[o * out_step] = sum over i < kIn of matrix[o, i] * in[i * in_step], for each of `lines` lines.
template <int kIn>
void apply_matrix(const float* matrix, int outs, const Vec::F* in, int in_step, int in_line, Vec::F* out, int out_step,
                  int out_line, int lines) {
  for (int line = 0; line < lines; ++line) {
    Vec::F x[kIn];
#pragma GCC unroll 16
    for (int i = 0; i < kIn; ++i) x[i] = in[line * in_line + i * in_step];
    for (int o = 0; o < outs; ++o) {
      Vec::F sum = Vec::mul(Vec::set1(matrix[o * kIn]), x[0]);
#pragma GCC unroll 16
      for (int i = 1; i < kIn; ++i) sum = Vec::fma(Vec::set1(matrix[o * kIn + i]), x[i], sum);
      out[line * out_line + o * out_step] = sum;
    }
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
      apply_matrix<kTile>(args.matrix, kTile, x, kTile, 1, y, kTile, 1, kTile);
      apply_matrix<kTile>(args.matrix, kTile, y, 1, kTile, x, 1, kTile, kTile);
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
  const Vec::F zero = Vec::set1(0.0f), half = Vec::set1(0.5f);
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
                x[cc] = Vec::mul(half, Vec::add(a, d));
                x[ss] = Vec::mul(half, Vec::sub(d, a));
                x[sc] = Vec::mul(half, Vec::sub(zero, Vec::add(b, e)));
                x[cs] = Vec::mul(half, Vec::sub(e, b));
              },
              [&](int point, int cosine, int sine) {
                x[cosine] = re(point);
                x[sine] = Vec::sub(zero, im(point));
              },
              [&](int point, int cosine) { x[cosine] = re(point); });
        }
      }
      apply_matrix<kTile>(args.matrix, m, x, kTile, 1, y, kTile, 1, kTile);
      apply_matrix<kTile>(args.matrix, m, y, 1, kTile, x, 1, kTile, m);
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
