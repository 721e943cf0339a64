// Kernels for hosts with AMX tiles of bf16, beside AVX-512. Flags: CMakeLists.txt; what is tested before use: isa.cc.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"

#define MMN_ISA isa_amx

#include "cpu/gemm_tiles-inl.h"
#include "cpu/run_products-inl.h"

namespace mmn_fast::MMN_ISA {
const CpuKernels kernels = {
    nullptr, 0,       nullptr, nullptr, nullptr,        nullptr,
    nullptr, nullptr, nullptr, nullptr, gemm_split_f32, gemm_complex_split_f32,
    nullptr, nullptr, nullptr, nullptr, nullptr,        run_products,   fill_slots,
};
}
