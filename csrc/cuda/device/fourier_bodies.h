// Bodies of fourier_tiles and fourier_cells; see ops/gpu. A block holds some channels of one tile of one video. In each
// phase lines of N go through registers; between phases the tile is in shared memory. The spectrum of a line has its
// cosine sums in places 0..N/2, then its sine sums.
#pragma once

#include "cuda/device/fourier_sums.h"
#include "cuda/run.h"
#include "ops/gpu/fourier_cells.h"
#include "ops/gpu/fourier_tiles.h"

namespace mmn_fast {

constexpr int kTileLanes = 16;                        // threads per line; each takes V channels
constexpr int kTileLines = kRunThreads / kTileLanes;  // lines that a block works on at once
constexpr float kRoot2 = 1.41421356237309505f;

// V lines side by side.
template <int V>
struct Lines {
  struct F {
    float values[V];
  };
  static MMN_DEVICE F set1(float x) {
    return each([&](int) { return x; });
  }
  static MMN_DEVICE F add(F a, F b) {
    return each([&](int v) { return a.values[v] + b.values[v]; });
  }
  static MMN_DEVICE F sub(F a, F b) {
    return each([&](int v) { return a.values[v] - b.values[v]; });
  }
  static MMN_DEVICE F mul(F a, F b) {
    return each([&](int v) { return a.values[v] * b.values[v]; });
  }
  static MMN_DEVICE F fma(F a, F b, F c) {
    return each([&](int v) { return fmaf(a.values[v], b.values[v], c.values[v]); });
  }
  static MMN_DEVICE F fnma(F a, F b, F c) {
    return each([&](int v) { return fmaf(-a.values[v], b.values[v], c.values[v]); });
  }

 private:
  template <class Value>
  static MMN_DEVICE F each(Value value) {
    F out;
    MMN_UNROLL_ALL
    for (int v = 0; v < V; ++v) out.values[v] = value(v);
    return out;
  }
};

// A quad: planes 4 q .. 4 q + 3 of the spectrum of an N x N tile, and the places of the line sums that form them. In the
// order of tile_transform.h there are quads of Re and Im of F(u, v) and F(u, -v), which mix four sums; quads of two
// points with a frequency of 0 or N/2, in which each plane is one sum (Im is its negative); and the four real points.
struct Quad {
  int places[4];
  bool mixed, real;
};

template <int N>
MMN_DEVICE Quad quad_of(int q) {
  constexpr int kLast = N / 2, kInner = kLast - 1;  // the sine sum of frequency u is at place kLast + u
  if (q < kInner * kInner) {
    const int u = q / kInner + 1, v = q % kInner + 1;
    return {{u * N + v, (kLast + u) * N + kLast + v, (kLast + u) * N + v, u * N + kLast + v}, true, false};
  }
  q -= kInner * kInner;
  if (q < kInner) return {{q + 1, kLast + q + 1, kLast * N + q + 1, kLast * N + kLast + q + 1}, false, false};
  q -= kInner;
  if (q < kInner) {
    const int cosine = (q + 1) * N, sine = (kLast + q + 1) * N;
    return {{cosine, sine, cosine + kLast, sine + kLast}, false, false};
  }
  return {{0, kLast, kLast * N, kLast * N + kLast}, false, true};
}

// The share of the work for each thread of a block.
template <int V>
struct TilePart {
  int64_t tile, video, tile_row, first_channel;
  MMN_DEVICE TilePart(int64_t item, int64_t channels, int64_t videos) {
    const int64_t parts = parts_of(channels);
    tile_row = item / parts;
    tile = tile_row / videos;
    video = tile_row % videos;
    first_channel = item % parts * kTileLanes * V;
  }
  static MMN_DEVICE int64_t parts_of(int64_t channels) { return (channels + kTileLanes * V - 1) / (kTileLanes * V); }
};

template <class T, int V, int N>
struct FourierTilesBody {
  using A = Lines<V>;
  using F = typename A::F;
  FourierTilesArgs a;
  MMN_DEVICE int64_t items() const { return a.tiles * a.videos * TilePart<V>::parts_of(a.channels); }
  template <class Group>
  MMN_DEVICE void operator()(const Group& group, int64_t item) const {
    MMN_SHARED F sums[N * N * kTileLanes];
    const TilePart<V> part(item, a.channels, a.videos);
    const int32_t* inputs = a.inputs + part.tile * (N * N);
    group.each([&](int thread) {
      const int lane = thread % kTileLanes;
      const int64_t c = part.first_channel + lane * V;
      if (c >= a.channels) return;
      for (int line = thread / kTileLanes; line < N; line += kTileLines) {
        F values[N], spectrum[N];
        MMN_UNROLL_ALL
        for (int x = 0; x < N; ++x) {
          const int32_t row = inputs[line * N + x];
          Pack<T, V> value = {};
          if (row >= 0) value = load_pack<T, V>(a.rows, (row * a.videos + part.video) * a.channels + c);
          MMN_UNROLL_ALL
          for (int v = 0; v < V; ++v) values[x].values[v] = value[v];
        }
        FourierLine<N>::template forward<A>(values, spectrum);
        MMN_UNROLL_ALL
        for (int x = 0; x < N; ++x) sums[(line * N + x) * kTileLanes + lane] = spectrum[x];
      }
    });
    group.each([&](int thread) {
      const int lane = thread % kTileLanes;
      if (part.first_channel + lane * V >= a.channels) return;
      for (int column = thread / kTileLanes; column < N; column += kTileLines) {
        F values[N], spectrum[N];
        MMN_UNROLL_ALL
        for (int y = 0; y < N; ++y) values[y] = sums[(y * N + column) * kTileLanes + lane];
        FourierLine<N>::template forward<A>(values, spectrum);
        MMN_UNROLL_ALL
        for (int y = 0; y < N; ++y) sums[(y * N + column) * kTileLanes + lane] = spectrum[y];
      }
    });
    group.each([&](int thread) {
      const int lane = thread % kTileLanes;
      const int64_t c = part.first_channel + lane * V, plane = a.tiles * a.videos * a.channels;
      if (c >= a.channels) return;
      for (int q = thread / kTileLanes; q < N * N / 4; q += kTileLines) {
        const Quad quad = quad_of<N>(q);
        const F cc = sums[quad.places[0] * kTileLanes + lane], ss = sums[quad.places[1] * kTileLanes + lane];
        const F sc = sums[quad.places[2] * kTileLanes + lane], cs = sums[quad.places[3] * kTileLanes + lane];
        const F scale = A::set1((quad.real ? 1.0f : kRoot2) / (N * N));
        const F sign = A::set1(quad.real ? 1.0f : -1.0f);
        const F values[4] = {
            quad.mixed ? A::sub(cc, ss) : cc,
            quad.mixed ? A::mul(sign, A::add(sc, cs)) : A::mul(sign, ss),
            quad.mixed ? A::add(cc, ss) : sc,
            quad.mixed ? A::sub(cs, sc) : A::mul(sign, cs),
        };
        MMN_UNROLL_ALL
        for (int i = 0; i < 4; ++i) {
          const F scaled = A::mul(scale, values[i]);
          Pack<T, V> out;
          MMN_UNROLL_ALL
          for (int v = 0; v < V; ++v) out.set(v, scaled.values[v]);
          store_pack<T, V>(a.spectra, (4 * q + i) * plane + part.tile_row * a.channels + c, out);
        }
      }
    });
  }
};

template <class T, int V, int N>
struct FourierCellsBody {
  using A = Lines<V>;
  using F = typename A::F;
  FourierCellsArgs a;
  MMN_DEVICE int64_t items() const { return a.tiles * a.videos * TilePart<V>::parts_of(a.channels); }
  template <class Group>
  MMN_DEVICE void operator()(const Group& group, int64_t item) const {
    MMN_SHARED F sums[N * N * kTileLanes];
    const TilePart<V> part(item, a.channels, a.videos);
    const int m = a.m;
    group.each([&](int thread) {
      const int lane = thread % kTileLanes;
      const int64_t c = part.first_channel + lane * V, plane = a.tiles * a.videos * a.channels;
      if (c >= a.channels) return;
      for (int q = thread / kTileLanes; q < N * N / 4; q += kTileLines) {
        const Quad quad = quad_of<N>(q);
        F in[4];
        MMN_UNROLL_ALL
        for (int i = 0; i < 4; ++i) {
          const Pack<T, V> value = load_pack<T, V>(a.spectra, (4 * q + i) * plane + part.tile_row * a.channels + c);
          MMN_UNROLL_ALL
          for (int v = 0; v < V; ++v) in[i].values[v] = value[v];
        }
        const F scale = A::set1(quad.real ? 1.0f : (quad.mixed ? kRoot2 / 4 : kRoot2 / 2));
        const F sign = A::set1(quad.real ? 1.0f : -1.0f);
        const F values[4] = {
            quad.mixed ? A::add(in[0], in[2]) : in[0],
            quad.mixed ? A::sub(in[2], in[0]) : A::mul(sign, in[1]),
            quad.mixed ? A::mul(sign, A::add(in[1], in[3])) : in[2],
            quad.mixed ? A::sub(in[3], in[1]) : A::mul(sign, in[3]),
        };
        MMN_UNROLL_ALL
        for (int i = 0; i < 4; ++i) sums[quad.places[i] * kTileLanes + lane] = A::mul(scale, values[i]);
      }
    });
    group.each([&](int thread) {
      const int lane = thread % kTileLanes;
      if (part.first_channel + lane * V >= a.channels) return;
      for (int column = thread / kTileLanes; column < N; column += kTileLines) {
        F spectrum[N], values[N];
        MMN_UNROLL_ALL
        for (int y = 0; y < N; ++y) spectrum[y] = sums[(y * N + column) * kTileLanes + lane];
        FourierLine<N>::template inverse<A>(spectrum, values);
        MMN_UNROLL_ALL
        for (int y = 0; y < N; ++y) {
          if (y < m) sums[(y * N + column) * kTileLanes + lane] = values[y];
        }
      }
    });
    group.each([&](int thread) {
      const int lane = thread % kTileLanes;
      const int64_t c = part.first_channel + lane * V;
      if (c >= a.channels) return;
      for (int line = thread / kTileLanes; line < m; line += kTileLines) {
        F spectrum[N], values[N];
        MMN_UNROLL_ALL
        for (int x = 0; x < N; ++x) spectrum[x] = sums[(line * N + x) * kTileLanes + lane];
        FourierLine<N>::template inverse<A>(spectrum, values);
        const int32_t* outputs = a.outputs + (part.tile * m + line) * m;
        MMN_UNROLL_ALL
        for (int x = 0; x < N; ++x) {
          const int32_t cell = x < m ? outputs[x] : -1;
          if (cell < 0) continue;
          const float weight = a.cell_weights[cell];
          Pack<T, V> out;
          MMN_UNROLL_ALL
          for (int v = 0; v < V; ++v) {
            const float value = values[x].values[v] + a.bias[c + v];
            out.set(v, (value < 0.0f ? 0.0f : value) * weight);  // like torch's ReLU: NaN stays NaN
          }
          store_pack<T, V>(a.out, (cell * a.videos + part.video) * a.channels + c, out);
        }
      }
    });
  }
};

// A thread takes two channels in tiles of up to 16 if every row allows it. In larger tiles it takes one: two would need
// too many registers for four blocks to run at once.
template <template <class, int, int> class Body, int N, class T, class Args, class Runner>
void run_fourier_side(const Args& args, const void* rows, const Runner& runner) {
  if constexpr (N <= 16) {
    if (args.channels % 2 == 0 && reinterpret_cast<uintptr_t>(rows) % sizeof(Pack<T, 2>) == 0) {
      return runner.blocks_of_threads(Body<T, 2, N>{args});
    }
  }
  runner.blocks_of_threads(Body<T, 1, N>{args});
}

template <template <class, int, int> class Body, class T, class Args, class Runner>
void run_fourier_of(const Args& args, const void* rows, const Runner& runner) {
  if (args.n == 12) return run_fourier_side<Body, 12, T>(args, rows, runner);
  if (args.n == 24) return run_fourier_side<Body, 24, T>(args, rows, runner);
  run_fourier_side<Body, 16, T>(args, rows, runner);
}

template <template <class, int, int> class Body, class Args, class Runner>
void run_fourier(const Args& args, const void* rows, const Runner& runner) {
  if (args.dtype == Dtype::kFloat16) return run_fourier_of<Body, Half>(args, rows, runner);
  run_fourier_of<Body, float>(args, rows, runner);
}

template <class Runner>
void run_fourier_tiles(const FourierTilesArgs& args, const Runner& runner) {
  run_fourier<FourierTilesBody>(args, args.rows, runner);
}

template <class Runner>
void run_fourier_cells(const FourierCellsArgs& args, const Runner& runner) {
  run_fourier<FourierCellsBody>(args, args.out, runner);
}

}  // namespace mmn_fast
