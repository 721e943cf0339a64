#include "cpu/isa.h"

#include <cstdint>

#include "common/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mmn_fast {

const char* name(CpuIsa isa) {
  static const char* const names[] = {"generic", "avx2", "avx512", "avx512_bf16", "amx"};
  return names[static_cast<int>(isa)];
}

CpuIsa parse_cpu_isa(const std::string& word, const char* source) {
  for (CpuIsa isa : kCpuIsas) {
    if (word == name(isa)) return isa;
  }
  throw std::invalid_argument(sentence(source, ": expected generic, avx2, avx512, avx512_bf16 or amx, got '", word, "'"));
}

#if defined(__x86_64__)
namespace {

struct HostFeatures {
  bool avx2 = false, avx512 = false, avx512_bf16 = false, amx = false;
};

constexpr bool all(uint64_t value, uint32_t bits) { return (value & bits) == bits; }

// XCR0: which register states the operating system saves. Spelled out, since baseline flags lack -mxsave.
uint64_t saved_states() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux lends the 8 KiB of tile state on request only; without it the first tile instruction is a SIGILL.
bool request_amx_tiles() {
#if defined(__linux__)
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
#else
  return false;
#endif
}

// The bits tested here are those that CMakeLists.txt lets the compiler use in kernels_<isa>.cc.
HostFeatures detect() {
  constexpr uint32_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
  HostFeatures host;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return host;
  const bool osxsave_avx_fma = all(c, bit_OSXSAVE | bit_AVX | bit_FMA);
  if (!osxsave_avx_fma || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return host;
  const uint64_t saved = saved_states();
  host.avx2 = all(saved, kYmm) && all(b, bit_AVX2);
  host.avx512 =
      host.avx2 && all(saved, kZmm) && all(b, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL);
  constexpr uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;  // not in every <cpuid.h>
  uint32_t ignored;
  constexpr uint32_t kAvx512Bf16 = 1u << 5;
  host.avx512_bf16 = host.avx512 && __get_cpuid_count(7, 1, &a, &ignored, &ignored, &ignored) && all(a, kAvx512Bf16);
  host.amx = host.avx512_bf16 && all(saved, kTiles) && all(d, kAmxBf16 | kAmxTile | kAmxInt8);
  return host;
}

}  // namespace

bool host_has(CpuIsa isa) {
  static const HostFeatures host = detect();
  switch (isa) {
    case CpuIsa::generic: return true;
    case CpuIsa::avx2: return host.avx2;
    case CpuIsa::avx512: return host.avx512;
    case CpuIsa::avx512_bf16: return host.avx512_bf16;
    case CpuIsa::amx: {
      static const bool usable = host.amx && request_amx_tiles();
      return usable;
    }
  }
  MMN_ASSERT(!"unknown CpuIsa");
  return false;
}
#else
bool host_has(CpuIsa isa) { return isa == CpuIsa::generic; }
#endif

}  // namespace mmn_fast
