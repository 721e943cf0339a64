// Tiles of plain memory for the AMX kernels' source, so that hosts without AMX run its logic. test_amx_kernels.py
// compiles and calls this file. Products are those of TDPBF16PS; the order of its roundings is not modelled.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/isa/kernels.h"

namespace {

struct Tile {
  alignas(64) unsigned char rows[16][64];
  int count;  // configured number of rows
};
thread_local Tile tiles[8];
thread_local bool configured = false;

float widen(const unsigned char* bf16) {
  uint16_t bits16;
  std::memcpy(&bits16, bf16, sizeof bits16);
  const uint32_t bits = static_cast<uint32_t>(bits16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void require_config() {
  if (!configured) __builtin_trap();  // a processor faults without a configuration
}

void load_config(const void* config) {
  const unsigned char* bytes = static_cast<const unsigned char*>(config);
  for (int tile = 0; tile < 8; ++tile) {
    const int count = bytes[48 + tile];
    if (bytes[0] != 1 || bytes[16 + 2 * tile] != 64 || count < 1 || count > 16) __builtin_trap();
    std::memset(&tiles[tile], 0, sizeof(Tile));
    tiles[tile].count = count;
  }
  configured = true;
}

void load_tile(int tile, const void* from, int64_t stride) {
  require_config();
  for (int r = 0; r < tiles[tile].count; ++r) std::memcpy(tiles[tile].rows[r], static_cast<const char*>(from) + r * stride, 64);
}

void store_tile(int tile, void* to, int64_t stride) {
  require_config();
  for (int r = 0; r < tiles[tile].count; ++r) std::memcpy(static_cast<char*>(to) + r * stride, tiles[tile].rows[r], 64);
}

void zero_tile(int tile) {
  require_config();
  std::memset(tiles[tile].rows, 0, sizeof tiles[tile].rows);
}

void multiply_bf16(int sums, int left, int right) {
  require_config();
  if (tiles[sums].count != tiles[left].count || tiles[right].count != 16) __builtin_trap();
  for (int m = 0; m < tiles[sums].count; ++m) {
    for (int n = 0; n < 16; ++n) {
      float sum;
      std::memcpy(&sum, tiles[sums].rows[m] + 4 * n, sizeof sum);
      for (int pair = 0; pair < 16; ++pair) {
        const unsigned char *a = tiles[left].rows[m] + 4 * pair, *b = tiles[right].rows[pair] + 4 * n;
        sum = __builtin_fmaf(widen(a + 2), widen(b + 2), __builtin_fmaf(widen(a), widen(b), sum));
      }
      std::memcpy(tiles[sums].rows[m] + 4 * n, &sum, sizeof sum);
    }
  }
}

}  // namespace

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) load_config(config)
#define _tile_release() (configured = false)
#define _tile_loadd(tile, from, stride) load_tile(tile, from, stride)
#define _tile_stored(tile, to, stride) store_tile(tile, to, stride)
#define _tile_zero(tile) zero_tile(tile)
#define _tile_dpbf16ps(sums, left, right) multiply_bf16(sums, left, right)

#define MMN_ISA isa_amx_double
#include "cpu/kernels/products/gemm_tiles-inl.h"
#include "cpu/kernels/products/run_products-inl.h"

extern "C" void multiply(const mmn_fast::GemmArgs* args, int complex, int64_t first_panel, int64_t last_panel) {
  const auto kernel = complex ? mmn_fast::MMN_ISA::gemm_complex_split_f32 : mmn_fast::MMN_ISA::gemm_split_f32;
  kernel(*args, first_panel, last_panel);
}

extern "C" void multiply_runs(const mmn_fast::FillSlotsArgs* fill, const mmn_fast::RunProductsArgs* args, int64_t panels,
                              int64_t pairs) {
  mmn_fast::MMN_ISA::fill_slots(*fill, 0, fill->slots);
  for (int64_t panel = 0; panel < panels; ++panel) mmn_fast::MMN_ISA::run_products(*args, panel, 0, pairs);
}
