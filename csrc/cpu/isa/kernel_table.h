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

// In rising order, those that can be chosen here.
std::vector<CpuIsa> available_cpu_isas();

// In rising order, those of this build, whatever the host, that multiply bf16; of these those with tiles, where `tiles`.
std::vector<CpuIsa> bf16_isas(bool tiles);

// Throws std::invalid_argument, which names `source`, where the host or the build lacks it.
void require_cpu_isa(CpuIsa isa, const char* source);

// The complete row: an op for which `isa` has no code of its own comes from the next lower row that has.
CpuKernels cpu_kernels(CpuIsa isa);

// Op name -> the row whose code runs it under `isa`.
std::map<std::string, CpuIsa> kernel_isas(CpuIsa isa);

}  // namespace mmn_fast
