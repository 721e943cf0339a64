// temporal_nms on a CUDA device; see ops/temporal_nms.h.
#include "cuda/cuda_check.h"
#include "cuda/launch.h"

namespace mmn_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr uint32_t kGone = 0;  // the key of a NaN, which scores never are

// Unsigned integers in the order of the floats.
__device__ uint32_t key_of(float score) {
  if (score == 0.0f || isnan(score)) return kGone;
  const uint32_t bits = __float_as_uint(score);
  return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

// A candidate as one integer: the larger key wins, then the lower cell. So the order of threads does not matter.
__device__ uint64_t pack(uint32_t key, int32_t cell) {
  return key == kGone ? 0 : static_cast<uint64_t>(key) << 32 | (0xffffffffu - static_cast<uint32_t>(cell));
}

__device__ uint64_t warp_max(uint64_t value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const uint64_t other = __shfl_down_sync(0xffffffffu, value, step);
    if (other > value) value = other;
  }
  return value;
}

// The maximum over the block, in every thread. All threads call it.
__device__ uint64_t block_max(uint64_t value) {
  __shared__ uint64_t warp_best[kThreads / kWarp];
  __shared__ uint64_t block_best;
  value = warp_max(value);
  if (threadIdx.x % kWarp == 0) warp_best[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x < kWarp) {
    value = warp_max(threadIdx.x < kThreads / kWarp ? warp_best[threadIdx.x] : 0);
    if (threadIdx.x == 0) block_best = value;
  }
  __syncthreads();
  const uint64_t best = block_best;
  __syncthreads();  // nobody overwrites block_best for the next call before all have read it
  return best;
}

__device__ bool overlaps(const float* moment, float kept_start, float kept_end, float threshold) {
  const float start = moment[0], end = moment[1];
  const float inter = fmaxf(fminf(end, kept_end) - fmaxf(start, kept_start), 0.0f);
  const float hull = fmaxf(end, kept_end) - fminf(start, kept_start);
  return __fdiv_rn(inter, hull) > threshold;  // exact division whatever the flags; 0 / 0 overlaps nothing
}

// One block per query; each thread owns the cells threadIdx.x, threadIdx.x + kThreads, ...
__global__ void temporal_nms_kernel(TemporalNmsArgs args, uint32_t* all_keys) {
  const int64_t q = blockIdx.x;
  const float* scores = args.scores + q * args.cells;
  uint32_t* keys = all_keys + q * args.cells;
  int32_t* out = args.out + q * args.top_k;

  uint64_t best = 0;
  for (int64_t p = threadIdx.x; p < args.cells; p += kThreads) {
    keys[p] = key_of(scores[p]);
    best = max(best, pack(keys[p], static_cast<int32_t>(p)));
  }
  best = block_max(best);

  int64_t k = 0;
  while (best != 0) {  // the same in every thread, so all leave together
    const auto kept = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best));
    if (threadIdx.x == 0) out[k] = kept;
    if (++k == args.top_k) break;
    const float start = args.moments[2 * static_cast<int64_t>(kept)];
    const float end = args.moments[2 * static_cast<int64_t>(kept) + 1];
    best = 0;
    for (int64_t p = threadIdx.x; p < args.cells; p += kThreads) {
      // The kept cell itself may not overlap itself: IoU 1 does not exceed 1, nor does that of an empty moment.
      if (p == kept || overlaps(args.moments + 2 * p, start, end, args.iou_threshold)) keys[p] = kGone;
      best = max(best, pack(keys[p], static_cast<int32_t>(p)));
    }
    best = block_max(best);
  }
  for (k += threadIdx.x; k < args.top_k; k += kThreads) out[k] = -1;
}

}  // namespace

void launch_temporal_nms(const TemporalNmsArgs& args, uint32_t* keys, int device, void* stream) {
  if (args.queries == 0) return;
  const DeviceGuard guard(device);
  temporal_nms_kernel<<<static_cast<unsigned>(args.queries), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args,
                                                                                                               keys);
  cuda_check(cudaGetLastError(), "temporal_nms");
}

}  // namespace mmn_fast
