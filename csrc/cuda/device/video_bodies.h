// Bodies of clip_pool, sparse_max_pool, conv_epilogue and heads; see ops/gpu. Memory bounds all of them: a thread takes
// 16 bytes at a time, neighbouring threads take neighbouring channels.
#pragma once

#include "cuda/run.h"
#include "ops/gpu/clip_pool.h"
#include "ops/gpu/conv_epilogue.h"
#include "ops/gpu/heads.h"
#include "ops/gpu/sparse_max_pool.h"

namespace mmn_fast {

template <class T, int V>
struct ClipPoolBody {
  ClipPoolArgs a;
  MMN_DEVICE int64_t items() const { return a.clips * a.videos * (a.channels / V); }
  MMN_DEVICE void operator()(int64_t item) const {
    const int64_t packs = a.channels / V, c = item % packs * V, video = item / packs % a.videos;
    const int64_t first = video * a.pre_clips + item / packs / a.videos * a.stride;
    float sums[V] = {};
    for (int64_t k = 0; k < a.kernel; ++k) {
      const Pack<T, V> product = load_pack<T, V>(a.products, (first + k) * a.channels + c);
      MMN_UNROLL_ALL
      for (int v = 0; v < V; ++v) {
        const float value = product[v] + a.bias[c + v];
        sums[v] += value < 0.0f ? 0.0f : value;  // like torch's ReLU: NaN stays NaN
      }
    }
    Pack<T, V> out;
    MMN_UNROLL_ALL
    for (int v = 0; v < V; ++v) out.set(v, sums[v] / static_cast<float>(a.kernel));
    store_pack<T, V>(a.out, item * V, out);
  }
};

// A thread walks row i of the map to the right and keeps the running maximum over i..j in registers.
template <class T, int V>
struct SparseMaxPoolBody {
  SparseMaxPoolArgs a;
  MMN_DEVICE int64_t items() const { return a.n * a.videos * (a.channels / V); }
  MMN_DEVICE void operator()(int64_t item) const {
    const int64_t row = a.videos * a.channels, packs = row / V, i = item / packs, at = item % packs * V;
    const int32_t* positions = a.positions + i * a.n;
    Pack<T, V> most = load_pack<T, V>(a.clips, i * row + at);
    MMN_UNROLL(4)
    for (int64_t j = i; j < a.n; ++j) {
      const Pack<T, V> clip = load_pack<T, V>(a.clips, j * row + at);
      MMN_UNROLL_ALL
      for (int v = 0; v < V; ++v) {
        const bool stays = is_nan(most[v]) || most[v] >= clip[v];
        most.values[v] = stays ? most.values[v] : clip.values[v];
      }
      if (positions[j] >= 0) store_pack<T, V>(a.map, positions[j] * row + at, most);
    }
  }
};

template <class T, int V>
struct ConvEpilogueBody {
  ConvEpilogueArgs a;
  MMN_DEVICE int64_t items() const { return a.videos * a.cells * (a.channels / V); }
  MMN_DEVICE void operator()(int64_t item) const {
    const int64_t packs = a.channels / V, c = item % packs * V, cell = item / packs % a.cells;
    const int32_t position = a.positions[cell];
    if (position < 0) return;
    const float weight = a.weights[cell];
    const Pack<T, V> product = load_pack<T, V>(a.products, item * V);
    Pack<T, V> out;
    MMN_UNROLL_ALL
    for (int v = 0; v < V; ++v) {
      const float value = product[v] + a.bias[c + v];
      out.set(v, (value < 0.0f ? 0.0f : value) * weight);
    }
    store_pack<T, V>(a.out, position * a.cell_stride + item / packs / a.cells * a.video_stride + c, out);
  }
};

// A warp normalises one head of a row.
template <class T, int V>
struct HeadsBody {
  HeadsArgs a;
  MMN_DEVICE int64_t items() const { return 2 * a.proposals * a.videos; }
  template <class Group>
  MMN_DEVICE void operator()(const Group& group, int64_t item) const {
    const int64_t row = item / 2, first = item % 2 * a.joint;
    const int64_t in = row * 2 * a.joint + first;
    const int64_t out = (row % a.videos * a.proposals + row / a.videos) * a.joint;
    typename Group::template PerThread<float> sums;
    group.each([&](int thread) {
      float sum = 0.0f;
      for (int64_t j = thread * V; j < a.joint; j += Group::kThreads * V) {
        const Pack<T, V> product = load_pack<T, V>(a.products, in + j);
        MMN_UNROLL_ALL
        for (int v = 0; v < V; ++v) {
          const float value = product[v] + a.bias[first + j + v];
          sum += value * value;
        }
      }
      sums[thread] = sum;
    });
    const float norm = fmaxf(sqrtf(group.reduce(sums, 0.0f, Sum())), 1e-12f);
    group.each([&](int thread) {
      for (int64_t j = thread * V; j < a.joint; j += Group::kThreads * V) {
        const Pack<T, V> product = load_pack<T, V>(a.products, in + j);
        Pack<T, V> unit;
        MMN_UNROLL_ALL
        for (int v = 0; v < V; ++v) unit.set(v, (product[v] + a.bias[first + j + v]) / norm);
        store_pack<T, V>(item % 2 ? a.iou : a.contrastive, out + j, unit);
      }
    });
  }
};

template <class Runner>
void run_clip_pool(const ClipPoolArgs& args, const Runner& runner) {
  with_elements(args.dtype, args.channels, {args.products, args.out}, [&](auto element, auto pack) {
    runner.elements(ClipPoolBody<decltype(element), decltype(pack)::value>{args});
  });
}

template <class Runner>
void run_sparse_max_pool(const SparseMaxPoolArgs& args, const Runner& runner) {
  with_elements(args.dtype, args.channels, {args.clips, args.map}, [&](auto element, auto pack) {
    runner.elements(SparseMaxPoolBody<decltype(element), decltype(pack)::value>{args});
  });
}

template <class Runner>
void run_conv_epilogue(const ConvEpilogueArgs& args, const Runner& runner) {
  with_elements(args.dtype, args.channels, {args.products, args.out}, [&](auto element, auto pack) {
    runner.elements(ConvEpilogueBody<decltype(element), decltype(pack)::value>{args});
  });
}

template <class Runner>
void run_heads(const HeadsArgs& args, const Runner& runner) {
  with_elements(args.dtype, args.joint, {args.products, args.contrastive, args.iou}, [&](auto element, auto pack) {
    runner.warps(HeadsBody<decltype(element), decltype(pack)::value>{args});
  });
}

}  // namespace mmn_fast
