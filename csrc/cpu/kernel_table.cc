#include "cpu/kernel_table.h"

#include <cstdlib>

#include "common/check.h"

namespace mmn_fast {
namespace {

// nullptr: this build lacks the instruction set (another architecture, or a compiler that does not know it).
const CpuKernels* row(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::generic: return &isa_generic::kernels;
#if defined(MMN_FAST_X86_KERNELS)
    case CpuIsa::avx2: return &isa_avx2::kernels;
    case CpuIsa::avx512: return &isa_avx512::kernels;
#endif
#if defined(MMN_FAST_AVX512_BF16_KERNELS)
    case CpuIsa::avx512_bf16: return &isa_avx512_bf16::kernels;  // products of bf16 terms; all else comes from avx512
#endif
#if defined(MMN_FAST_AMX_KERNELS)
    case CpuIsa::amx: return &isa_amx::kernels;  // likewise
#endif
    default: return nullptr;
  }
}

bool brings_kernels(CpuIsa isa) {
  const CpuKernels* own = row(isa);
  return own != nullptr && (own->gemm_f32 != nullptr || own->gemm_split_f32 != nullptr);
}

// The highest row at or below `isa` that implements `op`. Ends at generic, which implements all.
template <class Fn>
CpuIsa source_of(Fn CpuKernels::*op, CpuIsa isa) {
  while (row(isa) == nullptr || row(isa)->*op == nullptr) {
    MMN_ASSERT(isa != CpuIsa::generic);
    isa = static_cast<CpuIsa>(static_cast<int>(isa) - 1);
  }
  return isa;
}

std::string list(const std::vector<CpuIsa>& isas) {
  std::string names;
  for (CpuIsa isa : isas) names += (names.empty() ? "" : ", ") + std::string(name(isa));
  return names;
}

CpuIsa choose() {
  constexpr const char* kVariable = "MMN_FAST_CPU_ISA";
  const char* word = std::getenv(kVariable);
  if (word != nullptr && *word != '\0') {
    const CpuIsa isa = parse_cpu_isa(word, kVariable);
    require_cpu_isa(isa, kVariable);
    return isa;
  }
  CpuIsa best = CpuIsa::generic;
  for (CpuIsa isa : kCpuIsas) {
    if (brings_kernels(isa) && host_has(isa)) best = isa;
  }
  return best;
}

}  // namespace

CpuIsa chosen_cpu_isa() {
  static const CpuIsa chosen = choose();  // a throw leaves it unset, so every use reports the same sentence
  return chosen;
}

std::vector<CpuIsa> available_cpu_isas() {
  std::vector<CpuIsa> isas;
  for (CpuIsa isa : kCpuIsas) {
    if (row(isa) != nullptr && host_has(isa)) isas.push_back(isa);
  }
  return isas;
}

void require_cpu_isa(CpuIsa isa, const char* source) {
  const char* reason = row(isa) == nullptr ? "this build has no such kernels" : "this host lacks it";
  MMN_CHECK(row(isa) != nullptr && host_has(isa), source, ": expected one of ", list(available_cpu_isas()), ", got ",
            name(isa), ": ", reason);
}

CpuKernels cpu_kernels(CpuIsa isa) {
  CpuKernels kernels;
  const auto fill = [&](auto CpuKernels::*op) { kernels.*op = row(source_of(op, isa))->*op; };
  fill(&CpuKernels::temporal_nms_f32);
  fill(&CpuKernels::gemm_f32);
  fill(&CpuKernels::gemm_complex_f32);
  fill(&CpuKernels::tile_forward_f32);
  fill(&CpuKernels::tile_inverse_f32);
  fill(&CpuKernels::start_rows_f32);
  fill(&CpuKernels::finish_rows_f32);
  fill(&CpuKernels::max_rows_f32);
  fill(&CpuKernels::normalize_row_f32);
  fill(&CpuKernels::layer_norm_row_f32);
  fill(&CpuKernels::gelu_f32);
  fill(&CpuKernels::attend_f32);
  fill(&CpuKernels::moment_scores_f32);
  fill(&CpuKernels::score_moments_f32);
  // These no other row can stand in for.
  kernels.gemm_split_f32 = row(isa)->gemm_split_f32;
  kernels.gemm_complex_split_f32 = row(isa)->gemm_complex_split_f32;
  kernels.run_products = row(isa)->run_products;
  kernels.fill_slots = row(isa)->fill_slots;
  kernels.gemm_columns = row(source_of(&CpuKernels::gemm_f32, isa))->gemm_columns;
  return kernels;
}

std::map<std::string, CpuIsa> kernel_isas(CpuIsa isa) {
  const CpuIsa gemm = source_of(&CpuKernels::gemm_f32, isa);
  return {{"temporal_nms", source_of(&CpuKernels::temporal_nms_f32, isa)},
          {"proposal_conv", row(isa)->gemm_split_f32 != nullptr ? isa : gemm},
          {"moment_scores", source_of(&CpuKernels::moment_scores_f32, isa)},
          {"score_moments", source_of(&CpuKernels::score_moments_f32, isa)},
          {"text_encoder", row(isa)->gemm_split_f32 != nullptr ? isa : gemm}};
}

}  // namespace mmn_fast
