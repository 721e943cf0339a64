// One layer of proposal_conv: its packed weights and the loops around the kernels. See ops/proposal_conv.h.
#pragma once

#include <vector>

#include "common/buffer.h"
#include "cpu/isa/kernels.h"
#include "ops/proposal_conv.h"

namespace mmn_fast {

// Scratch memory of one call; the caller keeps it from call to call.
struct ConvScratch {
  FloatBuffer rows[2];  // the input and the output of a layer
  FloatBuffer points;   // transformed tiles, or the slots of runs
  FloatBuffer clips;
};

class ConvLayer {
 public:
  // Multiplies tap by tap. neighbours = nullptr: every row is its own and only input.
  ConvLayer(const ConvLayerArgs& layer, const CpuKernels& kernels);
  // Multiplies over runs of cells in bf16 (terms 1, 1); needs kernels with run_products; layer.neighbours is not read.
  ConvLayer(const ConvLayerArgs& layer, const CellRunsArgs& runs, const CpuKernels& kernels);
  // Multiplies in a transform's domain; the weights follow through pack_points.
  ConvLayer(const ConvLayerArgs& layer, const TilingArgs& tiling, const CpuKernels& kernels);

  // Packs points[p, c, k], the transformed weights of output channels [first, first + channels). Complex points come
  // first, as rows real, imaginary, real, ... `first` is a multiple of kRowPad.
  void pack_points(const float* points, int64_t first, int64_t channels, int threads);

  // in [cells_in * batch, in_stride] -> out [cells * batch, width()]. In a layer without neighbours, `cells` may exceed
  // the layer's number of cells. `width()` floats of a row are written.
  void run(const float* in, int64_t in_stride, float* out, int64_t cells, int64_t batch, int threads,
           ConvScratch& scratch) const;

  int64_t c_in() const { return c_in_; }
  int64_t c_out() const { return c_out_; }
  int64_t width() const { return width_; }
  int64_t cells_in() const { return cells_in_; }
  int64_t cells() const { return cells_; }
  int64_t points() const;  // first size of the `points` that pack_points takes; 0 for a direct layer
  int64_t packed_bytes() const { return weights_.size() * static_cast<int64_t>(sizeof(float)); }

 private:
  // The output rows that a tap adds to, rising, and the input row for each of them.
  struct Tap {
    std::vector<int32_t> outputs, inputs;
  };

  void run_direct(const float* in, int64_t in_stride, float* out, int64_t cells, int64_t batch, int threads) const;
  void run_cell_runs(const float* in, int64_t in_stride, float* out, int64_t batch, int threads,
                     ConvScratch& scratch) const;
  void run_tiled(const float* in, int64_t in_stride, float* out, int64_t batch, int threads,
                 ConvScratch& scratch) const;
  void pack_panels(const float* matrix, const float* imaginary, int64_t channel_step, int64_t k_step, int64_t first,
                   int64_t channels, float* packed) const;
  // A step's column tiles have `places` places; this fills `terms_b_` of them, from `place` on.
  void pack_split_panels(const float* matrix, const float* imaginary, int64_t channel_step, int64_t k_step,
                         int64_t first, int64_t channels, float* packed, int64_t place, int64_t places) const;
  bool split() const { return terms_b_ > 0; }
  int64_t panel_columns() const;
  int64_t matrix_size() const;  // floats of one packed real matrix; a complex one takes two
  void multiply(GemmArgs& gemm, bool complex, int64_t first_panel, int64_t last_panel) const;

  const CpuKernels* kernels_;
  int64_t c_in_, c_out_, width_, cells_in_, cells_;
  bool relu_;
  int terms_a_, terms_b_;
  FloatBuffer weights_;  // [tap or point], each packed as in cpu/kernels/products/gemm.h
  FloatBuffer bias_;     // [width]
  std::vector<float> cell_weights_;

  std::vector<Tap> taps_;  // empty: no neighbours

  std::vector<RunPair> run_pairs_;  // empty: no runs
  std::vector<RunTap> run_taps_;
  std::vector<int32_t> slots_;
  int64_t run_stride_ = 0, num_taps_ = 0;

  int64_t tile_ = 0, m_ = 0, tiles_ = 0;
  bool spectral_ = false;
  std::vector<float> bt_, at_;
  std::vector<int32_t> tile_inputs_, tile_outputs_;
};

}  // namespace mmn_fast
