#include "cpu/isa/kernel_table.h"

#include <cstdlib>

#include "common/check.h"

namespace mmn_fast {
namespace {

// nullptr: this build lacks the instruction set (another architecture, or a compiler that does not know it).
const CpuKernels* row(CpuIsa isa) {
#define MMN_ROW(isa) \
  case CpuIsa::isa: return &isa_##isa::kernels;
  switch (isa) {
    MMN_BUILT_ISAS  // from CMakeLists.txt: MMN_ROW(generic) MMN_ROW(avx2) ...
    default: return nullptr;
  }
#undef MMN_ROW
}

template <class Predicate>
std::vector<CpuIsa> isas_where(Predicate predicate) {
  std::vector<CpuIsa> isas;
  for (CpuIsa isa : all_cpu_isas()) {
    if (row(isa) != nullptr && predicate(isa)) isas.push_back(isa);
  }
  return isas;
}

// The highest row at or below `isa` that implements `op`. The search ends at generic, which implements every such op.
template <class Fn>
CpuIsa source_of(Fn CpuKernels::*op, CpuIsa isa) {
  while (row(isa) == nullptr || row(isa)->*op == nullptr) {
    MMN_ASSERT(isa != CpuIsa::generic);
    isa = static_cast<CpuIsa>(static_cast<int>(isa) - 1);
  }
  return isa;
}

CpuIsa choose() {
  constexpr const char* kVariable = "MMN_FAST_CPU_ISA";
  const char* word = std::getenv(kVariable);
  if (word != nullptr && *word != '\0') {
    const CpuIsa isa = parse_cpu_isa(word, kVariable);
    require_cpu_isa(isa, kVariable);
    return isa;
  }
  return available_cpu_isas().back();
}

}  // namespace

CpuIsa chosen_cpu_isa() {
  static const CpuIsa chosen = choose();  // a throw leaves `chosen` unset, so every use raises the same error
  return chosen;
}

std::vector<CpuIsa> available_cpu_isas() { return isas_where(host_has); }

std::vector<CpuIsa> bf16_isas(bool tiles) {
  return isas_where([&](CpuIsa isa) {
    return tiles ? row(isa)->run_products != nullptr : row(isa)->gemm_split_f32 != nullptr;
  });
}

void require_cpu_isa(CpuIsa isa, const char* source) {
  const char* reason = row(isa) == nullptr ? "this build has no such kernels" : "this host lacks it";
  MMN_CHECK(row(isa) != nullptr && host_has(isa), source, ": expected one of ", names(available_cpu_isas()), ", got ",
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
  fill(&CpuKernels::match_scores_f32);
  fill(&CpuKernels::top_moments_f32);
  fill(&CpuKernels::search_window_f32);
  // bf16 only, with no fallback to a lower row.
  kernels.gemm_split_f32 = row(isa)->gemm_split_f32;
  kernels.gemm_complex_split_f32 = row(isa)->gemm_complex_split_f32;
  kernels.run_products = row(isa)->run_products;
  kernels.fill_slots = row(isa)->fill_slots;
  kernels.search_columns = row(source_of(&CpuKernels::search_window_f32, isa))->search_columns;
  kernels.gemm_columns = row(source_of(&CpuKernels::gemm_f32, isa))->gemm_columns;
  return kernels;
}

std::map<std::string, CpuIsa> kernel_isas(CpuIsa isa) {
  const CpuIsa gemm = source_of(&CpuKernels::gemm_f32, isa);
  return {{"temporal_nms", source_of(&CpuKernels::temporal_nms_f32, isa)},
          {"proposal_conv", row(isa)->gemm_split_f32 != nullptr ? isa : gemm},
          {"match_scores", source_of(&CpuKernels::match_scores_f32, isa)},
          {"top_moments", source_of(&CpuKernels::top_moments_f32, isa)},
          {"search_moments", source_of(&CpuKernels::search_window_f32, isa)},
          {"text_encoder", row(isa)->gemm_split_f32 != nullptr ? isa : gemm}};
}

}  // namespace mmn_fast
