// Element types, 16-byte packs, and groups of threads that work in phases. Kernels are written over these, so that one
// source runs on the device and, compiled by the host compiler, as the twin. A twin does the same operations in the same
// order; only exp and pow come from another library.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/device.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace mmn_fast {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

MMN_DEVICE float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

MMN_DEVICE uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

MMN_DEVICE bool is_nan(float value) { return value != value; }

MMN_DEVICE float to_float(float value) { return value; }
MMN_DEVICE float to_float(BFloat16 value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }

MMN_DEVICE void from_float(float value, float& to) { to = value; }

#if defined(__CUDACC__)

MMN_DEVICE float to_float(Half value) { return __half2float(__ushort_as_half(value.bits)); }
MMN_DEVICE void from_float(float value, Half& to) { to.bits = __half_as_ushort(__float2half_rn(value)); }
MMN_DEVICE void from_float(float value, BFloat16& to) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value)); }

#else

inline float to_float(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // The 13-bit shift leaves the exponent 112 too small; multiplying by 2^112 corrects it, for subnormals too.
  return bits_to_float(sign | float_to_bits(bits_to_float(rest << 13) * bits_to_float(0x77800000)));
}

// Rounds to nearest even, for both types.
inline void from_float(float value, Half& to) {
  const uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  uint32_t half;
  if (rest > 0x7f800000) {
    half = 0x7fff;
  } else if (rest >= 0x477ff000) {
    half = 0x7c00;
  } else if (rest < 0x38800000) {
    // Adding 0.5 aligns the half's last bit, 2^-24, with the float's last bit, and the addition rounds.
    half = float_to_bits(bits_to_float(rest) + 0.5f) - 0x3f000000;
  } else {
    half = (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13;
  }
  to.bits = static_cast<uint16_t>(sign | half);
}

inline void from_float(float value, BFloat16& to) {
  const uint32_t bits = float_to_bits(value);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  to.bits = static_cast<uint16_t>(nan ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif

// V elements, read and written in one access.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T values[V];
  MMN_DEVICE float operator[](int v) const { return to_float(values[v]); }
  MMN_DEVICE void set(int v, float value) { from_float(value, values[v]); }
};

#if defined(__CUDACC__)

// The register type of so many bytes. nvcc may cut an access to a struct into smaller ones, but not an access to this.
template <int kBytes>
struct Word;
template <>
struct Word<2> {
  using Type = uint16_t;
};
template <>
struct Word<4> {
  using Type = uint32_t;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

#endif

template <class T, int V>
MMN_DEVICE Pack<T, V> load_pack(const void* base, int64_t element) {
  const T* const from = static_cast<const T*>(base) + element;
  Pack<T, V> pack;
#if defined(__CUDACC__)
  const auto word = *reinterpret_cast<const typename Word<sizeof(pack)>::Type*>(from);
  memcpy(&pack, &word, sizeof(pack));
#else
  memcpy(&pack, from, sizeof(pack));
#endif
  return pack;
}

template <class T, int V>
MMN_DEVICE void store_pack(void* base, int64_t element, const Pack<T, V>& pack) {
  T* const to = static_cast<T*>(base) + element;
#if defined(__CUDACC__)
  typename Word<sizeof(pack)>::Type word;
  memcpy(&word, &pack, sizeof(pack));
  if constexpr (sizeof(pack) == sizeof(uint4)) {
    // All packs are in global memory. An assignment would become four stores if its address is computed late.
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.x), "r"(word.y), "r"(word.z),
                 "r"(word.w));
  } else {
    *reinterpret_cast<decltype(word)*>(to) = word;
  }
#else
  memcpy(to, &pack, sizeof(pack));
#endif
}

struct Sum {
  template <class T>
  MMN_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  MMN_DEVICE T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

constexpr int kWarp = 32;

#if defined(__CUDACC__)

template <class T, class Op>
MMN_DEVICE T warp_tree(T value, Op op) {  // the result is in lane 0
  MMN_UNROLL_ALL
  for (int step = kWarp / 2; step > 0; step /= 2) value = op(value, __shfl_down_sync(0xffffffffu, value, step));
  return value;
}

// A group is one warp or one block. `each` runs a phase: every thread does its part, and all finish before the next one.
struct WarpGroup {
  static constexpr int kThreads = kWarp;
  template <class T>
  struct PerThread {
    T value;
    MMN_DEVICE T& operator[](int) { return value; }
  };
  template <class F>
  MMN_DEVICE void each(F f) const {
    f(static_cast<int>(threadIdx.x) % kWarp);
    __syncwarp();
  }
  template <class T, class Op>
  MMN_DEVICE T reduce(PerThread<T>& values, T, Op op) const {
    return __shfl_sync(0xffffffffu, warp_tree(values.value, op), 0);
  }
};

template <int kCount>
struct BlockGroup {
  static constexpr int kThreads = kCount;
  template <class T>
  using PerThread = WarpGroup::PerThread<T>;
  template <class F>
  MMN_DEVICE void each(F f) const {
    f(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  template <class T, class Op>
  MMN_DEVICE T reduce(PerThread<T>& values, T identity, Op op) const {
    __shared__ T of_warp[kWarp];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const T own = warp_tree(values.value, op);
    if (lane == 0) of_warp[warp] = own;
    __syncthreads();
    if (warp == 0) {
      const T all = warp_tree(lane < kCount / kWarp ? of_warp[lane] : identity, op);
      if (lane == 0) of_warp[0] = all;
    }
    __syncthreads();
    const T result = of_warp[0];
    __syncthreads();  // all threads must read the result before the next call overwrites it
    return result;
  }
};

#else

template <int kCount>
struct BlockGroup {
  static constexpr int kThreads = kCount;
  template <class T>
  struct PerThread {
    T values[kCount];
    T& operator[](int thread) { return values[thread]; }
  };
  template <class F>
  void each(F f) const {
    for (int thread = 0; thread < kCount; ++thread) f(thread);
  }
  template <class T, class Op>
  T reduce(PerThread<T>& values, T identity, Op op) const {
    T of_warp[kWarp];
    for (int warp = 0; warp < kWarp; ++warp) {
      of_warp[warp] = warp < kCount / kWarp ? tree(values.values + warp * kWarp, op) : identity;
    }
    return kCount == kWarp ? of_warp[0] : tree(of_warp, op);
  }

 private:
  template <class T, class Op>
  static T tree(const T* from, Op op) {  // the result of warp_tree in lane 0
    T lanes[kWarp];
    for (int lane = 0; lane < kWarp; ++lane) lanes[lane] = from[lane];
    for (int step = kWarp / 2; step > 0; step /= 2) {
      for (int lane = 0; lane < step; ++lane) lanes[lane] = op(lanes[lane], lanes[lane + step]);
    }
    return lanes[0];
  }
};

using WarpGroup = BlockGroup<kWarp>;

#endif

}  // namespace mmn_fast
