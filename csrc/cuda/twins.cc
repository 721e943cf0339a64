// The twins: the kernels' bodies on host memory, compiled by the host compiler, for tests without a device.
#include "cuda/launch.h"

#include "cuda/device/feature_pool.h"
#include "cuda/device/fourier_bodies.h"
#include "cuda/device/moment_bodies.h"
#include "cuda/device/video_bodies.h"

namespace mmn_fast {

void twin_feature_pool(const FeaturePoolArgs& args) { run_feature_pool(args, HostRunner()); }
void twin_clip_pool(const ClipPoolArgs& args) { run_clip_pool(args, HostRunner()); }
void twin_sparse_max_pool(const SparseMaxPoolArgs& args) { run_sparse_max_pool(args, HostRunner()); }
void twin_conv_epilogue(const ConvEpilogueArgs& args) { run_conv_epilogue(args, HostRunner()); }
void twin_fourier_tiles(const FourierTilesArgs& args) { run_fourier_tiles(args, HostRunner()); }
void twin_fourier_cells(const FourierCellsArgs& args) { run_fourier_cells(args, HostRunner()); }
void twin_heads(const HeadsArgs& args) { run_heads(args, HostRunner()); }
void twin_pair_scores(const PairScoresArgs& args) { run_pair_scores(args, HostRunner()); }
void twin_pair_top_moments(const PairTopMomentsArgs& args) { run_pair_top_moments(args, HostRunner()); }
void twin_temporal_nms(const TemporalNmsArgs& args, uint32_t* keys) { run_temporal_nms(args, keys, HostRunner()); }

}  // namespace mmn_fast
