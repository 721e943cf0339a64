// The instruction sets in rising order; a host that has one has all earlier ones. Each name is the word in
// MMN_FAST_CPU_ISA, the namespace isa_<name> and the file kernels_<name>.cc. Only macros, as kernels_<isa>.cc includes
// this file.
#pragma once

#define MMN_CPU_ISAS(X) X(generic) X(avx2) X(avx512) X(avx512_bf16) X(amx)
