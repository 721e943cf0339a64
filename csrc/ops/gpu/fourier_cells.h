// Contract of fourier_cells, the inverse of fourier_tiles: spectra back to the first m x m places of every tile, then
// bias, ReLU and cell weight.
//   out[cell, b, c] = max(place + bias[c], 0) * cell_weights[cell], cell = outputs[tile, y, x]
// if cell is not -1; nothing else is written.
//
// Implemented by cuda/device/fourier_bodies.h.
#pragma once

#include "ops/gpu/dtype.h"

namespace mmn_fast {

struct FourierCellsArgs {
  const void* spectra;        // dtype [n * n, tiles, videos, channels]
  const int32_t* outputs;     // [tiles, m, m], each cell at most once
  const float* bias;          // [channels]
  const float* cell_weights;  // [cells]
  void* out;                  // dtype [cells, videos, channels]
  int64_t tiles, videos, channels;
  int n, m;  // m 1 to n
  Dtype dtype;
};

}  // namespace mmn_fast
