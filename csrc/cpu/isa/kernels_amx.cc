// Kernels for hosts with AMX tiles of bf16 and AVX-512. Compiler flags: CMakeLists.txt; tests before use: isa.cc.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/isa/kernels.h"

#define MMN_ISA isa_amx

#include "cpu/kernels/products/gemm_tiles-inl.h"
#include "cpu/kernels/products/run_products-inl.h"

namespace mmn_fast::MMN_ISA {
namespace {

constexpr CpuKernels bf16_row() {
  CpuKernels row;
  row.gemm_split_f32 = gemm_split_f32;
  row.gemm_complex_split_f32 = gemm_complex_split_f32;
  row.run_products = run_products;
  row.fill_slots = fill_slots;
  return row;
}

}  // namespace

constexpr CpuKernels kernels = bf16_row();

}  // namespace mmn_fast::MMN_ISA
