// Kernels for hosts with AVX-512 BF16 (VDPBF16PS). Compiler flags: CMakeLists.txt; tests before use: isa.cc.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/isa/kernels.h"

#define MMN_ISA isa_avx512_bf16

#include "cpu/kernels/products/gemm_dot-inl.h"

namespace mmn_fast::MMN_ISA {
namespace {

constexpr CpuKernels bf16_row() {
  CpuKernels row;
  row.gemm_split_f32 = gemm_split_f32;
  row.gemm_complex_split_f32 = gemm_complex_split_f32;
  return row;
}

}  // namespace

constexpr CpuKernels kernels = bf16_row();

}  // namespace mmn_fast::MMN_ISA
