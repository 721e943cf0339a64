// The video branch on the CPU: clip_pool, the 2D map's needed cells, proposal_conv, both heads, unit norm.
#pragma once

#include <memory>
#include <vector>

#include "cpu/proposal_conv.h"

namespace mmn_fast {

struct ClipPoolWeights {
  const float* weight;  // [c, d]
  const float* bias;    // [c]
  int64_t d, c;
  int64_t pre_clips, kernel, stride;  // T, pre-clips per clip, pre-clips between clips; N = (T - kernel) / stride + 1
};

struct HeadsWeights {
  const float* weight;  // [2 * joint_padded, c]: contrastive, zeros, iou, zeros
  const float* bias;    // [2 * joint_padded]
  int64_t c, joint, joint_padded;
};

class VideoEncoder {
 public:
  // Builds the map by max pools: cells [proposal_conv's input cells, 2] as (i, j) hold the maximum over clips i..j.
  VideoEncoder(std::shared_ptr<ProposalConv> conv, const ClipPoolWeights& clip_pool, const int32_t* cells,
               const HeadsWeights& heads);

  // Builds the map by learned convolutions instead: the first one reads the clips, conv n the result of conv n - 1.
  // map_rows [proposal_conv's input cells] are rows of the clips followed by all results.
  VideoEncoder(std::shared_ptr<ProposalConv> conv, const ClipPoolWeights& clip_pool, std::vector<ConvLayer> map_convs,
               const int32_t* map_rows, const HeadsWeights& heads);

  // pre_clips [batch, T, D] -> contrastive, iou [batch, P, J], unit norm.
  void run(const float* pre_clips, int64_t batch, float* contrastive, float* iou, int threads) const;

  int64_t pre_clips() const { return pre_clips_; }
  int64_t input_size() const { return clip_pool_.c_in(); }
  int64_t proposals() const { return conv_->layers().back().cells(); }
  int64_t joint() const { return joint_; }

 private:
  void run_some(const float* pre_clips, int64_t batch, float* contrastive, float* iou, int threads,
                ConvScratch& scratch) const;
  void average(const float* rows, float* clips, int64_t batch, int threads) const;
  void pool_cells(float* clips, float* out, int64_t batch, int threads) const;
  void convolve_cells(float* clips, float* out, int64_t batch, int threads, ConvScratch& scratch) const;
  int64_t clip_rows() const;

  std::shared_ptr<ProposalConv> conv_;
  ConvLayer clip_pool_, heads_;
  int64_t pre_clips_, kernel_, stride_, clips_, joint_, joint_padded_;
  std::vector<ConvLayer> map_convs_;
  std::vector<int32_t> cells_, map_rows_;  // one of them is empty
};

}  // namespace mmn_fast
