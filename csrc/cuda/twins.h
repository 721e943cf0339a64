// The GPU engine's ops on host memory: the kernels' own source, one thread after another. For tests, not for speed.
#pragma once

#include "ops/gpu_ops.h"
#include "ops/temporal_nms.h"

namespace mmn_fast {

void twin_feature_pool(const FeaturePoolArgs& args);
void twin_clip_pool(const ClipPoolArgs& args);
void twin_moment_map(const MomentMapArgs& args);
void twin_conv_epilogue(const ConvEpilogueArgs& args);
void twin_fourier_tiles(const FourierTilesArgs& args);
void twin_fourier_cells(const FourierCellsArgs& args);
void twin_heads(const HeadsArgs& args);
void twin_pair_scores(const PairScoresArgs& args);
void twin_pair_moments(const PairMomentsArgs& args);
void twin_temporal_nms(const TemporalNmsArgs& args, uint32_t* keys);

}  // namespace mmn_fast
