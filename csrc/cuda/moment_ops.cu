// pair_scores, pair_top_moments and temporal_nms on a CUDA device; see ops/gpu and ops/temporal_nms.h.
#include "cuda/device/moment_bodies.h"
#include "cuda/launch.h"

namespace mmn_fast {

void launch_pair_scores(const PairScoresArgs& args, int device, void* stream) {
  run_pair_scores(args, CudaRunner("pair_scores", device, stream));
}

void launch_pair_top_moments(const PairTopMomentsArgs& args, int device, void* stream) {
  run_pair_top_moments(args, CudaRunner("pair_top_moments", device, stream));
}

void launch_temporal_nms(const TemporalNmsArgs& args, uint32_t* keys, int device, void* stream) {
  run_temporal_nms(args, keys, CudaRunner("temporal_nms", device, stream));
}

}  // namespace mmn_fast
