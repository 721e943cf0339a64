// The ops on a CUDA device. All pointers are device memory of `device`; `stream` is a cudaStream_t of it. A launch
// returns before the work is done and throws std::runtime_error if CUDA refuses it. Free of CUDA headers, for bindings.
#pragma once

#include <cstdint>

#include "ops/gpu_ops.h"
#include "ops/temporal_nms.h"

namespace mmn_fast {

void launch_feature_pool(const FeaturePoolArgs& args, int device, void* stream);
void launch_clip_pool(const ClipPoolArgs& args, int device, void* stream);
void launch_moment_map(const MomentMapArgs& args, int device, void* stream);
void launch_conv_epilogue(const ConvEpilogueArgs& args, int device, void* stream);
void launch_fourier_tiles(const FourierTilesArgs& args, int device, void* stream);
void launch_fourier_cells(const FourierCellsArgs& args, int device, void* stream);
void launch_heads(const HeadsArgs& args, int device, void* stream);
void launch_pair_scores(const PairScoresArgs& args, int device, void* stream);
void launch_pair_moments(const PairMomentsArgs& args, int device, void* stream);

// `keys` is scratch memory, [queries, cells].
void launch_temporal_nms(const TemporalNmsArgs& args, uint32_t* keys, int device, void* stream);

}  // namespace mmn_fast
