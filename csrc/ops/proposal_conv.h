// Contract of proposal_conv: the stacked k x k layers over the 2D map, on needed cells and taps only.
//
//   out[r, co] = max(0, bias[co] + sum over taps t, ci of in[neighbours[r, t], ci] * weight[co, ci, t]) * cell_weights[r]
//
// - A row is one cell of one video. Rows are cell-major and video-minor: row r * B + b is cell r of video b, so that a
//   batch shares each weight that is read. Cells, neighbours and weights come from geometry.py's plan; no kernel derives
//   them again. neighbours[r, t] = -1 means that the input is zero.
// - The caller folds BatchNorm into weight and bias.
// - Each layer's algorithm is chosen when the layer is added: direct, tap by tap or over runs of cells, or in a
//   transform's domain over square tiles (Winograd, FFT). All take any k, C, R and B; results differ by rounding.
// - Every sum has one order that follows from the layer alone. So a video's result depends neither on B, nor on the other
//   videos, nor on the number of threads.
// - A video's NaN and infinity stay in its own rows.
//
// Implemented by cpu/proposal_conv.cc and cpu/conv_layer.cc, their kernels by cpu/kernels and cpu/kernels/products.
#pragma once

#include <cstdint>

namespace mmn_fast {

// Views of the caller's arrays; adding a layer copies them.
struct ConvLayerArgs {
  const float* weight;          // [c_out, c_in, taps]; nullptr if pack_points will take transformed weights
  const float* bias;            // [c_out]
  const int32_t* neighbours;    // [cells, taps], rows of the input or -1; nullptr for a tiled layer
  const float* cell_weights;    // [cells]
  int64_t c_in, c_out;
  int64_t taps;                 // k * k
  int64_t cells_in, cells;      // R of the input and of this layer
  bool relu;
  // Numbers of bf16 terms of inputs and weights, see cpu/kernels/products/gemm.h; 0 for float32.
  int terms_a = 0, terms_b = 0;
};

// y = at ((g w g^T) * (bt x bt^T)) at^T per tile, with `points` products; the caller applies g to the weights. Spectral
// tiles (of the FFT) hold sums over cosines and sines, which pair up to complex points, in the order of
// cpu/kernels/tile_transform.h.
struct TilingArgs {
  const float* bt;              // [tile, tile]
  const float* at;              // [m, tile]
  const int32_t* inputs;        // [tiles, tile * tile], rows of the input or -1
  const int32_t* outputs;       // [tiles, m * m], cells or -1; every cell once
  int64_t tile, m, tiles;
  bool spectral;                // tile = 16
};

// A direct layer over runs of cells, see cpu/kernels/products/run_products.h. Tiles come in pairs: tiles 2 p and 2 p + 1
// share their weights.
struct CellRunsArgs {
  const int32_t* slots;         // [num_slots], rows of the input or -1
  const int32_t* outputs;       // [tiles, 16], cells, -1 past a tile's last cell; every cell once
  const int32_t* starts;        // [tiles], the slot that a tile's first cell reads under tap 0
  const bool* tile_taps;        // [tiles, taps], taps that a tile must read; under other taps all its inputs are zero
  const int32_t* tap_offsets;   // [taps], slots from tap 0
  int64_t num_slots, tiles;     // tiles even
  int64_t stride;               // slots from a cell of a run to the next cell
};

}  // namespace mmn_fast
