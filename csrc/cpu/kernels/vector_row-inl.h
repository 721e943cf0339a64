// All kernels over Vec, and the table row that they fill. kernels_<isa>.cc includes this after defining its Vec.
#include "cpu/kernels/products/gemm-inl.h"
#include "cpu/kernels/rows-inl.h"
#include "cpu/kernels/temporal_nms-inl.h"
#include "cpu/kernels/match_scores-inl.h"  // uses temporal_nms-inl.h
#include "cpu/kernels/search/search_rows-inl.h"  // uses gemm-inl.h and match_scores-inl.h
#include "cpu/kernels/search/search_direct-inl.h"
#include "cpu/kernels/search/search_moments-inl.h"
#include "cpu/kernels/text-inl.h"
#include "cpu/kernels/tile_transform-inl.h"

namespace mmn_fast::MMN_ISA {
namespace {

constexpr CpuKernels vector_row() {
  CpuKernels row;
  row.gemm_columns = kTileColumns;
  row.temporal_nms_f32 = temporal_nms_f32;
  row.gemm_f32 = gemm_f32;
  row.gemm_complex_f32 = gemm_complex_f32;
  row.tile_forward_f32 = tile_forward_f32;
  row.tile_inverse_f32 = tile_inverse_f32;
  row.start_rows_f32 = start_rows_f32;
  row.finish_rows_f32 = finish_rows_f32;
  row.max_rows_f32 = max_rows_f32;
  row.normalize_row_f32 = normalize_row_f32;
  row.layer_norm_row_f32 = layer_norm_row_f32;
  row.gelu_f32 = gelu_f32;
  row.attend_f32 = attend_f32;
  row.match_scores_f32 = match_scores_f32;
  row.top_moments_f32 = top_moments_f32;
  row.search_columns = kTileColumns;
  row.search_window_f32 = search_window_f32;
  return row;
}

}  // namespace

constexpr CpuKernels kernels = vector_row();

}  // namespace mmn_fast::MMN_ISA
