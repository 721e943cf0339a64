// Contract of fourier_tiles: the spectra of the n x n tiles that cover a map; n is 12, 16 or 24. The planes of a spectrum
// are in the order of cpu/kernels/tile_transform.h: a complex point is a plane of real parts, then a plane of imaginary
// parts. A plane is 1/n^2 of the sum over the tile, times the square root of 2 for complex points. This is an orthogonal
// transform over n, so plane F(0, 0) is the tile's mean. dtype is float32 or float16.
//
// Implemented by cuda/device/fourier_bodies.h.
#pragma once

#include "ops/gpu/dtype.h"

namespace mmn_fast {

struct FourierTilesArgs {
  const void* rows;       // dtype [., videos, channels]
  const int32_t* inputs;  // [tiles, n, n], rows under the tile, -1 for zeros
  void* spectra;          // dtype [n * n, tiles, videos, channels]
  int64_t tiles, videos, channels;
  int n;
  Dtype dtype;
};

}  // namespace mmn_fast
