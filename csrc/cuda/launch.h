// The ops on a CUDA device. All pointers are in the memory of `device`; `stream` is one of its cudaStream_t. A launch
// returns before the work is done, and throws std::runtime_error if CUDA refuses it. No CUDA headers, for the bindings.
#pragma once

#include <cstdint>

#include "ops/gpu/clip_pool.h"
#include "ops/gpu/conv_epilogue.h"
#include "ops/gpu/feature_pool.h"
#include "ops/gpu/fourier_cells.h"
#include "ops/gpu/fourier_tiles.h"
#include "ops/gpu/heads.h"
#include "ops/gpu/pair_scores.h"
#include "ops/gpu/pair_top_moments.h"
#include "ops/gpu/sparse_max_pool.h"
#include "ops/temporal_nms.h"

namespace mmn_fast {

void launch_feature_pool(const FeaturePoolArgs& args, int device, void* stream);
void launch_clip_pool(const ClipPoolArgs& args, int device, void* stream);
void launch_sparse_max_pool(const SparseMaxPoolArgs& args, int device, void* stream);
void launch_conv_epilogue(const ConvEpilogueArgs& args, int device, void* stream);
void launch_fourier_tiles(const FourierTilesArgs& args, int device, void* stream);
void launch_fourier_cells(const FourierCellsArgs& args, int device, void* stream);
void launch_heads(const HeadsArgs& args, int device, void* stream);
void launch_pair_scores(const PairScoresArgs& args, int device, void* stream);
void launch_pair_top_moments(const PairTopMomentsArgs& args, int device, void* stream);

// `keys` is scratch memory, [queries, cells].
void launch_temporal_nms(const TemporalNmsArgs& args, uint32_t* keys, int device, void* stream);

// The twins run the kernels' own source on host memory, one thread after another. For tests, not for speed.
void twin_feature_pool(const FeaturePoolArgs& args);
void twin_clip_pool(const ClipPoolArgs& args);
void twin_sparse_max_pool(const SparseMaxPoolArgs& args);
void twin_conv_epilogue(const ConvEpilogueArgs& args);
void twin_fourier_tiles(const FourierTilesArgs& args);
void twin_fourier_cells(const FourierCellsArgs& args);
void twin_heads(const HeadsArgs& args);
void twin_pair_scores(const PairScoresArgs& args);
void twin_pair_top_moments(const PairTopMomentsArgs& args);
void twin_temporal_nms(const TemporalNmsArgs& args, uint32_t* keys);

}  // namespace mmn_fast
