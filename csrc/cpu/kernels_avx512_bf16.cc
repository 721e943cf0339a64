// Kernels for hosts with AVX-512 BF16 (VDPBF16PS). Flags: CMakeLists.txt; what is tested before use: isa.cc.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"

#define MMN_ISA isa_avx512_bf16

#include "cpu/gemm_dot-inl.h"

namespace mmn_fast::MMN_ISA {
const CpuKernels kernels = {
    nullptr, 0,       nullptr, nullptr, nullptr,        nullptr,
    nullptr, nullptr, nullptr, nullptr, gemm_split_f32, gemm_complex_split_f32,
};
}
