// clip_pool, sparse_max_pool, conv_epilogue and heads on a CUDA device; see ops/gpu.
#include "cuda/device/video_bodies.h"
#include "cuda/launch.h"

namespace mmn_fast {

void launch_clip_pool(const ClipPoolArgs& args, int device, void* stream) {
  run_clip_pool(args, CudaRunner("clip_pool", device, stream));
}

void launch_sparse_max_pool(const SparseMaxPoolArgs& args, int device, void* stream) {
  run_sparse_max_pool(args, CudaRunner("sparse_max_pool", device, stream));
}

void launch_conv_epilogue(const ConvEpilogueArgs& args, int device, void* stream) {
  run_conv_epilogue(args, CudaRunner("conv_epilogue", device, stream));
}

void launch_heads(const HeadsArgs& args, int device, void* stream) {
  run_heads(args, CudaRunner("heads", device, stream));
}

}  // namespace mmn_fast
