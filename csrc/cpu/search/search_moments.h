// search_moments on the CPU: threads and lists around the kernel of one instruction set.
#pragma once

#include "cpu/isa/isa.h"
#include "ops/search_moments.h"

namespace mmn_fast {

// Throws std::invalid_argument for arguments that ops/search_moments.h refuses, and for a NaN score; the outputs are then
// undefined.
void search_moments_cpu(const SearchMomentsArgs& args, CpuIsa isa, int threads);

}  // namespace mmn_fast
