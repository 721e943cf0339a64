// The functions that an instruction set implements. kernels_<isa>.cc includes this, so it holds declarations only: the
// linker could keep an inline function's copy from there, with wide instructions, for every host.
#pragma once

#include <cstdint>

#include "cpu/isa/list.h"
#include "cpu/kernels/products/gemm.h"
#include "cpu/kernels/products/run_products.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/search/search_moments.h"
#include "cpu/kernels/text.h"
#include "cpu/kernels/tile_transform.h"
#include "ops/match_scores.h"
#include "ops/top_moments.h"
#include "ops/temporal_nms.h"

namespace mmn_fast {

// Per-thread memory of temporal_nms; each array has `padded` elements, the cells rounded up to kScratchPad.
struct TemporalNmsScratch {
  float* starts;
  float* ends;
  int32_t* keys;
  int64_t padded;
};
constexpr int64_t kScratchPad = 16;  // lanes of the widest vector
constexpr int64_t kScoredAtOnce = 32;  // sentences that top_moments scores at once: its `keys` has as many rows

// A row of the table, one function per op; each function handles items [first, last) on the calling thread. nullptr
// means that the instruction set does not implement the op. kernels_<isa>.cc fills a row by name.
struct CpuKernels {
  void (*temporal_nms_f32)(const TemporalNmsArgs& args, const TemporalNmsScratch& scratch, int64_t first_query,
                           int64_t last_query) = nullptr;
  // The three parts of proposal_conv: products, transforms, and the rows between them.
  int64_t gemm_columns = 0;  // columns of a packed panel for gemm_f32 and gemm_complex_f32
  void (*gemm_f32)(const GemmArgs& args, int64_t first_panel, int64_t last_panel) = nullptr;
  void (*gemm_complex_f32)(const GemmArgs& args, int64_t first_panel, int64_t last_panel) = nullptr;
  void (*tile_forward_f32)(const TileTransformArgs& args, int64_t first, int64_t last) = nullptr;
  void (*tile_inverse_f32)(const TileTransformArgs& args, int64_t first, int64_t last) = nullptr;
  void (*start_rows_f32)(const StartRowsArgs& args, int64_t first_row, int64_t last_row) = nullptr;
  void (*finish_rows_f32)(const FinishRowsArgs& args, int64_t first_row, int64_t last_row) = nullptr;
  void (*max_rows_f32)(const float* earlier, const float* later, float* out, int64_t width) = nullptr;
  void (*normalize_row_f32)(const float* row, float* out, int64_t width) = nullptr;
  void (*layer_norm_row_f32)(const float* row, const float* added, const LayerNormArgs& norm, float* out) = nullptr;
  void (*gelu_f32)(float* data, int64_t count) = nullptr;
  void (*attend_f32)(const AttentionArgs& args, float* scratch, int64_t first_item, int64_t last_item) = nullptr;
  void (*match_scores_f32)(const MatchScoresArgs& args, int64_t first_sentence, int64_t last_sentence) = nullptr;
  int64_t (*top_moments_f32)(const TopMomentsArgs& args, const TemporalNmsScratch& scratch, int64_t first_sentence,
                               int64_t last_sentence) = nullptr;
  int64_t search_columns = 0;  // columns of a packed panel for search_window_f32
  void (*search_window_f32)(const SearchBlock& block, int64_t window, const SearchState& state) = nullptr;
  // bf16 only; null elsewhere, with no fallback to a lower row.
  void (*gemm_split_f32)(const GemmArgs& args, int64_t first_panel, int64_t last_panel) = nullptr;
  void (*gemm_complex_split_f32)(const GemmArgs& args, int64_t first_panel, int64_t last_panel) = nullptr;
  // Tiles of bf16 only; null elsewhere, with no fallback to a lower row.
  void (*run_products)(const RunProductsArgs& args, int64_t panel, int64_t first_pair, int64_t last_pair) = nullptr;
  void (*fill_slots)(const FillSlotsArgs& args, int64_t first_slot, int64_t last_slot) = nullptr;
};

#define MMN_ROW(isa)              \
  namespace isa_##isa {           \
  extern const CpuKernels kernels; \
  }
MMN_CPU_ISAS(MMN_ROW)
#undef MMN_ROW

}  // namespace mmn_fast
