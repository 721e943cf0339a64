// Runs an op's bodies: on a CUDA device, or as the twin on the host. A body is a struct template over element type and
// elements per access, with `items()` and a call operator for one item. A group body's operator also takes the group
// (WarpGroup, BlockGroup).
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "cuda/device/block.h"
#include "ops/gpu/dtype.h"

#if defined(__CUDACC__)
#include "cuda/cuda_check.h"
#endif

namespace mmn_fast {

constexpr int64_t kPackBytes = 16;

// Calls f(T()).
template <class F>
void with_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat32: return f(float());
    case Dtype::kFloat16: return f(Half());
    case Dtype::kBfloat16: return f(BFloat16());
  }
}

// Calls f(T(), integral_constant<int, V>) with V elements in 16 bytes if every pointer and every row of `width` allows.
template <class F>
void with_elements(Dtype dtype, int64_t width, std::initializer_list<const void*> pointers, F f) {
  const int64_t bytes = width * (dtype == Dtype::kFloat32 ? 4 : 2);
  const bool aligned = bytes % kPackBytes == 0 && std::all_of(pointers.begin(), pointers.end(), [](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % kPackBytes == 0;
  });
  const auto pick = [&](auto element) {
    using T = decltype(element);
    if (aligned) {
      f(element, std::integral_constant<int, kPackBytes / sizeof(T)>());
    } else {
      f(element, std::integral_constant<int, 1>());
    }
  };
  with_dtype(dtype, pick);
}

#if defined(__CUDACC__)

constexpr int kRunThreads = 256;

template <class Body>
__global__ void __launch_bounds__(kRunThreads) element_kernel(Body body) {
  const int64_t items = body.items(), stride = static_cast<int64_t>(gridDim.x) * kRunThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kRunThreads + threadIdx.x; i < items; i += stride) body(i);
}

template <class Body>
__global__ void __launch_bounds__(kRunThreads) warp_kernel(Body body) {
  constexpr int kWarps = kRunThreads / kWarp;
  const int64_t items = body.items(), stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; i < items; i += stride) {
    body(WarpGroup(), i);
  }
}

template <class Body>
__global__ void __launch_bounds__(kRunThreads) block_kernel(Body body) {
  for (int64_t i = blockIdx.x; i < body.items(); i += gridDim.x) body(BlockGroup<kRunThreads>(), i);
}

// Queues kernels on a stream; if CUDA refuses one, the error names `op`.
class CudaRunner {
 public:
  CudaRunner(const char* op, int device, void* stream)
      : op_(op), guard_(op, device), stream_(static_cast<cudaStream_t>(stream)) {}

  template <class Body>
  void elements(const Body& body) const {
    if (body.items() == 0) return;
    element_kernel<<<blocks(body.items(), kRunThreads), kRunThreads, 0, stream_>>>(body);
    cuda_check(cudaGetLastError(), op_);
  }
  template <class Body>
  void warps(const Body& body) const {
    if (body.items() == 0) return;
    warp_kernel<<<blocks(body.items(), kRunThreads / kWarp), kRunThreads, 0, stream_>>>(body);
    cuda_check(cudaGetLastError(), op_);
  }
  template <class Body>
  void blocks_of_threads(const Body& body) const {
    if (body.items() == 0) return;
    block_kernel<<<blocks(body.items(), 1), kRunThreads, 0, stream_>>>(body);
    cuda_check(cudaGetLastError(), op_);
  }

 private:
  static unsigned blocks(int64_t items, int64_t per_block) {
    constexpr int64_t kMostBlocks = 1 << 20;  // kernels loop over further items
    return static_cast<unsigned>(std::min((items + per_block - 1) / per_block, kMostBlocks));
  }

  const char* op_;
  DeviceGuard guard_;
  cudaStream_t stream_;
};

#else

constexpr int kRunThreads = 256;

class HostRunner {
 public:
  template <class Body>
  void elements(const Body& body) const {
    for (int64_t i = 0; i < body.items(); ++i) body(i);
  }
  template <class Body>
  void warps(const Body& body) const {
    for (int64_t i = 0; i < body.items(); ++i) body(WarpGroup(), i);
  }
  template <class Body>
  void blocks_of_threads(const Body& body) const {
    for (int64_t i = 0; i < body.items(); ++i) body(BlockGroup<kRunThreads>(), i);
  }
};

#endif

}  // namespace mmn_fast
