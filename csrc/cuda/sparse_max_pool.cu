// sparse_max_pool on a CUDA device; see ops/sparse_max_pool.h.
#include <algorithm>

#include "cuda/cuda_check.h"
#include "cuda/launch.h"

namespace mmn_fast {
namespace {

constexpr int kThreads = 256;

// One thread per (channel, column j): it walks the rows upwards from the last one with the running maximum over i..j in
// a register. Neighbouring threads hold neighbouring columns, so each step of a warp writes one contiguous stretch.
__global__ void sparse_max_pool_kernel(SparseMaxPoolArgs args) {
  const int64_t n = args.n;
  const int64_t columns = args.channels * n;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; t < columns; t += stride) {
    const int64_t c = t / n, j = t % n;
    const float* clips = args.clips + c * n;
    float* out = args.out + c * n * n + j;
    for (int64_t i = n - 1; i > j; --i) out[i * n] = 0.0f;
    float running = -INFINITY;
    for (int64_t i = j; i >= 0; --i) {
      const float clip = clips[i];
      // Not fmaxf, which drops NaN. Of equals the earlier clip stays, as on the CPU.
      if (!isnan(running) && !(running > clip)) running = clip;
      out[i * n] = args.mask[i * n + j] ? running : 0.0f;
    }
  }
}

}  // namespace

void launch_sparse_max_pool(const SparseMaxPoolArgs& args, int device, void* stream) {
  const int64_t columns = args.channels * args.n;
  if (columns == 0) return;
  const DeviceGuard guard("sparse_max_pool", device);
  constexpr int64_t kMostBlocks = 1 << 20;  // the kernel strides over the rest
  const auto blocks = static_cast<unsigned>(std::min((columns + kThreads - 1) / kThreads, kMostBlocks));
  sparse_max_pool_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  cuda_check(cudaGetLastError(), "sparse_max_pool");
}

}  // namespace mmn_fast
