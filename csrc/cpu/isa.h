// Which instruction sets the host runs. Compiled with baseline flags.
#pragma once

#include <string>

namespace mmn_fast {

// In rising order: a host that has one has all before it. Each name is also the word in MMN_FAST_CPU_ISA.
enum class CpuIsa { generic, avx2, avx512, avx512_bf16, amx };
constexpr CpuIsa kCpuIsas[] = {CpuIsa::generic, CpuIsa::avx2, CpuIsa::avx512, CpuIsa::avx512_bf16, CpuIsa::amx};

const char* name(CpuIsa isa);

// Throws std::invalid_argument, which names `source`, for a word that is none of them.
CpuIsa parse_cpu_isa(const std::string& word, const char* source);

// True where CPU and operating system both support it. Asking about amx also asks the operating system for the
// permission to use the tiles.
bool host_has(CpuIsa isa);

}  // namespace mmn_fast
