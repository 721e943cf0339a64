// One row of kernels per instruction set, and the choice among them. Compiled with baseline flags.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "cpu/isa/isa.h"
#include "cpu/isa/kernels.h"

namespace mmn_fast {

// The row that is used when a call names none: MMN_FAST_CPU_ISA, else the highest one that this host and this build have.
// Chosen on first use, then fixed. Throws std::invalid_argument if the environment asks for an unknown or unusable one.
CpuIsa chosen_cpu_isa();

// The instruction sets that can be chosen here, in rising order.
std::vector<CpuIsa> available_cpu_isas();

// The instruction sets of this build that multiply bf16, in rising order; with `tiles` only those with tiles of bf16. The
// host does not matter.
std::vector<CpuIsa> bf16_isas(bool tiles);

// Throws std::invalid_argument, which names `source`, where the host or the build lacks it.
void require_cpu_isa(CpuIsa isa, const char* source);

// The complete row: an op for which `isa` has no code of its own comes from the next lower row that has.
CpuKernels cpu_kernels(CpuIsa isa);

// Op name -> the row whose code runs it under `isa`.
std::map<std::string, CpuIsa> kernel_isas(CpuIsa isa);

}  // namespace mmn_fast
