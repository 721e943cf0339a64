// Bodies of fourier_tiles and fourier_cells; see ops/gpu_ops.h. A block holds some channels of one tile of one video: in
// phases, lines of 16 go through registers, and the tile in between through shared memory. The spectrum of a line has its
// cosine sums in places 0..8, its sine sums in places 9..15.
#pragma once

#include "common/fourier_lines.h"
#include "cuda/run.h"

namespace mmn_fast {

constexpr int kTileSide = 16, kTilePlaces = kTileSide * kTileSide, kTileQuads = kTilePlaces / 4;
constexpr int kTileLanes = kRunThreads / kTileSide;  // threads of a line, V channels each
constexpr int kSines = 8;                            // the sine sum of frequency u is at place 8 + u
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

// Planes 4 q .. 4 q + 3 of a spectrum, and the places of the line sums that they are made of. In the order of
// cpu/tile_transform.h: 49 quads Re and Im of F(u, v) and F(u, -v), which mix their four sums; 14 quads of two points
// with a frequency of 0 or 8, each plane one sum (Im minus it); the four real points.
struct Quad {
  int places[4];
  bool mixed, real;
};

MMN_DEVICE Quad quad_of(int q) {
  constexpr int kRow = kTileSide, kInner = 7, kLast = 8;
  if (q < kInner * kInner) {
    const int u = q / kInner + 1, v = q % kInner + 1;
    return {{u * kRow + v, (kSines + u) * kRow + kSines + v, (kSines + u) * kRow + v, u * kRow + kSines + v}, true, false};
  }
  q -= kInner * kInner;
  if (q < kInner) return {{q + 1, kSines + q + 1, kLast * kRow + q + 1, kLast * kRow + kSines + q + 1}, false, false};
  q -= kInner;
  if (q < kInner) {
    const int cosine = (q + 1) * kRow, sine = (kSines + q + 1) * kRow;
    return {{cosine, sine, cosine + kLast, sine + kLast}, false, false};
  }
  return {{0, kLast, kLast * kRow, kLast * kRow + kLast}, false, true};
}

// What a block's threads are to each other.
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

template <class T, int V>
struct FourierTilesBody {
  using A = Lines<V>;
  using F = typename A::F;
  FourierTilesArgs a;
  MMN_DEVICE int64_t items() const { return a.tiles * a.videos * TilePart<V>::parts_of(a.channels); }
  template <class Group>
  MMN_DEVICE void operator()(const Group& group, int64_t item) const {
    MMN_SHARED F sums[kTilePlaces * kTileLanes];
    const TilePart<V> part(item, a.channels, a.videos);
    const int32_t* inputs = a.inputs + part.tile * kTilePlaces;
    group.each([&](int thread) {
      const int line = thread / kTileLanes, lane = thread % kTileLanes;
      const int64_t c = part.first_channel + lane * V;
      if (c >= a.channels) return;
      F values[kTileSide], spectrum[kTileSide];
      MMN_UNROLL_ALL
      for (int x = 0; x < kTileSide; ++x) {
        const int32_t row = inputs[line * kTileSide + x];
        Pack<T, V> value = {};
        if (row >= 0) value = load_pack<T, V>(a.rows, (row * a.videos + part.video) * a.channels + c);
        MMN_UNROLL_ALL
        for (int v = 0; v < V; ++v) values[x].values[v] = value[v];
      }
      fourier_line_forward<A>(values, 1, spectrum);
      MMN_UNROLL_ALL
      for (int x = 0; x < kTileSide; ++x) sums[(line * kTileSide + x) * kTileLanes + lane] = spectrum[x];
    });
    group.each([&](int thread) {
      const int column = thread / kTileLanes, lane = thread % kTileLanes;
      if (part.first_channel + lane * V >= a.channels) return;
      F values[kTileSide], spectrum[kTileSide];
      MMN_UNROLL_ALL
      for (int y = 0; y < kTileSide; ++y) values[y] = sums[(y * kTileSide + column) * kTileLanes + lane];
      fourier_line_forward<A>(values, 1, spectrum);
      MMN_UNROLL_ALL
      for (int y = 0; y < kTileSide; ++y) sums[(y * kTileSide + column) * kTileLanes + lane] = spectrum[y];
    });
    group.each([&](int thread) {
      const int lane = thread % kTileLanes;
      const int64_t c = part.first_channel + lane * V, plane = a.tiles * a.videos * a.channels;
      if (c >= a.channels) return;
      for (int q = thread / kTileLanes; q < kTileQuads; q += kTileSide) {
        const Quad quad = quad_of(q);
        const F cc = sums[quad.places[0] * kTileLanes + lane], ss = sums[quad.places[1] * kTileLanes + lane];
        const F sc = sums[quad.places[2] * kTileLanes + lane], cs = sums[quad.places[3] * kTileLanes + lane];
        const F scale = A::set1((quad.real ? 1.0f : kRoot2) / kTilePlaces);
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

template <class T, int V>
struct FourierCellsBody {
  using A = Lines<V>;
  using F = typename A::F;
  FourierCellsArgs a;
  MMN_DEVICE int64_t items() const { return a.tiles * a.videos * TilePart<V>::parts_of(a.channels); }
  template <class Group>
  MMN_DEVICE void operator()(const Group& group, int64_t item) const {
    MMN_SHARED F sums[kTilePlaces * kTileLanes];
    const TilePart<V> part(item, a.channels, a.videos);
    const int m = a.m;
    group.each([&](int thread) {
      const int lane = thread % kTileLanes;
      const int64_t c = part.first_channel + lane * V, plane = a.tiles * a.videos * a.channels;
      if (c >= a.channels) return;
      for (int q = thread / kTileLanes; q < kTileQuads; q += kTileSide) {
        const Quad quad = quad_of(q);
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
      const int column = thread / kTileLanes, lane = thread % kTileLanes;
      if (part.first_channel + lane * V >= a.channels) return;
      F spectrum[kTileSide], values[kTileSide];
      MMN_UNROLL_ALL
      for (int y = 0; y < kTileSide; ++y) spectrum[y] = sums[(y * kTileSide + column) * kTileLanes + lane];
      fourier_line_inverse<A>(spectrum, 1, kTileSide, values);
      MMN_UNROLL_ALL
      for (int y = 0; y < kTileSide; ++y) {
        if (y < m) sums[(y * kTileSide + column) * kTileLanes + lane] = values[y];
      }
    });
    group.each([&](int thread) {
      const int line = thread / kTileLanes, lane = thread % kTileLanes;
      const int64_t c = part.first_channel + lane * V;
      if (line >= m || c >= a.channels) return;
      F spectrum[kTileSide], values[kTileSide];
      MMN_UNROLL_ALL
      for (int x = 0; x < kTileSide; ++x) spectrum[x] = sums[(line * kTileSide + x) * kTileLanes + lane];
      fourier_line_inverse<A>(spectrum, 1, kTileSide, values);
      const int32_t* outputs = a.outputs + (part.tile * m + line) * m;
      MMN_UNROLL_ALL
      for (int x = 0; x < kTileSide; ++x) {
        const int32_t cell = x < m ? outputs[x] : -1;
        if (cell < 0) continue;
        const float weight = a.cell_weights[cell];
        Pack<T, V> out;
        MMN_UNROLL_ALL
        for (int v = 0; v < V; ++v) {
          const float value = values[x].values[v] + a.bias[c + v];
          out.set(v, (value < 0.0f ? 0.0f : value) * weight);  // as torch's ReLU: NaN stays
        }
        store_pack<T, V>(a.out, (cell * a.videos + part.video) * a.channels + c, out);
      }
    });
  }
};

// Two channels a thread where every row allows: four would take more registers than let two blocks run at once.
template <template <class, int> class Body, class Args, class Runner>
void run_fourier(const Args& args, const void* rows, const Runner& runner) {
  const auto pick = [&](auto element) {
    using T = decltype(element);
    if (args.channels % 2 == 0 && reinterpret_cast<uintptr_t>(rows) % sizeof(Pack<T, 2>) == 0) {
      runner.blocks_of_threads(Body<T, 2>{args});
    } else {
      runner.blocks_of_threads(Body<T, 1>{args});
    }
  };
  with_dtype(args.dtype, pick);
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
