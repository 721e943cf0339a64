// Detects the instruction sets that the host runs. Compiled with baseline flags.
#pragma once

#include <string>
#include <vector>

#include "cpu/isa/list.h"

namespace mmn_fast {

#define MMN_ENUMERATOR(isa) isa,
enum class CpuIsa { MMN_CPU_ISAS(MMN_ENUMERATOR) };
#undef MMN_ENUMERATOR

const char* name(CpuIsa isa);
const std::vector<CpuIsa>& all_cpu_isas();  // in rising order

// "generic, avx2 or avx512" with `last` " or ".
std::string names(const std::vector<CpuIsa>& isas, const char* last = ", ");

// Parses the name of an instruction set. Throws std::invalid_argument, which names `source`, for any other word.
CpuIsa parse_cpu_isa(const std::string& word, const char* source);

// True if CPU and operating system both support it. Asking about amx also asks the operating system for permission to
// use the tiles.
bool host_has(CpuIsa isa);

}  // namespace mmn_fast
