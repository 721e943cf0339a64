// The table of kernels, one row per instruction set, and the choice of a row. Compiled with baseline flags.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "cpu/isa/isa.h"
#include "cpu/isa/kernels.h"

namespace mmn_fast {

// The default instruction set: MMN_FAST_CPU_ISA, else the highest one that this host and this build have. It is chosen
// at first use, then fixed. Throws std::invalid_argument if the environment names an unknown or unusable one.
CpuIsa chosen_cpu_isa();

// The instruction sets that can be chosen here, in rising order.
std::vector<CpuIsa> available_cpu_isas();

// The instruction sets of this build that multiply bf16, in rising order, whatever the host; with `tiles` only those
// with tiles of bf16.
std::vector<CpuIsa> bf16_isas(bool tiles);

// Throws std::invalid_argument, which names `source`, if the host or the build lacks `isa`.
void require_cpu_isa(CpuIsa isa, const char* source);

// The complete row of `isa`: an op that `isa` does not implement comes from the next lower row that does.
CpuKernels cpu_kernels(CpuIsa isa);

// Op name -> the row whose code runs it under `isa`.
std::map<std::string, CpuIsa> kernel_isas(CpuIsa isa);

}  // namespace mmn_fast
