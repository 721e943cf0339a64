// feature_pool on a CUDA device; see ops/gpu.
#include "cuda/device/feature_pool.h"

#include "cuda/launch.h"

namespace mmn_fast {

void launch_feature_pool(const FeaturePoolArgs& args, int device, void* stream) {
  run_feature_pool(args, CudaRunner("feature_pool", device, stream));
}

}  // namespace mmn_fast
