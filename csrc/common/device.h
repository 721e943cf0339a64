// Macros for source that both the device compiler and the host compiler read.
#pragma once

#define MMN_PRAGMA(text) _Pragma(#text)

#if defined(__CUDACC__)
#define MMN_DEVICE __device__ __forceinline__
#define MMN_SHARED __shared__  // memory that a block's threads share
#define MMN_UNROLL(times) MMN_PRAGMA(unroll times)
#define MMN_UNROLL_ALL MMN_PRAGMA(unroll)
#else
#define MMN_DEVICE inline
#define MMN_SHARED
#define MMN_UNROLL(times) MMN_PRAGMA(GCC unroll times)
#define MMN_UNROLL_ALL
#endif
