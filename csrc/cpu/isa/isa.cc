#include "cpu/isa/isa.h"

#include <algorithm>
#include <cstdint>

#include "common/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mmn_fast {

const char* name(CpuIsa isa) {
#define MMN_NAME(isa) #isa,
  static const char* const names[] = {MMN_CPU_ISAS(MMN_NAME)};
#undef MMN_NAME
  return names[static_cast<int>(isa)];
}

const std::vector<CpuIsa>& all_cpu_isas() {
#define MMN_ELEMENT(isa) CpuIsa::isa,
  static const std::vector<CpuIsa> isas = {MMN_CPU_ISAS(MMN_ELEMENT)};
#undef MMN_ELEMENT
  return isas;
}

std::string names(const std::vector<CpuIsa>& isas, const char* last) {
  std::string text;
  for (size_t i = 0; i < isas.size(); ++i) {
    text += i == 0 ? "" : i + 1 == isas.size() ? last : ", ";
    text += name(isas[i]);
  }
  return text;
}

CpuIsa parse_cpu_isa(const std::string& word, const char* source) {
  for (CpuIsa isa : all_cpu_isas()) {
    if (word == name(isa)) return isa;
  }
  throw std::invalid_argument(sentence(source, ": expected ", names(all_cpu_isas(), " or "), ", got '", word, "'"));
}

#if defined(__x86_64__)
namespace {

constexpr bool all(uint64_t value, uint32_t bits) { return (value & bits) == bits; }

// XCR0: the register states that the operating system saves. Read by assembly, since baseline flags lack -mxsave.
uint64_t saved_states() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Asks Linux for the 8 KiB of tile state; without it the first tile instruction raises SIGILL.
bool request_amx_tiles() {
#if defined(__linux__)
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
#else
  return false;
#endif
}

// The instruction sets that processor and operating system support, without the permission to use tiles. It tests the
// features that CMakeLists.txt lets the compiler use in kernels_<isa>.cc.
std::vector<CpuIsa> detect() {
  constexpr uint32_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
  constexpr uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;  // not in every <cpuid.h>
  constexpr uint32_t kAvx512Bf16 = 1u << 5;
  std::vector<CpuIsa> found = {CpuIsa::generic};
  uint32_t a, b, c, d, ignored;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool up_to_f16c = all(c, bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C);
  if (!up_to_f16c || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const uint64_t saved = saved_states();
  if (!all(saved, kYmm) || !all(b, bit_AVX2)) return found;
  found.push_back(CpuIsa::avx2);
  if (!all(saved, kZmm) || !all(b, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL)) return found;
  found.push_back(CpuIsa::avx512);
  if (!__get_cpuid_count(7, 1, &a, &ignored, &ignored, &ignored) || !all(a, kAvx512Bf16)) return found;
  found.push_back(CpuIsa::avx512_bf16);
  if (all(saved, kTiles) && all(d, kAmxBf16 | kAmxTile | kAmxInt8)) found.push_back(CpuIsa::amx);
  return found;
}

}  // namespace

bool host_has(CpuIsa isa) {
  static const std::vector<CpuIsa> found = detect();
  if (std::find(found.begin(), found.end(), isa) == found.end()) return false;
  if (isa != CpuIsa::amx) return true;
  static const bool usable = request_amx_tiles();
  return usable;
}
#else
bool host_has(CpuIsa isa) { return isa == CpuIsa::generic; }
#endif

}  // namespace mmn_fast
