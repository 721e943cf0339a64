// Bodies of pair_scores, pair_top_moments and temporal_nms; see ops/gpu and ops/temporal_nms.h.
#pragma once

#include "cuda/device/temporal_nms.h"
#include "cuda/run.h"
#include "ops/gpu/pair_scores.h"
#include "ops/gpu/pair_top_moments.h"
#include "ops/temporal_nms.h"

namespace mmn_fast {

// A warp computes one proposal of a pair: both dot products, then the fused score.
template <class T, int V>
struct PairScoresBody {
  PairScoresArgs a;
  MMN_DEVICE int64_t items() const { return a.pairs * a.proposals; }

  template <class Group>
  MMN_DEVICE void operator()(const Group& group, int64_t item) const {
    const int64_t pair = item / a.proposals, video = a.pair_videos[pair];
    float c = 0.0f, u = 0.0f, fused = 0.0f;
    if (video >= 0) {
      const int64_t proposal = (video * a.proposals + item % a.proposals) * a.joint;
      const int64_t sentence = a.pair_sentences[pair] * a.joint;
      typename Group::template PerThread<float> contrastive, iou;
      group.each([&](int thread) {
        float sum = 0.0f, other = 0.0f;
        for (int64_t j = thread * V; j < a.joint; j += Group::kThreads * V) {
          const Pack<T, V> vc = load_pack<T, V>(a.video_contrastive, proposal + j);
          const Pack<T, V> vi = load_pack<T, V>(a.video_iou, proposal + j);
          const Pack<T, V> tc = load_pack<T, V>(a.text_contrastive, sentence + j);
          const Pack<T, V> ti = load_pack<T, V>(a.text_iou, sentence + j);
          MMN_UNROLL_ALL
          for (int v = 0; v < V; ++v) {
            sum += vc[v] * tc[v];
            other += vi[v] * ti[v];
          }
        }
        contrastive[thread] = sum;
        iou[thread] = other;
      });
      c = group.reduce(contrastive, 0.0f, Sum());
      u = 1.0f / (1.0f + expf(-10.0f * group.reduce(iou, 0.0f, Sum())));
      if (a.product) {
        fused = c * u;
      } else {
        const float base = c * 0.5f + 0.5f;
        fused = powf(base < 0.0f ? 0.0f : base, a.power) * u;
      }
    }
    group.each([&](int thread) {
      if (thread != 0) return;
      a.fused[item] = fused;
      if (a.contrastive != nullptr) {
        a.contrastive[item] = c;
        a.iou[item] = u;
      }
    });
  }
};

struct PairTopMomentsBody {
  PairTopMomentsArgs a;
  MMN_DEVICE int64_t items() const { return a.pairs; }

  template <class Group>
  MMN_DEVICE void operator()(const Group& group, int64_t pair) const {
    const float* fused = a.fused + pair * a.proposals;
    int32_t* chosen = a.chosen + pair * a.top_k;
    const float duration = a.durations[pair];
    const auto span_of = [&](int64_t p) {
      const auto start = static_cast<float>(a.cells[2 * p]), end = static_cast<float>(a.cells[2 * p + 1]) + 1.0f;
      return Span{start * duration / a.clips, end * duration / a.clips};
    };
    select_greedily(group, fused, a.proposals, a.keys + pair * a.proposals, span_of, a.iou_threshold, a.top_k, chosen);
    group.each([&](int thread) {
      for (int64_t k = thread; k < a.top_k; k += Group::kThreads) {
        a.chosen_scores[pair * a.top_k + k] = chosen[k] < 0 ? 0.0f : fused[chosen[k]];
      }
    });
  }
};

struct TemporalNmsBody {
  TemporalNmsArgs a;
  uint32_t* keys;
  MMN_DEVICE int64_t items() const { return a.queries; }

  template <class Group>
  MMN_DEVICE void operator()(const Group& group, int64_t query) const {
    const auto span_of = [&](int64_t p) { return Span{a.moments[2 * p], a.moments[2 * p + 1]}; };
    select_greedily(group, a.scores + query * a.cells, a.cells, keys + query * a.cells, span_of, a.iou_threshold,
                    a.top_k, a.out + query * a.top_k);
  }
};

template <class Runner>
void run_pair_scores(const PairScoresArgs& args, const Runner& runner) {
  with_elements(args.dtype, args.joint,
                {args.video_contrastive, args.video_iou, args.text_contrastive, args.text_iou},
                [&](auto element, auto pack) {
                  runner.warps(PairScoresBody<decltype(element), decltype(pack)::value>{args});
                });
}

template <class Runner>
void run_pair_top_moments(const PairTopMomentsArgs& args, const Runner& runner) {
  runner.blocks_of_threads(PairTopMomentsBody{args});
}

template <class Runner>
void run_temporal_nms(const TemporalNmsArgs& args, uint32_t* keys, const Runner& runner) {
  runner.blocks_of_threads(TemporalNmsBody{args, keys});
}

}  // namespace mmn_fast
